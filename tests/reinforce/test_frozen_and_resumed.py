"""Frozen parameters, schedules at the end of a run, and models that go on with other environments."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecEnvWrapper

from sb3_reinforce import REINFORCE
from tests.helpers.environments import Scripted, vec


class FrozenCritic(ActorCriticPolicy):
    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.mlp_extractor.value_net.requires_grad_(False)


class OwnEvaluation(ActorCriticPolicy):
    def evaluate_actions(self, obs: Any, actions: th.Tensor) -> Any:
        return super().evaluate_actions(obs, actions)


def moved(model: REINFORCE, total_timesteps: int = 200) -> set[str]:
    before = {name: weight.detach().clone() for name, weight in model.policy.named_parameters()}
    model.learn(total_timesteps)
    return {name for name, weight in model.policy.named_parameters() if not th.equal(weight, before[name])}


@pytest.mark.parametrize("optimizer", [th.optim.Adam, th.optim.AdamW])
def test_a_critic_that_a_policy_froze_stays_as_it_is(optimizer: type[th.optim.Optimizer]) -> None:
    model = REINFORCE(FrozenCritic, "CartPole-v1", n_steps=64, policy_kwargs={"optimizer_class": optimizer}, device="cpu")
    names = moved(model)
    assert "value_net.weight" in names and "action_net.weight" in names
    assert not any(name.startswith("mlp_extractor.value_net") for name in names)


@pytest.mark.parametrize("policy", ["MlpPolicy", OwnEvaluation])
@pytest.mark.parametrize("part", ["mlp_extractor.policy_net", "mlp_extractor.value_net", "value_net", "mlp_extractor"])
def test_what_is_frozen_later_stays_and_what_is_released_is_trained(policy: Any, part: str) -> None:
    model = REINFORCE(policy, "CartPole-v1", n_steps=64, seed=0, device="cpu")
    module = model.policy.get_submodule(part)
    module.requires_grad_(False)
    names = moved(model)
    assert names and not any(name.startswith(f"{part}.") for name in names)
    module.requires_grad_(True)
    assert any(name.startswith(f"{part}.") for name in moved(model))


def test_a_linear_schedule_is_never_negative() -> None:
    model = REINFORCE(
        "MlpPolicy", vec(Scripted((30,))), n_steps=30, learning_rate=lambda progress: 0.1 * progress, device="cpu"
    )
    model.learn(20)
    assert [group["lr"] for group in model.policy.optimizer.param_groups] == [0.0, 0.0]


@pytest.mark.parametrize("n_envs", [1, 3])
def test_a_model_of_fixed_length_rollouts_goes_on_with_another_number_of_environments(n_envs: int, tmp_path: Any) -> None:
    make_vec = lambda n: make_vec_env("CartPole-v1", n)  # noqa: E731
    REINFORCE("MlpPolicy", make_vec(2), complete_episodes=False, n_steps=16).learn(100).save(tmp_path / "model")
    model = REINFORCE.load(tmp_path / "model", env=make_vec(n_envs)).learn(100)
    assert model.num_timesteps >= 100


class IntegerDones(VecEnvWrapper):
    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        obs, rewards, dones, infos = self.venv.step_wait()
        return obs, rewards, dones.astype(np.int64), infos


def test_dones_that_are_integers_end_episodes_too() -> None:
    env = IntegerDones(vec(*(Scripted((8,), reward=lambda _: 1.0) for _ in range(2))))
    model = REINFORCE("MlpPolicy", env, complete_episodes=False, n_steps=16, gamma=1.0, device="cpu")
    with th.no_grad():
        model.policy.value_net.bias.fill_(100.0)
    model.learn(1)
    buffer: Any = model.rollout_buffer
    assert buffer.episodes.lengths.tolist() == [8] * 4
    np.testing.assert_allclose(buffer.returns.reshape(4, 8), np.tile(np.arange(8, 0, -1), (4, 1)))


class Joined(gym.Wrapper):
    """Three episodes of the wrapped environment make one of this."""

    def reset(self, **kwargs: Any) -> Any:
        self.n_played = 0
        return self.env.reset(**kwargs)

    def step(self, action: Any) -> Any:
        obs, reward, terminated, truncated, info = self.env.step(action)
        if terminated or truncated:
            self.n_played += 1
            if self.n_played < 3:
                obs, info = self.env.reset()
                terminated = truncated = False
        return obs, reward, terminated, truncated, info


def joined() -> gym.Env:
    return Joined(gym.wrappers.TimeLimit(Scripted((100,)), 10))


def test_an_episode_longer_than_the_limit_within_it_is_cut_with_a_warning() -> None:
    model = REINFORCE("MlpPolicy", vec(joined()), n_episodes=2, baseline="leave_one_out", device="cpu")
    with pytest.warns(UserWarning, match="horizon"):
        model.learn(10)
    assert model.only_earlier_episodes


def test_a_longer_horizon_records_it_whole() -> None:
    model = REINFORCE("MlpPolicy", vec(joined()), n_episodes=2, horizon=50, device="cpu")
    model.learn(10)
    buffer: Any = model.rollout_buffer
    assert buffer.episodes.lengths.tolist() == [30, 30]


def test_a_monitor_that_refuses_early_resets_is_refused_where_episodes_are_cut() -> None:
    from stable_baselines3.common.monitor import Monitor

    make: Callable[[], gym.Env] = lambda: Monitor(gym.make("CartPole-v1"), allow_early_resets=False)  # noqa: E731
    with pytest.raises(ValueError, match="allow_early_resets"):
        REINFORCE("MlpPolicy", make(), horizon=5, n_steps=32).learn(100)
    REINFORCE("MlpPolicy", make(), n_steps=32).learn(100)
