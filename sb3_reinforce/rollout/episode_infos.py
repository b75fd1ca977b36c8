"""The info of an episode that is cut at the horizon, of which its monitor does not know."""

import time
from collections.abc import Sequence
from typing import Any

from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv, VecMonitor, unwrap_vec_wrapper

from sb3_reinforce.rollout.wrappers import of_wrappers


def info_of_cut_episode(env: VecEnv, env_id: int, length: int, info: dict[str, Any]) -> dict[str, Any]:
    """
    :param env: The vectorized environment
    :param env_id: The environment whose episode is cut
    :param length: The number of timesteps that the episode has had
    :param info: The info of the last of these timesteps
    :return: The info that an episode has at its end, as if this one had ended: ``is_success``, if there is one, and the
        ``episode`` of the monitor. The latter is left out without a monitor, or with one that counts differently (as with
        Atari games, where a life is an episode)
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
