"""
The gradient estimate under masks against the exact gradient of the masked policy. The method is that of
``tests.reinforce.test_exact_gradient``: each step of the weights is an estimate, and a z-test compares their mean.
"""

from typing import Any

import numpy as np
import pytest
import torch as th
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy

from sb3_reinforce import MaskableREINFORCE
from sb3_reinforce.maskable.actor_critic import MaskableActorCritic, SeparableMaskableActorCritic
from sb3_reinforce.maskable.sampler import MaskableActorSampler, MaskableNumpySampler
from tests.helpers.tiny_mdp import VALUES, Deviation, collect_estimates, deviation
from tests.maskable.masked_mdp import MASKS, WEIGHTS, exact_gradient, make_model, objective

# The critic of these tests is wrong on purpose
pytestmark = pytest.mark.filterwarnings("ignore:For 50 updates the critic")
#: Standard errors that an estimate may lie from its expectation, and the relative standard error at which this means anything
BOUND, POWER = 4.5, 0.1
GAMMA = 0.9
N_UPDATES = 100


def measure(gradient: np.ndarray, n_updates: int = N_UPDATES, **arguments: Any) -> Deviation:
    defaults: dict[str, Any] = {
        "n_envs": 8,
        "n_episodes": 3,
        "average_over": "episodes",
        "discount_state_distribution": True,
        "gamma": GAMMA,
        "bootstrap_on_truncation": False,
    }
    model = make_model(**{**defaults, **arguments})
    return deviation(collect_estimates(model, n_updates), gradient, model.average_over)


def assert_agrees(found: Deviation) -> None:
    assert found.relative_error < POWER, "too few updates to tell right from wrong"
    assert found.z < BOUND


def test_the_exact_gradient_is_the_slope_of_the_objective() -> None:
    step, slopes = 1e-6, []
    for index in np.ndindex(*WEIGHTS.shape):
        shift = np.zeros_like(WEIGHTS)
        shift[index] = step
        slopes.append((objective(WEIGHTS + shift, GAMMA) - objective(WEIGHTS - shift, GAMMA)) / (2 * step))
    assert np.allclose(exact_gradient(GAMMA)[: WEIGHTS.size], slopes, atol=1e-8)
    assert not np.allclose(exact_gradient(GAMMA, masked=False)[: WEIGHTS.size], slopes, atol=0.05)


def by_timestep(returns: np.ndarray, timesteps: np.ndarray, episode_ids: np.ndarray) -> np.ndarray:
    return 2.0 - 0.7 * timesteps


@pytest.mark.parametrize(
    "baseline",
    [None, "leave_one_out", "linear", "value", by_timestep],
    ids=["none", "leave_one_out", "linear", "value", "callable"],
)
def test_under_masks_the_estimate_is_unbiased(baseline: Any) -> None:
    assert_agrees(measure(exact_gradient(GAMMA), baseline=baseline))


def test_under_masks_the_mean_shrinks_the_gradient_by_its_own_share() -> None:
    rollout = {"n_envs": 3, "n_episodes": 1, "n_updates": 300}
    assert_agrees(measure(exact_gradient(GAMMA) * 2 / 3, baseline="mean", reward_to_go=False, **rollout))


@pytest.mark.parametrize("baseline", ["leave_one_out", "value"])
def test_under_masks_a_number_of_steps_gives_an_unbiased_sum(baseline: str) -> None:
    arguments = {"n_episodes": None, "n_steps": 3, "average_over": "timesteps"}
    assert_agrees(measure(exact_gradient(GAMMA), baseline=baseline, **arguments))


def test_under_masks_the_value_after_a_truncation_needs_no_mask() -> None:
    gradient = exact_gradient(GAMMA, final_values=VALUES)
    assert_agrees(measure(gradient, baseline="value", bootstrap_on_truncation=True))


class OwnForward(MaskableActorCriticPolicy):
    """A policy that is called with its own methods."""

    def forward(self, obs: Any, deterministic: bool = False, action_masks: Any = None) -> Any:
        return super().forward(obs, deterministic, action_masks)


def test_a_policy_with_its_own_methods_gives_an_unbiased_estimate() -> None:
    assert isinstance(make_model(1, policy=OwnForward).actor_critic, MaskableActorCritic)
    assert_agrees(measure(exact_gradient(GAMMA), policy=OwnForward, baseline="value"))


class OnlyPyTorch(SeparableMaskableActorCritic):
    def sampler(self, env: Any, rng: Any) -> Any:
        numpy_sampler = super().sampler(env, rng)
        assert isinstance(numpy_sampler, MaskableNumpySampler) and numpy_sampler.reader is not None
        return MaskableActorSampler(self.policy, numpy_sampler.reader, self.draw)

    def fits(self, sampler: Any) -> bool:
        return False


class WithoutNumpy(MaskableREINFORCE):
    @property
    def actor_critic(self) -> Any:
        return OnlyPyTorch(self.policy, True)


def test_actions_drawn_by_pytorch_give_an_unbiased_estimate() -> None:
    assert_agrees(measure(exact_gradient(GAMMA), model_class=WithoutNumpy, baseline="value"))


class ForgetsTheMasks(SeparableMaskableActorCritic):
    """Draws under masks and learns without them."""

    def _of_features(self, features: th.Tensor, masks: th.Tensor | None) -> Any:
        return super()._of_features(features, None)


class Forgetful(MaskableREINFORCE):
    @property
    def actor_critic(self) -> Any:
        return ForgetsTheMasks(self.policy, True)


def test_learning_without_the_masks_of_the_actions_is_found_out() -> None:
    found = measure(exact_gradient(GAMMA), model_class=Forgetful, baseline="value")
    assert found.z > 1.5 * BOUND
    assert_agrees(measure(exact_gradient(GAMMA, masked=False), model_class=Forgetful, baseline=None, reward_to_go=False))


@pytest.mark.parametrize("policy", ["MlpPolicy", OwnForward])
@pytest.mark.parametrize("ent_coef", [0.0, 0.5])
def test_forbidden_actions_have_no_gradient_at_all(policy: Any, ent_coef: float) -> None:
    model = make_model(3, policy=policy, n_episodes=20, baseline=None, ent_coef=ent_coef, gamma=GAMMA)
    before = model.policy.action_net.weight.detach().clone()
    model.learn(1)
    visited = np.unique(model.rollout_buffer.observations)
    assert set(visited) == {0, 1, 2, 3, 4}
    step = (model.policy.action_net.weight.detach() - before).numpy().T
    assert (step[~MASKS] == 0.0).all()
    assert (step[1] == 0.0).all(), "the state without a choice"
    free = MASKS.copy()
    free[1] = False
    assert (step[free] != 0.0).all()
