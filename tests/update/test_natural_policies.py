"""The policies, spaces and networks that the natural gradient works with."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import DiagGaussianDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_reinforce.actor_critic.inspection import has_sb3_forward
from tests.update.natural import (
    ACTIONS,
    TINY,
    VECTOR,
    actor,
    batch_of,
    episodes,
    exact_step,
    fisher_of,
    make,
    make_policy,
    moved,
)

IMAGE = spaces.Box(0, 255, (1, 36, 36), np.uint8)


OBSERVATIONS: dict[str, tuple[str, spaces.Space]] = {
    "image": ("CnnPolicy", IMAGE),
    "dict": ("MultiInputPolicy", spaces.Dict({"vector": VECTOR, "image": IMAGE, "number": spaces.Discrete(4)})),
    "discrete": ("MlpPolicy", spaces.Discrete(4)),
}


@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize("observations", OBSERVATIONS)
@pytest.mark.parametrize("shared", [True, False])
def test_images_and_dicts(observations: str, actions: str, shared: bool) -> None:
    policy, space = OBSERVATIONS[observations]
    kwargs: dict[str, Any] = {"share_features_extractor": shared, "normalize_images": True}
    model = make(episodes(ACTIONS[actions], space, n_envs=2), policy, learn=32, target_kl=1e-4, policy_kwargs=kwargs)
    assert model.logger.name_to_value["train/approx_kl"] < 1e-3
    assert model._n_updates >= 1 and moved(model).any() and moved(model).isfinite().all()


def test_what_is_shared_is_the_actors_alone() -> None:
    """Else the value loss would move the policy through it: further than the natural step, at a usual learning rate."""
    models = [
        make(episodes(ACTIONS["discrete"], IMAGE), "CnnPolicy", learn=32, vf_coef=vf_coef, learning_rate=rate)
        for vf_coef, rate in ((0.5, 1e-2), (0.0, 1e-2), (0.5, 0.0))
    ]
    steps = [moved(model) for model in models]
    assert steps[0].any() and th.equal(steps[0], steps[1]) and th.equal(steps[0], steps[2])
    before = dict(models[0].before.named_parameters())
    critic = {name: p for name, p in models[0].policy.named_parameters() if "value" in name}
    assert critic and not any(th.equal(p.double(), before[name]) for name, p in critic.items())


class OwnEvaluation(ActorCriticPolicy):
    def evaluate_actions(self, obs: Any, actions: th.Tensor) -> Any:
        return super().evaluate_actions(obs, actions)


class OwnFeatures(ActorCriticPolicy):
    """SB3's ``get_distribution`` passes by this method."""

    def extract_features(self, obs: Any, features_extractor: Any = None) -> Any:
        return 3.0 * super().extract_features(obs, features_extractor)


@pytest.mark.parametrize("name", ACTIONS)
def test_policies_with_methods_of_their_own(name: str) -> None:
    model = make(episodes(ACTIONS[name]), OwnEvaluation, learn=40, policy_kwargs=TINY, cg_max_steps=100)
    assert not has_sb3_forward(model.policy)
    expected = exact_step(model)
    assert float((moved(model) - expected).norm() / expected.norm()) < 2e-3
    policies = [make_policy(name), make_policy(name, OwnFeatures)]
    observations, actions = batch_of(policies[0])
    vector = th.ones(sum(p.numel() for p in actor(policies[0])))
    products = [
        fisher_of(policy, scale * observations, actions, actor(policy))(vector)
        for policy, scale in zip(policies, (3.0, 1.0), strict=True)
    ]
    th.testing.assert_close(*products)


class Tempered(ActorCriticPolicy):
    """Its log-probabilities are not those of its distribution."""

    def evaluate_actions(self, obs: Any, actions: th.Tensor) -> Any:
        values, log_prob, entropy = super().evaluate_actions(obs, actions)
        return values, 2.0 * log_prob, entropy


class Heavy(DiagGaussianDistribution):
    """Student's t: PyTorch knows no divergence."""

    def proba_distribution(self, mean_actions: th.Tensor, log_std: th.Tensor) -> Any:
        self.distribution = th.distributions.StudentT(5.0, mean_actions, log_std.exp())  # type: ignore[assignment]
        return self


class HeavyPolicy(ActorCriticPolicy):
    def _build(self, lr_schedule: Any) -> None:
        self.action_dist = Heavy(2)
        super()._build(lr_schedule)


@pytest.mark.parametrize("policy, name, match", [(Tempered, "discrete", "Tempered"), (HeavyPolicy, "box", "StudentT")])
def test_a_policy_without_a_divergence_is_refused(policy: Any, name: str, match: str) -> None:
    with pytest.raises(ValueError, match=rf"^`natural_gradient=True` needs a .*{match}.*\.$"):
        make(episodes(ACTIONS[name]), policy)
    model = make(episodes(ACTIONS[name]), policy, natural_gradient=False)
    model.natural_gradient = True
    with pytest.raises(ValueError, match=match):
        model.learn(10)


class Bag(BaseFeaturesExtractor):
    """PyTorch has no second derivative of its layer."""

    def __init__(self, observation_space: spaces.Space):
        super().__init__(observation_space, 3)
        self.bag = nn.EmbeddingBag(4, 3)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.bag(th.zeros(len(observations), 2, dtype=th.long, device=observations.device)) + observations


def test_a_layer_without_a_second_derivative_is_refused() -> None:
    kwargs = {"features_extractor_class": Bag}
    model = make(episodes(ACTIONS["discrete"]), policy_kwargs=kwargs)
    with pytest.raises(ValueError, match=r"^`natural_gradient=True` needs layers .* twice.*_embedding_bag"):
        model.learn(10)
    assert model.num_timesteps == 0
    make(episodes(ACTIONS["discrete"]), natural_gradient=False, policy_kwargs=kwargs).learn(10)
    model.policy.features_extractor.requires_grad_(False)
    model.learn(40)
    assert moved(model).any()
