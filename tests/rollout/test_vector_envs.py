"""REINFORCE in vector environments of Gymnasium, whose dead steps are no part of any episode."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import batch_space
from sb3_contrib.common.maskable.evaluation import evaluate_policy as evaluate_masked_policy
from stable_baselines3 import A2C
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from sb3_reinforce import REINFORCE, MaskableREINFORCE, RecurrentREINFORCE
from sb3_reinforce.envs import GymnasiumVecEnv
from sb3_reinforce.rollout.episode_infos import telling_infos
from tests.helpers.environments import Scripted
from tests.helpers.tiny_mdp import TinyEnv, collect_estimates, deviation, exact_gradient, make_model

GAMMA = 0.9


class Native(gym.vector.VectorEnv):
    """Like native ones: an environment is reset in the step after its episode's end, and there is no partial reset."""

    def __init__(self, makers: list[Callable[[], gym.Env[Any, Any]]]):
        self.envs = [make() for make in makers]
        self.num_envs = len(self.envs)
        self.single_observation_space, self.single_action_space = self.envs[0].observation_space, self.envs[0].action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
        self.ended = np.zeros(self.num_envs, bool)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        seeds = [None] * self.num_envs if seed is None else [seed + i for i in range(self.num_envs)]
        self.ended[:] = False
        return np.stack([env.reset(seed=own)[0] for env, own in zip(self.envs, seeds, strict=True)]), {}

    def step(self, actions: Any) -> Any:
        obs, rewards, terminated, truncated = [], np.zeros(self.num_envs), *np.zeros((2, self.num_envs), bool)
        for i, (env, action) in enumerate(zip(self.envs, actions, strict=True)):
            if self.ended[i]:
                obs.append(env.reset()[0])
                continue
            seen, rewards[i], terminated[i], truncated[i], _ = env.step(action)
            obs.append(seen)
        self.ended = terminated | truncated
        return np.stack(obs), rewards, terminated, truncated, {}


def scripted(truncated: bool = False) -> Callable[[], Scripted]:
    return lambda: Scripted((3, 5, 2), truncated=truncated, reward=lambda timestep: float(timestep + 1))


@pytest.mark.parametrize("arguments", [{"n_steps": 7}, {"n_episodes": 2}, {"n_steps": 8, "complete_episodes": False}], ids=str)
@pytest.mark.parametrize("truncated", [False, True], ids=["terminated", "truncated"])
def test_dead_steps_are_not_recorded(arguments: dict[str, Any], truncated: bool) -> None:
    env = Native([scripted(truncated)] * 3)
    model = REINFORCE("MlpPolicy", env, seed=0, **arguments)
    for _ in range(4):
        model.learn(1, reset_num_timesteps=False)
        buffer = model.rollout_buffer
        # Each timestep has its reward, and each episode begins with the observation of a reset
        np.testing.assert_array_equal(buffer.rewards, buffer.timesteps + 1)
        np.testing.assert_array_equal(buffer.observations[:, 1], buffer.timesteps)
        np.testing.assert_array_equal(buffer.episode_starts, buffer.timesteps == 0)
        if model.complete_episodes:
            assert set(buffer.episodes.lengths) <= {2, 3, 5}


@pytest.mark.parametrize("n_steps", [1, 4, 5])
def test_a_rollout_of_fixed_length_may_end_with_dead_steps(n_steps: int) -> None:
    one_and_two = partial(Scripted, (1, 2), reward=lambda timestep: float(timestep + 1))
    for makers in ([scripted(), one_and_two], [one_and_two]):
        model = REINFORCE("MlpPolicy", Native(makers), n_steps=n_steps, complete_episodes=False, seed=0)
        n_recorded = 0
        for _ in range(8):
            model.learn(1, reset_num_timesteps=False)
            buffer = model.rollout_buffer
            np.testing.assert_array_equal(buffer.rewards, buffer.timesteps + 1)
            np.testing.assert_array_equal(buffer.observations[:, 1], buffer.timesteps)
            assert buffer.size() == buffer.episodes.n_timesteps > 0
            n_recorded += buffer.size()
        assert n_recorded < model.num_timesteps


