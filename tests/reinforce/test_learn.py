"""What users of SB3 expect of ``learn``: budgets, resuming, learning rates, devices."""

import inspect
import io
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from stable_baselines3 import A2C
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.utils import LinearSchedule

from sb3_reinforce import REINFORCE
from tests.helpers.environments import Scripted, vec
from tests.helpers.plain import PLAIN
from tests.reinforce.interface import CONTINUOUS, SMALL, equal, make, ramp, weights


def test_the_algorithm_is_one_of_sb3s_on_policy_algorithms() -> None:
    assert issubclass(REINFORCE, OnPolicyAlgorithm)


def test_the_defaults_of_learn_are_those_that_are_promised() -> None:
    defaults = {name: p.default for name, p in inspect.signature(REINFORCE.learn).parameters.items() if name != "self"}
    assert defaults == {
        "total_timesteps": 100_000,
        "callback": None,
        "log_interval": 1,
        "tb_log_name": "REINFORCE",
        "reset_num_timesteps": True,
        "progress_bar": False,
    }
    assert list(defaults) == [name for name in inspect.signature(A2C.learn).parameters if name != "self"]


def test_learn_without_arguments_is_a_whole_program() -> None:
    env = vec(*(Scripted((500,), reward=ramp) for _ in range(50)))
    model = REINFORCE("MlpPolicy", env, n_episodes=1, policy_kwargs=SMALL, device="cpu")
    assert model.learn() is model
    assert model.num_timesteps == 100_000


def test_attributes_have_the_names_of_the_arguments() -> None:
    model = make(critic_learning_rate=0.1, horizon=100, n_episodes=3)
    special = {"policy", "env", "_init_setup_model", "rollout_buffer_kwargs", "policy_kwargs", "stats_window_size"}
    given = {
        **PLAIN,
        "learning_rate": 1e-2,
        "n_steps": 32,
        "seed": 0,
        "critic_learning_rate": 0.1,
        "horizon": 100,
        "n_episodes": 3,
        "device": th.device("cpu"),
    }
    for name, parameter in inspect.signature(REINFORCE).parameters.items():
        if name not in special and name != "rollout_buffer_class":
            assert getattr(model, name) == given.get(name, parameter.default), name


def test_learning_twice_counts_from_zero_again_or_goes_on() -> None:
    model = make(Scripted((4,), reward=ramp), n_steps=8)
    assert model.learn(16).num_timesteps == 16
    assert model.learn(24).num_timesteps == 24
    assert model._n_updates == 5
    assert model.learn(16, reset_num_timesteps=False).num_timesteps == 40
    assert model._n_updates == 7


def test_learning_on_keeps_the_statistics_of_the_episodes() -> None:
    model = make(Scripted((4,)), n_steps=8).learn(16)
    model.learn(8, reset_num_timesteps=False)
    assert model.ep_info_buffer is not None and len(model.ep_info_buffer) == 6
    model.learn(8)
    assert len(model.ep_info_buffer) == 2


def test_a_budget_of_one_timestep_is_one_update() -> None:
    model = make(Scripted((4,), reward=ramp), n_steps=8).learn(1)
    assert (model.num_timesteps, model._n_updates) == (8, 1)


def test_the_environment_can_be_exchanged() -> None:
    model = make(Scripted((4,), reward=ramp), n_steps=8).learn(8)
    other = Scripted((6,), reward=ramp)
    model.set_env(Monitor(other))
    model.learn(12, reset_num_timesteps=False)
    assert model.num_timesteps == 20
    assert other.n_resets == 3
    assert model.rollout_buffer.episodes.lengths.tolist() == [6, 6]  # type: ignore[attr-defined]


def test_the_limit_of_an_exchanged_environment_counts() -> None:
    model = make(TimeLimit(Scripted((None,)), 4), n_steps=8).learn(8)
    model.set_env(TimeLimit(Scripted((None,)), 11))
    model.learn(8)
    assert model.rollout_buffer.episodes.lengths.tolist() == [11]  # type: ignore[attr-defined]


def test_an_environment_that_does_not_fit_is_refused_as_sb3_does_it() -> None:
    model = make(Scripted())
    with pytest.raises(AssertionError, match="number of environments"):
        model.set_env(vec(Scripted(), Scripted()))
    with pytest.raises(ValueError, match="spaces do not match"):
        model.set_env(Scripted(action_space=spaces.Discrete(5)))


