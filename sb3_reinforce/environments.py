"""What an algorithm of whole episodes must know about a vectorized environment."""

import time
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.env_util import unwrap_wrapper
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecMonitor,
    VecNormalize,
    unwrap_vec_wrapper,
)


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


def check_statistics(normalizer: VecNormalize | None) -> None:
    """
    :param normalizer: What normalizes observations and rewards, if anything does
    :raises ValueError: If it can only make NaN of them, which one bad number is enough for
    """
    if normalizer is None:
        return
    of_observations = getattr(normalizer, "obs_rms", {})  # not there with `norm_obs=False`
    statistics = dict(of_observations) if isinstance(of_observations, dict) else {"observations": of_observations}
    statistics["rewards"] = normalizer.ret_rms
    for what, moments in statistics.items():
        if not (np.isfinite(moments.mean).all() and np.isfinite(moments.var).all()):
            raise ValueError(
                f"The statistics of VecNormalize must be finite, got a mean of {moments.mean} and a variance of {moments.var} "
                f"for {what}: it has seen NaN or infinity, and has to be made or loaded anew."
            )


def info_of_cut_episode(env: VecEnv, env_id: int, length: int, info: dict[str, Any]) -> dict[str, Any]:
    """
    :param env: The vectorized environment
    :param env_id: The one of its environments whose episode is cut here
    :param length: The number of timesteps that the episode has had
    :param info: The info of the last of them
    :return: The info that an episode has at its end, as if this one had ended: ``is_success``, if there is one, and the
        ``episode`` of the monitor. The latter is left out without a monitor, or with one that counts otherwise (as with Atari
        games, where a life is an episode)
    """
    ended = {"is_success": info["is_success"]} if "is_success" in info else {}
    total, n_steps, start, keywords = _count_of_monitor(env, env_id)
    if n_steps != length:
        return ended
    seconds = round(time.time() - start, 6)
    return {**ended, "episode": {"r": total, "l": n_steps, "t": seconds, **{key: info.get(key) for key in keywords}}}


def _count_of_monitor(env: VecEnv, env_id: int) -> tuple[float, int, float, Sequence[str]]:
    """Return and length of an environment's episode so far, the time of its monitor's start, and its further keywords."""
    vec_monitor = unwrap_vec_wrapper(env, VecMonitor)
    if vec_monitor is not None:
        counted = float(vec_monitor.episode_returns[env_id]), int(vec_monitor.episode_lengths[env_id])
        return *counted, vec_monitor.t_start, vec_monitor.info_keywords
    rewards: Any = None
    if isinstance(env.unwrapped, DummyVecEnv):
        # Not by `get_attr`, which takes what a wrapper around the monitor may have of the same name
        monitor = unwrap_wrapper(env.unwrapped.envs[env_id], Monitor)
        if isinstance(monitor, Monitor):
            rewards, start, keywords = monitor.rewards, monitor.t_start, monitor.info_keywords
    elif env.env_is_wrapped(Monitor, env_id)[0]:
        rewards, start, keywords = (env.get_attr(name, env_id)[0] for name in ("rewards", "t_start", "info_keywords"))
    if not isinstance(rewards, list) or not all(isinstance(reward, float) for reward in rewards):
        return 0.0, 0, 0.0, ()
    return round(sum(rewards), 6), len(rewards), start, keywords
