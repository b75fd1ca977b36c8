"""A policy step of the user's own is one class, which the model is told of."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

from sb3_reinforce import REINFORCE, PolicyStep
from sb3_reinforce.actor_critic.batch import Batch
from sb3_reinforce.actor_critic.parameters import Parameters
from sb3_reinforce.update.gradients import Gradients
from sb3_reinforce.update.policy_step import OptimizerStep
from tests.helpers.plain import PLAIN
from tests.helpers.tiny_mdp import collect_estimates, deviation, exact_gradient, make_model


class SignStep(PolicyStep):
    """Moves each weight of the actor by the same amount, in the direction of its gradient."""

    rate = 0.01

    def __init__(self, model: Any):
        super().__init__(model)
        self.n_begun = 0

    def begin(self) -> None:
        self.n_begun += 1
        if self.model.ent_coef < 0:
            raise ValueError("`ent_coef` must be at least 0.")

    def take(self, gradients: Gradients, batch: Batch, weights: th.Tensor, parameters: Parameters) -> dict[str, float]:
        assert len(weights) == len(batch) == len(gradients.log_probs)
        with th.no_grad():
            for parameter, gradient in zip(parameters.actor, gradients.actor, strict=True):
                parameter -= self.rate * gradient.sign()
        return {"sign_rate": self.rate}


class GivenUp(PolicyStep):
    """Changes the policy, and then fails."""

    def take(self, gradients: Gradients, batch: Batch, weights: th.Tensor, parameters: Parameters) -> dict[str, float]:
        with th.no_grad():
            parameters.actor[0].add_(1.0)
        raise ValueError("No step was found.")


class Shared(BaseFeaturesExtractor):
    """A layer that actor and critic share."""

    def __init__(self, observation_space: spaces.Space):
        super().__init__(observation_space, 8)
        self.layer = th.nn.Linear(4, 8)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layer(observations)


class KeptApart(OptimizerStep):
    """The step of the optimizer, without the value loss in the layers that actor and critic share."""

    moves_shared_layers = False


def make(**kwargs: Any) -> REINFORCE:
    arguments: dict[str, Any] = {
        "n_steps": 64,
        "seed": 0,
        "device": "cpu",
        "policy_kwargs": {"net_arch": [8]},
        **PLAIN,
        **kwargs,
    }
    return REINFORCE("MlpPolicy", make_vec_env("CartPole-v1", 1, seed=0), **arguments)


def actor(model: REINFORCE) -> np.ndarray:
    return th.cat([p.detach().flatten() for n, p in model.policy.named_parameters() if "value" not in n]).numpy()


def test_it_moves_the_policy_and_what_it_returns_is_logged() -> None:
    model = make()
    model.policy_step_class = SignStep
    before = actor(model)
    model.learn(1)
    moved = np.abs(actor(model) - before)
    assert moved.max() > 0 and np.isclose(moved[moved > 0], 0.01, atol=1e-6).all()
    assert model.logger.name_to_value["train/sign_rate"] == 0.01
    assert "train/grad_norm" not in model.logger.name_to_value and "train/approx_kl" in model.logger.name_to_value


def test_it_may_be_the_class_of_an_algorithm() -> None:
    class SignREINFORCE(REINFORCE):
        policy_step_class = SignStep

    model = SignREINFORCE("MlpPolicy", "CartPole-v1", n_steps=32, ent_coef=0.0, seed=0, device="cpu").learn(40)
    assert isinstance(model.policy_step, SignStep) and model.policy_step.n_begun == 1
    assert REINFORCE("MlpPolicy", "CartPole-v1").policy_step_class is None


def test_one_object_serves_a_model_and_is_asked_whenever_learning_begins() -> None:
    model = make()
    model.policy_step_class = SignStep
    step = model.policy_step
    model.learn(1).learn(1)
    assert model.policy_step is step and step.n_begun == 2  # type: ignore[attr-defined]
    model.ent_coef = -0.1
    with pytest.raises(ValueError, match="`ent_coef` must be at least 0"):
        model.learn(1)


def test_it_is_saved_with_the_model(tmp_path: Path) -> None:
    model = make()
    model.policy_step_class = SignStep
    model.learn(1).save(tmp_path / "model")
    loaded = REINFORCE.load(tmp_path / "model", env=model.env, device="cpu")
    assert loaded.policy_step_class is SignStep
    before = actor(loaded)
    moved = np.abs(actor(loaded.learn(1)) - before)
    assert moved.max() > 0 and np.isclose(moved[moved > 0], 0.01, atol=1e-6).all()


def test_a_step_that_fails_leaves_the_weights() -> None:
    model = make()
    model.policy_step_class = GivenUp
    before = actor(model)
    with pytest.raises(ValueError, match="No step was found"):
        model.learn(1)
    np.testing.assert_array_equal(actor(model), before)


def test_it_says_whether_the_value_loss_reaches_shared_layers() -> None:
    kwargs = {"features_extractor_class": Shared, "net_arch": []}
    losses = []
    for step in (None, KeptApart):
        model = make(policy_kwargs=kwargs, vf_coef=100.0, n_critic_updates=0, max_grad_norm=1e6)
        with th.no_grad():  # a new critic says 0, and has no gradient
            model.policy.value_net.weight.fill_(1.0)
        model.policy_step_class = step
        model.learn(1)
        losses.append(th.cat([p.detach().flatten() for p in model.policy.features_extractor.parameters()]))
    assert not th.equal(*losses)


def test_a_step_along_the_gradient_that_it_gets_is_unbiased() -> None:
    class Plain(PolicyStep):
        def take(self, gradients: Gradients, batch: Batch, weights: th.Tensor, parameters: Parameters) -> dict[str, float]:
            with th.no_grad():
                for parameter, gradient in zip(parameters.actor, gradients.actor, strict=True):
                    parameter -= gradient
            return {}

    model = make_model(baseline=None, n_steps=8, discount_state_distribution=True, learning_rate=0.0)
    model.policy_step_class = Plain
    found = deviation(collect_estimates(model, 3000), exact_gradient(0.9), model.average_over)
    assert found.z < 4.0 and found.relative_error < 0.1