def test_a_dead_step_is_not_cut_at_the_horizon() -> None:
    model = REINFORCE("MlpPolicy", Native([partial(Scripted, (1,))] * 3), n_episodes=2, horizon=1, seed=0).learn(20)
    assert model.rollout_buffer.episodes.lengths.tolist() == [1] * 6


def test_what_a_callback_has_seen_of_a_step_stays_as_it_was() -> None:
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    model = REINFORCE("MlpPolicy", Native([scripted()] * 2), n_episodes=3, seed=0)
    model.learn(1, callback=lambda locals_, _: seen.append((locals_["dones"], locals_["dones"].copy())) or True)
    assert len(seen) > 10 and all((kept == copied).all() for kept, copied in seen)


@pytest.mark.parametrize("mode", ["vector_entry_point", "sync"])
def test_episodes_that_are_cut_at_the_horizon_are_logged(mode: str) -> None:
    env = gym.make_vec("CartPole-v1", num_envs=8, vectorization_mode=mode)
    with pytest.warns(UserWarning, match="An episode was cut"):
        model = REINFORCE("MlpPolicy", env, n_episodes=1, horizon=12, seed=0).learn(50)
    episodes = [(info["r"], info["l"]) for info in model.ep_info_buffer or ()]
    assert sorted(length for _, length in episodes) == sorted(model.rollout_buffer.episodes.lengths)
    assert (12.0, 12) in episodes and all(total == length for total, length in episodes)


def test_cut_episodes_are_not_logged_where_a_monitor_inside_counts_others() -> None:
    env = SyncVectorEnv([lambda: gym.wrappers.RecordEpisodeStatistics(scripted()())] * 2)
    with pytest.warns(UserWarning, match="An episode was cut"):
        model = REINFORCE("MlpPolicy", env, n_episodes=1, horizon=1, seed=0).learn(2)
    assert not model.ep_info_buffer


def test_only_the_limit_of_a_time_limit_is_read() -> None:
    class Outer(gym.Wrapper[Any, Any, Any, Any]):
        _max_episode_steps = 2
        rewards = (7.0,)

    env = SyncVectorEnv([lambda: Outer(gym.wrappers.TimeLimit(scripted()(), 50))] * 2)
    model = REINFORCE("MlpPolicy", env, n_episodes=2, seed=0).learn(1)
    assert model.rollout_buffer.episodes.lengths.tolist() == [3, 5, 3, 5]


class Dwindling(Scripted):
    """Each step forbids one more action, the last one the last."""

    def __init__(self) -> None:
        super().__init__((3,), action_space=gym.spaces.Discrete(3))

    def action_masks(self) -> np.ndarray:
        """Which actions are allowed."""
        return np.arange(3) >= self.timestep


class NativeMasks(Native):
    def action_masks(self) -> np.ndarray:
        """Which actions are allowed in each environment."""
        return np.stack([env.action_masks() for env in self.envs])  # type: ignore[attr-defined]


def test_no_action_need_be_allowed_where_an_episode_has_ended() -> None:
    model = MaskableREINFORCE("MlpPolicy", NativeMasks([Dwindling] * 2), n_episodes=2, seed=0).learn(1)
    buffer = model.rollout_buffer
    np.testing.assert_array_equal(buffer.extras["action_masks"], np.arange(3) >= buffer.timesteps[:, None])
    assert evaluate_masked_policy(model, model.env, n_eval_episodes=4, warn=False)[0] == 3.0


def test_groups_need_a_seed_for_each_environment() -> None:
    env = gym.make_vec("CartPole-v1", num_envs=4, vectorization_mode="vector_entry_point")
    with pytest.raises(ValueError, match=r"does not take a seed for each of its 4 environments.*, got"):
        REINFORCE("MlpPolicy", env, n_episodes=1, group_size=2, seed=0).learn(1)


def test_a_native_environment_gives_the_episodes_of_the_same_single_ones() -> None:
    def lengths(env: Any) -> list[list[int]]:
        model = REINFORCE("MlpPolicy", env, n_episodes=3, seed=0)
        found = []
        for _ in range(3):
            model.learn(1, reset_num_timesteps=False)
            found.append(model.rollout_buffer.episodes.lengths.tolist())
        return found

    assert lengths(Native([scripted()] * 2))[0] == lengths(DummyVecEnv([scripted()] * 2))[0]


