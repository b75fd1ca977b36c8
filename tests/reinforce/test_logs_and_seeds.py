"""What is logged, and what a seed fixes."""

import copy
import io
import pathlib
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.utils import set_random_seed

from sb3_reinforce import REINFORCE
from tests.helpers.environments import Scripted
from tests.reinforce.interface import CONTINUOUS, equal, make, ramp, read_csv, weights

ROLLOUT = {f"rollout/{name}" for name in ("ep_rew_mean", "ep_len_mean", "n_episodes", "n_steps", "discarded_fraction")}


TIME = {f"time/{name}" for name in ("fps", "iterations", "time_elapsed", "total_timesteps")}


TRAIN = {f"train/{name}" for name in ("policy_loss", "entropy_loss", "learning_rate", "n_updates", "grad_norm", "approx_kl")}


CRITIC = {f"train/{name}" for name in ("value_loss", "explained_variance")}


@pytest.mark.parametrize(
    "kwargs, keys",
    [
        ({}, CRITIC),
        ({"critic_learning_rate": 1e-2}, CRITIC | {"train/critic_learning_rate"}),
        ({"baseline": "mean"}, set()),
        ({"baseline": None}, set()),
        ({"complete_episodes": False}, CRITIC),
        ({"rollout_buffer_class": RolloutBuffer, "complete_episodes": False}, CRITIC),
    ],
    ids=["value", "rate of the critic", "mean", "no baseline", "fixed length", "buffer of SB3's"],
)
@pytest.mark.parametrize("continuous", [True, False])
def test_the_keys_of_the_log_are_those_of_sb3_and_a_few_more(
    kwargs: dict[str, Any], keys: set[str], continuous: bool, tmp_path: pathlib.Path
) -> None:
    env = Scripted((4,), action_space=CONTINUOUS if continuous else None, reward=ramp)
    model = make(env, n_steps=8, **kwargs)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(24)
    rows = read_csv(tmp_path)
    assert len(rows) == 3
    std = {"train/std"} if continuous else set()
    assert set(rows[-1]) == ROLLOUT | TIME | TRAIN | keys | std
    values = {key: float(value) for key, value in rows[-1].items()}
    assert all(np.isfinite(value) for value in values.values())
    assert (values["rollout/ep_rew_mean"], values["rollout/ep_len_mean"]) == (6.0, 4.0)
    assert (values["rollout/n_episodes"], values["rollout/n_steps"], values["rollout/discarded_fraction"]) == (2, 8, 0)
    assert (values["train/n_updates"], values["time/iterations"], values["time/total_timesteps"]) == (2, 3, 24)
    assert values["train/approx_kl"] > 0 and values["train/grad_norm"] > 0


