"""What callbacks that were written for A2C and PPO read and call has its meaning, and costs nobody else."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import A2C
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback, EveryNTimesteps
from stable_baselines3.common.logger import HParam
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_reinforce import REINFORCE
from sb3_reinforce.rollout import callback_locals
from tests.helpers.environments import Scripted, vec

ACTIONS: dict[str, spaces.Space] = {
    "Discrete": spaces.Discrete(3),
    "Box": spaces.Box(-1, 1, (2,)),
    "matrix": spaces.Box(-1, 1, (2, 2)),
    "MultiDiscrete": spaces.MultiDiscrete([2, 3]),
    "MultiBinary": spaces.MultiBinary(3),
}


class Own(ActorCriticPolicy):
    def forward(self, obs: th.Tensor, deterministic: bool = False) -> Any:
        return super().forward(obs, deterministic)


def ramp(timestep: int) -> float:
    return timestep * timestep - 3.0


def make(cls: Any = REINFORCE, policy: Any = "MlpPolicy", space: spaces.Space | None = None, **kwargs: Any) -> Any:
    envs = [Scripted((5,), action_space=space, reward=ramp) for _ in range(2)]
    arguments: dict[str, Any] = {"n_steps": 10, "seed": 0, "device": "cpu", "policy_kwargs": {"net_arch": [8]}, **kwargs}
    return cls(policy, vec(*envs), **arguments)


class Reads(BaseCallback):
    """Checks what it reads at each step, and after the rollout, against the policy."""

    def _on_training_start(self) -> None:
        self.n_checked = 0
        assert "values" not in self.locals and self.locals.get("values") is None
        with pytest.raises(KeyError):
            self.locals["values"]

    def _on_step(self) -> bool:
        policy, obs = self.model.policy, self.locals["obs_tensor"]
        assert isinstance(policy, ActorCriticPolicy)
        assert th.equal(obs, th.as_tensor(self.model._last_obs))
        assert "values" in self.locals and "log_probs" in self.locals
        with th.no_grad():
            th.testing.assert_close(self.locals["values"], policy.predict_values(obs))
            actions = th.as_tensor(np.asarray(self.locals["actions"]))
            flat = actions.flatten().long() if isinstance(policy.action_space, spaces.Discrete) else actions.flatten(1)
            expected = policy.get_distribution(obs).log_prob(flat)
        th.testing.assert_close(self.locals["log_probs"], expected)
        assert self.locals["values"].shape == (2, 1) and self.locals.get("log_probs").shape == (2,)
        assert not self.locals["values"].requires_grad
        assert self.locals["n_steps"] == (self.n_calls - 1) % 10
        self.n_checked += 1
        return True

    def _on_rollout_end(self) -> None:
        policy, new_obs = self.model.policy, self.locals["new_obs"]
        assert isinstance(policy, ActorCriticPolicy)
        with th.no_grad():
            th.testing.assert_close(self.locals["values"], policy.predict_values(th.as_tensor(new_obs)))
        assert self.locals["n_steps"] == 10


@pytest.mark.parametrize(
    "wrap",
    [lambda callback: callback, lambda c: [c], lambda c: CallbackList([CallbackList([c])])],
    ids=["alone", "in a list", "nested"],
)
def test_callbacks_read_what_a2c_gives_them(wrap: Any) -> None:
    for cls in (A2C, REINFORCE):
        callback = Reads()
        make(cls).learn(60, wrap(callback))
        assert callback.n_checked == 30


@pytest.mark.parametrize("policy", ["MlpPolicy", Own])
@pytest.mark.parametrize("space", ACTIONS)
def test_values_and_log_probabilities_are_the_policys_for_every_kind_of_action(space: str, policy: Any) -> None:
    callback = Reads()
    make(policy=policy, space=ACTIONS[space]).learn(60, callback)
    assert callback.n_checked == 30


def test_reading_changes_nothing_of_the_training() -> None:
    read, alone = make().learn(60, Reads()), make().learn(60)
    assert all(th.equal(a, b) for a, b in zip(read.policy.parameters(), alone.policy.parameters(), strict=True))


def test_children_of_event_callbacks_and_of_a_users_own_read_the_same() -> None:
    class Holds(BaseCallback):
        """A callback that hands its variables on by itself."""

        def __init__(self, child: BaseCallback):
            super().__init__()
            self.child = child

        def _init_callback(self) -> None:
            self.child.init_callback(self.model)

        def _on_training_start(self) -> None:
            self.child.on_training_start(self.locals, self.globals)

        def update_child_locals(self, locals_: dict[str, Any]) -> None:
            self.child.update_locals(locals_)

        def _on_step(self) -> bool:
            return self.child.on_step()

    for outer in (lambda child: EveryNTimesteps(2, child), Holds):
        child = Reads()
        make().learn(60, outer(child))
        assert child.n_checked == 30


def test_who_reads_nothing_pays_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise AssertionError("computed for nobody")

    class ReadsTheRest(BaseCallback):
        def _on_step(self) -> bool:
            return len(self.locals["infos"]) == 2 and self.locals["rewards"].shape == (2,)

    monkeypatch.setattr(callback_locals.RolloutLocals, "_compute", fail)
    evaluation = EvalCallback(DummyVecEnv([lambda: Monitor(Scripted((5,)))]), eval_freq=5, n_eval_episodes=1, verbose=0)
    model = make().learn(60, [ReadsTheRest(), evaluation, lambda locals_, globals_: bool(locals_["dones"].size)])
    assert model.num_timesteps == 60


def test_a_function_as_callback_reads_them_too() -> None:
    seen = []
    make().learn(20, lambda locals_, globals_: seen.append(locals_["values"].mean().item()) or True)
    assert len(seen) == 10


# Rewards that a callback changes


class Bonus(BaseCallback):
    """Adds to the rewards at the end of a rollout, by SB3's own recipe."""

    def __init__(self, bonus: float, replace: bool = False):
        super().__init__()
        self.bonus, self.replace = bonus, replace

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        buffer, policy = self.model.rollout_buffer, self.model.policy
        if self.replace:
            buffer.rewards = buffer.rewards + self.bonus
        else:
            buffer.rewards += self.bonus
        last_values = policy.predict_values(policy.obs_to_tensor(self.locals["new_obs"])[0]).detach()
        buffer.compute_returns_and_advantage(last_values=last_values, dones=self.locals["dones"])


