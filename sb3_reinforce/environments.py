"""What an algorithm of whole episodes must know about a vectorized environment."""

import gymnasium as gym
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv


def episode_limits(env: VecEnv) -> list[int | None]:
    """
    :param env: The vectorized environment
    :return: The longest episode of each environment, where it declares one: the limit of Gymnasium's ``TimeLimit``
        wrapper, else the one in its ``spec``
    """
    if env.has_attr("_max_episode_steps"):
        return [_as_limit(limit) for limit in env.get_attr("_max_episode_steps")]
    # A spec can hold what cannot be pickled, which would end the worker process
    if isinstance(env.unwrapped, SubprocVecEnv) or not env.has_attr("spec"):
        return [None] * env.num_envs
    return [_as_limit(getattr(spec, "max_episode_steps", None)) for spec in env.get_attr("spec")]


def enforces_limits(env: VecEnv) -> bool:
    """
    :param env: The vectorized environment
    :return: Whether each environment ends its episodes at its limit by itself, by Gymnasium's ``TimeLimit`` wrapper
    """
    return all(env.env_is_wrapped(gym.wrappers.TimeLimit))


def _as_limit(limit: object) -> int | None:
    return limit if isinstance(limit, int) and limit > 0 else None


def check_resets(env: VecEnv, cuts_expected: bool) -> None:
    """
    :param env: The vectorized environment
    :param cuts_expected: Whether episodes are cut at the horizon
    :raises ValueError: If its episodes cannot be broken off to start several environments afresh
    """
    if (
        (env.num_envs > 1 or cuts_expected)
        and env.has_attr("allow_early_resets")
        and not all(env.get_attr("allow_early_resets"))
    ):
        raise ValueError(
            "`Monitor(allow_early_resets=False)` cannot be used with complete_episodes=True and several environments (or a "
            "`horizon` that cuts episodes), as each rollout starts from fresh episodes in all of them, "
            f"got {env.num_envs} environment{'s' if env.num_envs > 1 else ''}."
        )
