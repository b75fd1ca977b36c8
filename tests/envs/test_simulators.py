"""Simulators of others, where they are installed: EnvPool, and the vector environment of ale-py."""

from typing import Any

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, VectorEnv
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_reinforce.envs import EnvPoolVecEnv, GymnasiumVecEnv, make_vector_env

N_ENVS = 3


def play(env: VecEnv, actions: np.ndarray) -> list[list[tuple[Any, ...]]]:
    """The steps of each environment: observation, reward, done, last observation and whether it was cut."""
    env.reset()
    played: list[list[tuple[Any, ...]]] = [[] for _ in range(env.num_envs)]
    for chosen in actions:
        obs, rewards, dones, infos = env.step(chosen)
        for i, info in enumerate(infos):
            cut = info.get("TimeLimit.truncated", False)
            played[i].append((obs[i], rewards[i], dones[i], info.get("terminal_observation", np.zeros(1)), cut))
    return played


def check_same(played: list[list[tuple[Any, ...]]], expected: list[list[tuple[Any, ...]]]) -> None:
    for of_env, wanted in zip(played, expected, strict=True):
        for a, b in zip(of_env, wanted, strict=True):
            assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


# EnvPool


def pool(task: str, **kwargs: Any) -> Any:
    envpool = pytest.importorskip("envpool")
    return envpool.make(task, env_type="gymnasium", num_envs=N_ENVS, seed=5, **kwargs)


def play_bare(envs: Any, actions: np.ndarray) -> list[list[tuple[Any, ...]]]:
    """As EnvPool plays by itself, with a step that resets after each episode, which is left out."""
    obs, _ = envs.reset()
    played: list[list[tuple[Any, ...]]] = [[] for _ in range(N_ENVS)]
    dead = np.zeros(N_ENVS, bool)
    while min(map(len, played)) < len(actions):
        chosen = np.array([actions[min(len(played[i]), len(actions) - 1), i] for i in range(N_ENVS)])
        obs, rewards, terminated, truncated, _ = envs.step(chosen)
        for i in range(N_ENVS):
            if dead[i]:
                last = played[i][-1]
                played[i][-1] = (obs[i].copy(), *last[1:])
            else:
                done = terminated[i] or truncated[i]
                last_obs = obs[i].copy() if done else np.zeros(1)
                played[i].append((obs[i].copy(), rewards[i], done, last_obs, truncated[i] and not terminated[i]))
        dead = (terminated | truncated) & ~dead
    return played


@pytest.mark.parametrize("task, limit", [("CartPole-v1", 12), ("HalfCheetah-v4", 15), ("Hopper-v4", 50), ("Pong-v5", 20)])
def test_envpool_plays_as_it_does_by_itself_without_the_lost_steps(task: str, limit: int) -> None:
    env = EnvPoolVecEnv(pool(task, max_episode_steps=limit))
    env.action_space.seed(0)
    n_steps = 20 * limit if task == "CartPole-v1" else 5 * limit
    actions = np.array([[env.action_space.sample() for _ in range(N_ENVS)] for _ in range(n_steps)])
    played = play(env, actions)
    expected = [of_env[: len(actions)] for of_env in play_bare(pool(task, max_episode_steps=limit), actions)]
    for of_env, wanted in zip(played, expected, strict=True):
        ends = [step[2] for step in of_env]
        # The observation after the very last step may be that of a reset which the bare pool has not played yet
        check_same([of_env[:-1]], [wanted[:-1]])
        assert sum(ends) >= 4
    assert any(step[4] for of_env in played for step in of_env)
    assert not env.has_dead_steps


def test_envpool_cartpole_moves_as_that_of_gymnasium() -> None:
    import gymnasium as gym

    env, single = EnvPoolVecEnv(pool("CartPole-v1")), gym.make("CartPole-v1")
    obs = env.reset()
    single.reset()
    rng = np.random.default_rng(0)
    single.unwrapped.state = obs[0].astype(float)  # type: ignore[attr-defined]
    n_ended = 0
    for _ in range(300):
        actions = rng.integers(0, 2, N_ENVS)
        obs, rewards, dones, infos = env.step(actions)
        expected = single.step(actions[0])
        after = infos[0]["terminal_observation"] if dones[0] else obs[0]
        assert np.allclose(after, expected[0], atol=1e-4) and rewards[0] == expected[1] and dones[0] == expected[2]
        if dones[0]:
            assert not np.allclose(obs[0], after, atol=0.05)
            single.reset()
            single.unwrapped.state = obs[0].astype(float)  # type: ignore[attr-defined]
            n_ended += 1
    assert n_ended > 5


def test_envpool_is_a_plain_vec_env() -> None:
    pytest.importorskip("envpool")
    env = make_vector_env("Hopper-v4", N_ENVS, seed=1, vectorization_mode="envpool", env_kwargs={"max_episode_steps": 30})
    assert env.get_attr("config", indices=[1])[0]["seed"] == 1
    model = PPO("MlpPolicy", VecNormalize(env), n_steps=32, batch_size=32, device="cpu").learn(200)
    assert model.ep_info_buffer and all(0 < info["l"] <= 30 for info in model.ep_info_buffer)
    env.reset()
    infos = env.step(np.zeros((N_ENVS, 3), np.float32))[3]
    assert all("x_position" in info and "env_id" not in info and "players" not in info for info in infos)


def test_envpool_is_a_vector_environment_of_gymnasium_too() -> None:
    envs = pool("CartPole-v1", max_episode_steps=12)
    if not isinstance(envs, VectorEnv):
        pytest.skip("EnvPool before 1.2")
    actions = np.random.default_rng(0).integers(0, 2, (100, N_ENVS))
    check_same(play(GymnasiumVecEnv(envs), actions), play(EnvPoolVecEnv(pool("CartPole-v1", max_episode_steps=12)), actions))


def test_envpool_of_another_kind_is_refused() -> None:
    envpool = pytest.importorskip("envpool")
    with pytest.raises(ValueError, match='env_type="gymnasium"'):
        EnvPoolVecEnv(envpool.make("CartPole-v1", env_type="dm", num_envs=2))
    with pytest.raises(ValueError, match="batch_size=3, got 2"):
        EnvPoolVecEnv(pool("CartPole-v1", batch_size=2))


# Atari of ale-py


def test_atari_plays_the_same_in_each_mode() -> None:
    vector_env = pytest.importorskip("ale_py.vector_env")
    actions = np.random.default_rng(0).integers(0, 6, (90, N_ENVS))
    played = []
    for mode in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP):
        env = GymnasiumVecEnv(vector_env.AtariVectorEnv("pong", N_ENVS, max_num_frames_per_episode=100, autoreset_mode=mode))
        env.seed(3)
        played.append(play(env, actions))
        assert not env.has_dead_steps
        assert env.observation_space.shape == (4, 84, 84) and "lives" in env.step(actions[0])[3][0]
    check_same(*played)
    assert sum(step[4] for step in played[0][0]) >= 3