def half(returns: np.ndarray, timesteps: np.ndarray, episode_ids: np.ndarray) -> np.ndarray:
    return 0.5 * returns


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"gae_lambda": 0.8},
        {"complete_episodes": False},
        {"complete_episodes": False, "gae_lambda": 0.8, "n_steps": 7},
        {"baseline": None},
        {"baseline": "leave_one_out"},
        {"baseline": "linear"},
        {"baseline": "mean", "reward_to_go": False},
        {"reward_to_go": False},
        {"baseline": half},
        {"horizon": 3},
    ],
    ids=lambda kwargs: ", ".join(f"{name}={getattr(value, '__name__', value)}" for name, value in kwargs.items()) or "{}",
)
@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize("replace", [False, True])
@pytest.mark.filterwarnings("ignore:An episode was cut")
def test_a_bonus_that_a_callback_adds_is_learnt_from_as_if_the_environment_had_paid_it(
    kwargs: dict[str, Any], truncated: bool, replace: bool
) -> None:
    def trained(bonus: float, callback: BaseCallback | None) -> Any:
        envs = [Scripted((5, 3), truncated=truncated, reward=lambda timestep: ramp(timestep) + bonus) for _ in range(2)]
        arguments = {"n_steps": 10, "normalize_advantage": False, **kwargs}
        return REINFORCE("MlpPolicy", vec(*envs), seed=0, device="cpu", **arguments).learn(60, callback)

    paid, added = trained(2.0, None), trained(0.0, Bonus(2.0, replace))
    for name in ("rewards", "returns", "advantages"):
        own, others = getattr(added.rollout_buffer, name), getattr(paid.rollout_buffer, name)
        np.testing.assert_allclose(own, others, rtol=1e-5, atol=1e-5)
    for own, others in zip(added.policy.parameters(), paid.policy.parameters(), strict=True):
        th.testing.assert_close(own, others, rtol=1e-4, atol=1e-5)


def test_values_of_the_wrong_number_of_environments_are_refused() -> None:
    class Wrong(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            self.model.rollout_buffer.compute_returns_and_advantage(th.zeros(3), np.zeros(2))

    with pytest.raises(ValueError, match=r"`last_values` must hold one number for each of the 2 environments, got .*\(3,\)"):
        make(complete_episodes=False, n_steps=7).learn(20, Wrong())


# SB3's recipe for hyperparameters


class HParams(BaseCallback):
    def _on_training_start(self) -> None:
        hparams = {"learning rate": float(self.model.learning_rate), "gamma": self.model.gamma}
        self.logger.record("hparams", HParam(hparams, {"train/value_loss": 0.0}), exclude=("stdout", "log", "json", "csv"))

    def _on_step(self) -> bool:
        return True


def test_the_default_learning_rate_is_a_number_that_tensorboard_takes(tmp_path: Any) -> None:
    model = make(tensorboard_log=str(tmp_path)).learn(20, HParams())
    assert isinstance(model.learning_rate, float)
    assert list(tmp_path.glob("REINFORCE_1/events*"))


class Numbers(gym.Env):
    """A bandit of one step whose two arms differ little: what is learnt shows each difference between two trainings."""

    observation_space, action_space = spaces.Box(-1, 1, (1,)), spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return np.ones(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.ones(1, np.float32), float(action), True, False, {}


@pytest.mark.parametrize("kwargs", [{}, {"natural_gradient": True}, {"baseline": "leave_one_out"}], ids=str)
def test_by_default_it_learns_alike_however_the_run_is_cut_into_calls(kwargs: dict[str, Any]) -> None:
    def trained(n_calls: int) -> list[th.Tensor]:
        model = REINFORCE("MlpPolicy", Numbers(), n_steps=20, seed=0, device="cpu", **kwargs)
        for _ in range(n_calls):
            model.learn(120 // n_calls, reset_num_timesteps=False)
        assert model.num_timesteps == 120
        return list(model.policy.parameters())

    whole = trained(1)
    for n_calls in (2, 6):
        assert all(th.equal(a, b) for a, b in zip(whole, trained(n_calls), strict=True))
