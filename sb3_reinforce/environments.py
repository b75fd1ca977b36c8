"""What an algorithm of whole episodes must know about a vectorized environment."""

import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from stable_baselines3.common.env_util import unwrap_wrapper
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecEnvWrapper,
    VecMonitor,
    VecNormalize,
    unwrap_vec_wrapper,
)


class EpisodeLimits(NamedTuple):
    """
    Where the episodes of a rollout are cut at the latest.

    :param horizons: The longest episode that is recorded, for each environment
    :param cuts_expected: Whether a cut is to be expected: at a horizon that the environment does not keep by itself
    """

    horizons: list[int]
    cuts_expected: bool


def read_limits(env: VecEnv, horizon: int | None, default: int) -> EpisodeLimits:
    """
    The limits as they are now: a curriculum may change them between two rollouts. Gymnasium's ``TimeLimit`` wrapper is
    believed and nothing else: another object may call anything ``_max_episode_steps``, and a limit in a ``spec`` need not be
    kept.

    :param env: The vectorized environment
    :param horizon: Argument of the constructor
    :param default: The longest episode where neither says one
    :return: Their limits
    """
    limits = [_as_limit(limit) for limit in of_wrappers(env, gym.wrappers.TimeLimit, "_max_episode_steps")]
    horizons = [horizon or limit or default for limit in limits]
    cuts_expected = any(
        cut_at < limit if limit is not None else horizon is not None for cut_at, limit in zip(horizons, limits, strict=True)
    )
    return EpisodeLimits(horizons, cuts_expected)


def _as_limit(limit: object) -> int | None:
    return int(limit) if isinstance(limit, int | np.integer) and limit > 0 else None


def innermost(env: VecEnv) -> VecEnv:
    """
    :param env: A vectorized environment
    :return: What all the wrappers are around, which need not be a ``VecEnv``
    """
    while isinstance(env, VecEnvWrapper):
        env = env.venv
    return env


def of_wrappers(env: VecEnv, wrapper: type[gym.Wrapper], name: str, env_ids: Sequence[int] | None = None) -> list[Any]:
    """
    An attribute of a wrapper around each environment. ``get_attr`` alone would take what any other object between
    has of the same name.

    :param env: The vectorized environment, which may have no answer to anything that SB3's algorithms do not ask
    :param wrapper: Class of the wrapper
    :param name: Name of the attribute
    :param env_ids: Which of the environments; all of them if ``None``
    :return: Its value for each of them; ``None`` where there is no such wrapper, or no answer
    """
    base = innermost(env)
    env_ids = range(env.num_envs) if env_ids is None else env_ids
    unknown = [None] * len(env_ids)
    try:
        if base.num_envs != env.num_envs:  # a wrapper between makes other environments of them
            return unknown
        if isinstance(base, DummyVecEnv):
            return [getattr(unwrap_wrapper(base.envs[i], wrapper), name, None) for i in env_ids]
        is_wrapped = dict(zip(env_ids, base.env_is_wrapped(wrapper, env_ids), strict=True))
        # No others: a worker process that has no such attribute dies of the question
        wrapped = [env_id for env_id in env_ids if is_wrapped[env_id]]
        found = dict(zip(wrapped, base.get_attr(name, wrapped), strict=True)) if wrapped else {}
        if found and isinstance(base, SubprocVecEnv):
            holds = base.env_is_wrapped(_Holding(wrapper, name, list(found.values())), wrapped)  # type: ignore[arg-type]
            found = {env_id: found[env_id] for env_id, holding in zip(wrapped, holds, strict=True) if holding}
    except Exception:  # a simulator's own VecEnv may raise anything, or return what is no list
        return unknown
    return [found.get(env_id) for env_id in env_ids]


class _Holding:
    """
    Takes the place of a class where a worker process asks whether something is an instance of it: whether it is a wrapper that
    itself has one of some values.

    :param wrapper: Class of the wrapper
    :param name: Name of the attribute
    :param values: Its values
    """

    def __init__(self, wrapper: type[gym.Wrapper], name: str, values: Sequence[Any]):
        self.wrapper, self.name, self.values = wrapper, name, values

    def __instancecheck__(self, instance: object) -> bool:
        return isinstance(instance, self.wrapper) and getattr(instance, self.name, None) in self.values


def check_resets(env: VecEnv, cuts_expected: bool) -> None:
    """
    :param env: The vectorized environment
    :param cuts_expected: Whether episodes are cut at the horizon
    :raises ValueError: If its episodes cannot be broken off to start several environments afresh
    """
    if (env.num_envs > 1 or cuts_expected) and any(
        allowed is False for allowed in of_wrappers(env, Monitor, "allow_early_resets")
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
    names = ("rewards", "t_start", "info_keywords")
    rewards, start, keywords = (of_wrappers(env, Monitor, name, [env_id])[0] for name in names)
    if not isinstance(rewards, list) or not all(isinstance(reward, float) for reward in rewards):
        return 0.0, 0, 0.0, ()
    return round(sum(rewards), 6), len(rewards), start, keywords