def test_diagnostics_are_what_they_are_called() -> None:
    model = make(Scripted((40,), action_space=CONTINUOUS, reward=ramp), n_steps=40, ent_coef=0.1, learning_rate=1e-2)
    captured: dict[str, Any] = {}

    class Before(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            captured["policy"] = copy.deepcopy(model.policy)

    model.learn(80, Before())  # a new critic says 0, but begins at the mean
    logged, buffer, old = model.logger.name_to_value, model.rollout_buffer, captured["policy"]
    observations, actions = th.as_tensor(buffer.observations), th.as_tensor(buffer.actions)
    with th.no_grad():
        values, log_prob, entropy = old.evaluate_actions(observations, actions)
        log_ratio = model.policy.evaluate_actions(observations, actions)[1] - log_prob
    advantages = (buffer.advantages - buffer.advantages.mean()) / buffer.advantages.std(ddof=1)
    values = values.flatten().numpy()
    assert logged["train/policy_loss"] == pytest.approx(-(log_prob.numpy() * advantages).mean(), abs=1e-4)
    assert logged["train/entropy_loss"] == pytest.approx(-float(entropy.mean()), rel=1e-4)
    assert logged["train/value_loss"] == pytest.approx(((buffer.returns - values) ** 2).mean(), rel=1e-4)
    assert logged["train/explained_variance"] == pytest.approx(
        1 - np.var(buffer.returns - values) / np.var(buffer.returns), abs=1e-4
    )
    assert logged["train/std"] == pytest.approx(model.policy.log_std.exp().mean().item())
    # After the step, not before it
    assert logged["train/approx_kl"] == pytest.approx(float((log_ratio.exp() - 1 - log_ratio).mean()), rel=1e-3)
    assert logged["train/approx_kl"] > 1e-6


def test_tensorboard_gets_the_same_keys(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = make(Scripted((4,), reward=ramp), n_steps=8, tensorboard_log=str(tmp_path))
    model.learn(24)
    model.learn(16, reset_num_timesteps=False)
    model.learn(8, tb_log_name="other")
    assert {path.name for path in tmp_path.iterdir()} == {"REINFORCE_1", "other_1"}
    accumulator = EventAccumulator(str(tmp_path / "REINFORCE_1"))
    accumulator.Reload()
    hidden = {"time/iterations", "time/time_elapsed", "time/total_timesteps", "train/n_updates"}
    assert set(accumulator.Tags()["scalars"]) == (ROLLOUT | TIME | TRAIN | CRITIC) - hidden
    assert [event.step for event in accumulator.Scalars("rollout/ep_rew_mean")] == [8, 16, 24, 32, 40]
    assert {event.value for event in accumulator.Scalars("rollout/ep_rew_mean")} == {6.0}


def test_the_log_interval_counts_rollouts_and_none_is_never(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make(Scripted((4,)), n_steps=8)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(48, log_interval=2)
    assert [int(row["time/iterations"]) for row in read_csv(tmp_path)] == [2, 4, 6]
    make(Scripted((4,)), n_steps=8, verbose=1).learn(48, log_interval=None)  # type: ignore[arg-type]
    assert "ep_rew_mean" not in capsys.readouterr().out


def test_a_verbose_model_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    make(Scripted((4,)), n_steps=8, verbose=1).learn(16)
    output = capsys.readouterr().out
    assert "ep_rew_mean" in output and "discarded_fraction" in output
    make(Scripted((4,)), n_steps=8).learn(16)
    assert capsys.readouterr().out == ""


def pendulum(n_envs: int) -> Any:
    return make_vec_env(lambda: TimeLimit(gym.make("Pendulum-v1").unwrapped, 20), n_envs)


SEEDED: dict[str, Callable[[int], REINFORCE]] = {
    "Discrete": lambda seed: make(seed=seed),
    "Discrete, several environments": lambda seed: make(make_vec_env("CartPole-v1", 3), seed=seed),
    "Box": lambda seed: make(pendulum(1), seed=seed),
    "Box, several environments": lambda seed: make(pendulum(3), seed=seed),
    "gSDE": lambda seed: make(pendulum(2), use_sde=True, sde_sample_freq=4, seed=seed),
    "leave-one-out": lambda seed: make(make_vec_env("CartPole-v1", 2), baseline="leave_one_out", seed=seed),
    "fixed length": lambda seed: make(make_vec_env("CartPole-v1", 2), complete_episodes=False, seed=seed),
}


@pytest.mark.parametrize("name", SEEDED)
def test_the_same_seed_gives_the_same_weights_to_the_last_bit_and_another_seed_others(name: str) -> None:
    first, second, other = (weights(SEEDED[name](seed).learn(150)) for seed in (1, 1, 2))
    assert equal(first, second)
    assert not equal(first, other)


@pytest.mark.parametrize("name", ["Discrete", "Box, several environments"])
def test_the_same_seed_gives_the_same_weights_after_loading_too(name: str) -> None:
    model = SEEDED[name](1).learn(100)
    stream = io.BytesIO()
    model.save(stream)

    def continued(**kwargs: Any) -> list[th.Tensor]:
        stream.seek(0)
        env = SEEDED[name](1).get_env()
        return weights(REINFORCE.load(stream, env=env, device="cpu", **kwargs).learn(100, reset_num_timesteps=False))

    first = continued()
    assert equal(first, continued())
    assert not equal(first, continued(seed=5))


def test_a_model_without_a_seed_follows_the_global_one() -> None:
    def learnt(seed: int) -> list[th.Tensor]:
        set_random_seed(seed)
        return weights(make(Scripted((5,), reward=ramp), seed=None).learn(64))

    assert equal(learnt(3), learnt(3))
    assert not equal(learnt(3), learnt(4))


def test_models_without_a_seed_differ() -> None:
    assert not equal(weights(make(seed=None).learn(64)), weights(make(seed=None).learn(64)))


def test_the_seed_can_be_set_later() -> None:
    model = make(Scripted((5,), CONTINUOUS, reward=ramp)).learn(64)
    parameters = copy.deepcopy(model.get_parameters())

    def continued() -> list[th.Tensor]:
        model.set_parameters(copy.deepcopy(parameters), device="cpu")
        model.set_random_seed(7)
        return weights(model.learn(64))

    assert equal(continued(), continued())


def test_evaluation_in_between_does_not_change_what_is_learnt() -> None:
    def learnt(callback: BaseCallback | None) -> list[th.Tensor]:
        return weights(make(Scripted((5,), reward=ramp), n_critic_updates=0, n_steps=20).learn(60, callback))

    # The fast path draws from a generator of its own, which a deterministic evaluation cannot disturb
    evaluation = EvalCallback(Monitor(Scripted((5,), reward=ramp)), eval_freq=7, verbose=0)
    assert equal(learnt(None), learnt(evaluation))
