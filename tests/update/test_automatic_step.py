"""By default the policy takes natural steps if it has them, and else those of its optimizer."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn
from torch.distributions import Normal

from sb3_reinforce import REINFORCE
from tests.helpers.environments import Scripted, vec
from tests.update.natural import ACTIONS, VECTOR, actor, episodes, flat


class Once(th.autograd.Function):
    """A hyperbolic tangent with a first derivative, but no second one."""

    @staticmethod
    def forward(ctx: Any, x: th.Tensor) -> th.Tensor:
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    @th.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: th.Tensor) -> th.Tensor:
        return gradient * (1.0 - ctx.saved_tensors[0].tanh() ** 2)


class OnceTanh(nn.Module):
    def forward(self, x: th.Tensor) -> th.Tensor:
        return Once.apply(x)


class Unknown(Normal):
    """A distribution whose divergence PyTorch does not know."""


@th.distributions.register_kl(Unknown, Unknown)
def _unknown(old: Unknown, new: Unknown) -> th.Tensor:
    raise NotImplementedError


class UnknownGaussian(DiagGaussianDistribution):
    def proba_distribution(self, mean_actions: th.Tensor, log_std: th.Tensor) -> "UnknownGaussian":
        self.distribution = Unknown(mean_actions, log_std.exp().expand_as(mean_actions))
        return self


class UnknownPolicy(ActorCriticPolicy):
    def _build(self, lr_schedule: Any) -> None:
        self.action_dist = UnknownGaussian(self.action_space.shape[0])
        super()._build(lr_schedule)


WITHOUT: dict[str, tuple[Any, spaces.Space, dict[str, Any], str]] = {
    "layers": ("MlpPolicy", ACTIONS["discrete"], {"policy_kwargs": {"activation_fn": OnceTanh}}, "differentiated twice"),
    "divergence": (UnknownPolicy, ACTIONS["box"], {}, "a KL divergence in `torch.distributions`, got Unknown"),
}


def weights(model: REINFORCE) -> th.Tensor:
    return flat(list(model.policy.parameters()))


def make(policy: Any, actions: spaces.Space, n_envs: int = 1, **kwargs: Any) -> REINFORCE:
    return REINFORCE(policy, episodes(actions, n_envs=n_envs), **{"n_steps": 32, "seed": 0, "device": "cpu", **kwargs})


@pytest.mark.parametrize("name", ACTIONS)
@pytest.mark.filterwarnings("error")
def test_a_policy_takes_natural_steps_by_default(name: str) -> None:
    by_default = make("MlpPolicy", ACTIONS[name]).learn(100)
    natural = make("MlpPolicy", ACTIONS[name], natural_gradient=True).learn(100)
    assert by_default.natural_gradient is None
    assert th.equal(weights(by_default), weights(natural))
    assert by_default.logger.name_to_value["train/kl_divergence"] == pytest.approx(0.01, rel=0.5)


@pytest.mark.parametrize("name", WITHOUT)
def test_a_policy_without_natural_steps_takes_those_of_its_optimizer(name: str) -> None:
    """As it does where they are asked for, to the last bit; there without a warning."""
    policy, actions, kwargs, reason = WITHOUT[name]
    by_default = make(policy, actions, **kwargs)
    with pytest.warns(UserWarning, match=f"no natural steps, and takes those of its optimizer.*{reason}") as caught:
        by_default.learn(100).learn(100, reset_num_timesteps=False)
    assert sum("of its optimizer" in str(warning.message) for warning in caught) == 1
    assert "train/kl_divergence" not in by_default.logger.name_to_value
    plain = make(policy, actions, natural_gradient=False, **kwargs)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain.learn(100).learn(100, reset_num_timesteps=False)
    assert th.equal(weights(by_default), weights(plain))
    with pytest.raises(ValueError, match=reason):
        make(policy, actions, natural_gradient=True, **kwargs).learn(32)


@pytest.mark.filterwarnings("ignore:The policy has no natural steps")
def test_the_value_loss_moves_shared_layers_where_the_optimizer_moves_them() -> None:
    image = spaces.Box(0, 255, (1, 36, 36), np.uint8)
    of_actor = []
    for vf_coef in (0.0, 0.5):
        model = REINFORCE("CnnPolicy", episodes(ACTIONS["discrete"], image), n_steps=32, vf_coef=vf_coef, seed=0, device="cpu")
        model.policy.features_extractor.cnn[1] = OnceTanh()
        of_actor.append(flat(actor(model.learn(100).policy)))  # a new critic says nothing in the first update
    assert not th.equal(*of_actor)


def test_another_policy_may_have_what_the_former_one_had_not() -> None:
    policy, actions, kwargs, _ = WITHOUT["layers"]
    model = make(policy, actions, **kwargs)
    with pytest.warns(UserWarning, match="of its optimizer"):
        model.learn(32)
    model.policy = make("MlpPolicy", actions).policy
    assert "train/kl_divergence" in model.learn(32).logger.name_to_value


class Moody(nn.Module):
    """Layers that cannot be tried before the first update, and have no second derivative in it."""

    trained = False

    def forward(self, x: th.Tensor) -> th.Tensor:
        return Once.apply(x) if self.trained else x.tanh()


def test_a_policy_that_turns_out_to_have_no_natural_step_learns_on(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make("MlpPolicy", ACTIONS["discrete"], policy_kwargs={"activation_fn": Moody})
    begin = model.policy_step.begin

    def begin_and_change() -> None:
        begin()
        Moody.trained = True

    model.policy_step.begin = begin_and_change  # type: ignore[method-assign]
    before = flat(actor(model.policy))
    monkeypatch.setattr(Moody, "trained", False)
    with pytest.warns(UserWarning, match="of its optimizer.*differentiated twice") as caught:
        model.learn(100)
    assert sum("of its optimizer" in str(warning.message) for warning in caught) == 1
    assert not th.equal(flat(actor(model.policy)), before)


@pytest.mark.filterwarnings("error")
def test_a_task_that_is_solved_is_not_warned_of() -> None:
    """No batch of it has a direction."""
    env = vec(Scripted((7,), VECTOR, reward=lambda _: 1e3 / 7))
    model = REINFORCE("MlpPolicy", env, n_steps=32, device="cpu", baseline=None, reward_to_go=False, gamma=0.93)
    before = flat(actor(model.policy))
    model.learn(100)
    assert th.equal(flat(actor(model.policy)), before)


@pytest.mark.parametrize("name", ACTIONS)
def test_the_entropy_has_a_bonus_where_it_has_a_bound(name: str) -> None:
    by_default = make("MlpPolicy", ACTIONS[name]).learn(100)
    given = make("MlpPolicy", ACTIONS[name], ent_coef=0.0 if name == "box" else 0.03).learn(100)
    assert by_default.ent_coef is None
    assert th.equal(weights(by_default), weights(given))
    if name != "box":
        without = make("MlpPolicy", ACTIONS[name], ent_coef=0.0).learn(100)
        assert not th.equal(weights(by_default), weights(without))


def test_what_is_decided_by_the_policy_is_saved_undecided(tmp_path: Path) -> None:
    model = make("MlpPolicy", ACTIONS["discrete"]).learn(32)
    model.save(tmp_path / "model")
    loaded = REINFORCE.load(tmp_path / "model", env=episodes(ACTIONS["discrete"]))
    assert loaded.natural_gradient is None and loaded.ent_coef is None and loaded.n_steps == 32
    assert "train/kl_divergence" in loaded.learn(32).logger.name_to_value


@pytest.mark.parametrize("bad", [1, 0, "yes", 0.5])
def test_what_is_neither_yes_nor_no_nor_none_is_refused(bad: Any) -> None:
    with pytest.raises(ValueError, match=rf"`natural_gradient` must be True, False or None, got {bad!r}\."):
        make("MlpPolicy", ACTIONS["discrete"], natural_gradient=bad)