@pytest.mark.parametrize("baseline", [None, "leave_one_out", "value"])
@pytest.mark.parametrize("rollout", [{"n_episodes": 2, "average_over": "episodes"}, {"n_steps": 4}], ids=str)
def test_the_estimate_is_unbiased_with_dead_steps(baseline: str | None, rollout: dict[str, Any]) -> None:
    arguments = {"bootstrap_on_truncation": False, "discount_state_distribution": True, "gamma": GAMMA, **rollout}
    env: Any = GymnasiumVecEnv(Native([TinyEnv] * 3))
    model = make_model(env=env, baseline=baseline, **arguments)
    found = deviation(collect_estimates(model, 400), exact_gradient(GAMMA), model.average_over)
    assert found.relative_error < 0.1
    assert found.z < 4.5


def test_the_infos_that_are_logged_are_those_of_recorded_steps_in_which_an_episode_ends() -> None:
    rng, n_found = np.random.default_rng(0), 0
    kinds: list[dict[str, Any]] = [{}, {"dead_step": True}, {"episode": {"r": 1.0, "l": 2}}, {"TimeLimit.truncated": False}]
    for _ in range(300):
        infos = [kinds[kind] for kind in rng.choice(4, 5, p=[0.7, 0.1, 0.1, 0.1])]
        dones, recording = rng.random(5) < 0.05, np.flatnonzero(rng.random(5) < 0.7)
        ends = dones.any() or any("episode" in info for info in infos)
        expected = [i for i in recording if infos[i]] if ends else []
        assert telling_infos(infos, dones, recording) == expected
        n_found += len(expected)
    assert n_found > 50


def test_a_vector_environment_is_taken_as_it_is_and_learned_in(tmp_path: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*Monitor.*")
        env = gym.make_vec("CartPole-v1", num_envs=16, vectorization_mode="vector_entry_point")
        model = REINFORCE("MlpPolicy", env, seed=0).learn(20_000)
        assert model.rollout_buffer.rewards.all()  # a dead step has none
        model.save(tmp_path / "model")
        again = REINFORCE.load(tmp_path / "model", gym.make_vec("CartPole-v1", num_envs=16, vectorization_mode="sync"))
        again.learn(2_000)
    mean, _ = evaluate_policy(model, gym.make("CartPole-v1"), n_eval_episodes=5, warn=False)
    assert mean > 60
    other = GymnasiumVecEnv(gym.make_vec("CartPole-v1", num_envs=2, vectorization_mode="vector_entry_point"))
    with pytest.warns(UserWarning, match="dead step"):
        A2C("MlpPolicy", other).learn(200)


@pytest.mark.parametrize("algorithm, policy", [(REINFORCE, "MlpPolicy"), (RecurrentREINFORCE, "MlpLstmPolicy")])
def test_dead_steps_under_wrappers_and_with_memory(algorithm: Any, policy: str) -> None:
    env = VecNormalize(GymnasiumVecEnv(Native([scripted()] * 2)), norm_reward=False)
    model = algorithm(policy, env, n_episodes=2, seed=0)
    log_probs = []
    for _ in range(2):
        model.learn(1, reset_num_timesteps=False, callback=lambda locals_, _: log_probs.append(locals_["log_probs"]) or True)
    np.testing.assert_array_equal(model.rollout_buffer.rewards, model.rollout_buffer.timesteps + 1)


def test_groups_start_alike_in_a_vector_environment() -> None:
    class Start(gym.Env[np.ndarray, int]):
        observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        action_space = gym.spaces.Discrete(2)

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
            super().reset(seed=seed)
            return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

        def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
            return np.zeros(2, np.float32), float(action), True, False, {}

    model = REINFORCE("MlpPolicy", SyncVectorEnv([Start] * 4), n_episodes=1, group_size=2, baseline="leave_one_out", seed=0)
    model.learn(8)
    first = th.as_tensor(model.rollout_buffer.observations)
    assert th.equal(first[0], first[1]) and th.equal(first[2], first[3]) and not th.equal(first[0], first[2])