@pytest.mark.parametrize("critic_learning_rate", [None, 1e-2])
@pytest.mark.parametrize("baseline", ["value", "mean", None])
def test_the_optimizer_always_has_two_groups(baseline: str | None, critic_learning_rate: float | None) -> None:
    model = make(baseline=baseline, critic_learning_rate=critic_learning_rate)
    groups = model.policy.optimizer.param_groups
    assert [group["critic"] for group in groups] == [False, True]
    names = {parameter: name for name, parameter in model.policy.named_parameters()}
    assert all("value_net" in names[parameter] for parameter in groups[1]["params"])
    assert not any("value_net" in names[parameter] for parameter in groups[0]["params"])
    assert sum(len(group["params"]) for group in groups) == len(names)


@pytest.mark.parametrize(
    "critic",
    [None, 1e-2, LinearSchedule(2e-2, 0.0, 1.0), lambda progress: 0.5 * progress],
    ids=["none", "number", "schedule", "function"],
)
@pytest.mark.parametrize(
    "actor", [1e-3, LinearSchedule(1e-2, 0.0, 1.0), lambda progress: progress**2], ids=["number", "schedule", "function"]
)
def test_learning_rates_and_schedules_reach_the_optimizer_of_actor_and_critic(actor: Any, critic: Any) -> None:
    def rate(schedule: Any, progress: float) -> float:
        return schedule(progress) if callable(schedule) else schedule

    rates: list[tuple[float, float]] = []

    class Rates(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            actor_group, critic_group = self.model.policy.optimizer.param_groups  # type: ignore[union-attr]
            rates.append((actor_group["lr"], critic_group["lr"]))

    model = make(Scripted((5,), reward=ramp), n_steps=10, learning_rate=actor, critic_learning_rate=critic)
    model.learn(40, Rates())
    used_for_critic = actor if critic is None else critic
    expected = [(rate(actor, progress), rate(used_for_critic, progress)) for progress in (0.75, 0.5, 0.25)]
    np.testing.assert_allclose(rates[1:], expected)
    assert model.logger.name_to_value["train/learning_rate"] == pytest.approx(rate(actor, 0.0))
    if critic is not None:
        assert model.logger.name_to_value["train/critic_learning_rate"] == pytest.approx(rate(critic, 0.0))


@pytest.mark.parametrize("still", ["actor", "critic"])
def test_a_learning_rate_of_zero_stops_its_part_alone(still: str) -> None:
    rates = {"learning_rate": 0.0, "critic_learning_rate": 1e-2} if still == "actor" else {"critic_learning_rate": 0.0}
    model = make(Scripted((5,), reward=ramp), n_steps=10, **rates)
    before = {name: p.detach().clone() for name, p in model.policy.named_parameters()}
    model.learn(20)
    moved = {name for name, p in model.policy.named_parameters() if not th.equal(before[name], p)}
    assert moved
    assert all(("value_net" in name) == (still == "actor") for name in moved)


def test_an_mlp_on_a_gpu_is_warned_of_as_in_sb3(monkeypatch: pytest.MonkeyPatch) -> None:
    def on_gpu(policy: str, env: Any) -> REINFORCE:
        model = REINFORCE(policy, env, device="cpu", n_steps=4)
        monkeypatch.setattr(model, "device", th.device("cuda"))
        return model

    with pytest.warns(UserWarning, match=r"trying to run REINFORCE on the GPU.*MlpPolicy"):
        on_gpu("MlpPolicy", Scripted())._maybe_recommend_cpu()
    with pytest.warns(UserWarning) as caught:
        on_gpu("CnnPolicy", Scripted(observation_space=spaces.Box(0, 255, (36, 36, 1), np.uint8)))._maybe_recommend_cpu()
        on_gpu("MlpPolicy", Scripted())._maybe_recommend_cpu()
    assert len([warning for warning in caught if "on the GPU" in str(warning.message)]) == 1


@pytest.mark.skipif(not th.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("continuous", [True, False])
def test_a_model_learns_on_a_gpu_and_is_loaded_without_one(continuous: bool) -> None:
    env = vec(*(Scripted((4, 6), action_space=CONTINUOUS if continuous else None, reward=ramp) for _ in range(2)))
    with pytest.warns(UserWarning, match="on the GPU"):
        model = REINFORCE("MlpPolicy", env, n_steps=16, device="cuda", seed=0)
    before = weights(model)
    model.learn(64)
    assert not equal(before, weights(model))
    stream = io.BytesIO()
    model.save(stream)
    stream.seek(0)
    loaded = REINFORCE.load(stream, env=env, device="cpu")
    assert all(th.equal(a.cpu(), b) for a, b in zip(weights(model), weights(loaded), strict=True))
    loaded.learn(32)
