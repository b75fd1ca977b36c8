"""Plays vector environments beside SB3's own."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import VectorEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from sb3_reinforce.envs import GymnasiumVecEnv
from tests.envs.walks import Walk

N_ENVS = 3
SEED = 7


def dummy(space: str, n_envs: int = N_ENVS, **kwargs: Any) -> DummyVecEnv:
    env = DummyVecEnv([lambda: Monitor(Walk(space, **kwargs)) for _ in range(n_envs)])
    env.seed(SEED)
    return env


def adapted(venv: VectorEnv) -> GymnasiumVecEnv:
    env = GymnasiumVecEnv(venv)
    env.seed(SEED)
    return env


def same(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return bool(np.asarray(a).shape == np.asarray(b).shape and (np.asarray(a) == np.asarray(b)).all())


def without_time(info: dict[str, Any]) -> dict[str, Any]:
    info = {key: value for key, value in info.items() if key != "TimeLimit.truncated" or value}
    if "episode" in info:
        info["episode"] = {key: info["episode"][key] for key in ("r", "l")}
    return info


def check_same_play(env: VecEnv, expected: VecEnv, n_steps: int) -> int:
    """Plays both, and returns how many episodes ended."""
    rng = np.random.default_rng(0)
    obs = env.reset()
    assert same(obs, expected.reset())
    assert same_types(obs, expected.observation_space)
    n_ended = 0
    for _ in range(n_steps):
        actions = rng.integers(0, 3, env.num_envs)
        got, wanted = env.step(actions), expected.step(actions)
        assert same(got[0], wanted[0])
        assert same_types(got[0], expected.observation_space)
        assert got[1].dtype == wanted[1].dtype and (got[1] == wanted[1]).all()
        assert got[2].dtype == wanted[2].dtype and (got[2] == wanted[2]).all()
        assert isinstance(got[3], list)
        assert all(same(without_time(a), without_time(b)) for a, b in zip(got[3], wanted[3], strict=True))
        assert same(dict(enumerate(env.reset_infos)), dict(enumerate(expected.reset_infos)))
        n_ended += int(got[2].sum())
    env.close()
    return n_ended


def same_types(obs: Any, space: gym.Space) -> bool:
    if isinstance(space, gym.spaces.Dict):
        return all(same_types(obs[key], space[key]) for key in space)
    return obs.dtype == space.dtype and obs.shape[1:] == space.shape


def live_play(env: VecEnv, n_steps: int) -> list[list[Any]]:
    """The steps of each environment without the dead ones. Each gets actions of its own, of which none is lost."""
    actions = np.random.default_rng(1).integers(0, 3, (env.num_envs, n_steps))
    played: list[list[Any]] = [[] for _ in range(env.num_envs)]
    obs = env.reset()

    def row(obs: Any, i: int) -> Any:
        return {key: value[i] for key, value in obs.items()} if isinstance(obs, dict) else obs[i]

    dead_next = np.zeros(env.num_envs, bool)
    for _ in range(n_steps):
        chosen = np.array([actions[i, len(played[i])] for i in range(env.num_envs)])
        new_obs, rewards, dones, infos = env.step(chosen)
        for i, info in enumerate(infos):
            assert info.get("dead_step", False) == dead_next[i]
            if info.get("dead_step"):
                assert rewards[i] == 0.0 and not dones[i]
            else:
                last = info.get("terminal_observation")
                after = last if dones[i] else row(new_obs, i)
                episode = {key: info["episode"][key] for key in ("r", "l")} if dones[i] else None
                cut = info.get("TimeLimit.truncated", False)
                played[i].append((row(obs, i), chosen[i], rewards[i], dones[i], after, episode, cut))
        dead_next = dones & bool(getattr(env, "has_dead_steps", False))
        obs = new_obs
    env.close()
    return played
