"""The masked distributions: nothing for what is forbidden, and finite numbers for all that is allowed."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib.ppo_mask.policies import MlpPolicy
from torch.distributions import Categorical, constraints

from sb3_reinforce.actor_critic.batch import Batch
from sb3_reinforce.maskable.actor_critic import SeparableMaskableActorCritic, make_maskable_actor_critic
from sb3_reinforce.maskable.distributions import MaskedCategorical, evaluate, make_distributions
from sb3_reinforce.update.kl import kl_divergence
from tests.maskable.environments import SPACES, sizes_of


def test_a_masked_distribution_is_the_one_over_the_allowed_actions() -> None:
    logits = th.randn(6, 7, generator=th.Generator().manual_seed(0), requires_grad=True)
    masks = th.zeros(6, 7, dtype=th.bool)
    allowed = [0, 2, 5]
    masks[:, allowed] = True
    masked, small = MaskedCategorical(logits, masks), Categorical(logits=logits[:, allowed])
    th.testing.assert_close(masked.probs[:, allowed], small.probs)
    assert (masked.probs[~masks] == 0.0).all()
    th.testing.assert_close(masked.entropy(), small.entropy())
    others = logits.detach().flip(0)
    divergence = kl_divergence(masked, MaskedCategorical(others, masks))
    th.testing.assert_close(divergence, kl_divergence(small, Categorical(logits=others[:, allowed])))
    outputs = [masked.entropy().sum(), divergence.sum(), masked.log_prob(th.full((6,), 2)).sum()]
    expected = [small.entropy().sum(), kl_divergence(small, Categorical(logits=others[:, allowed])).sum()]
    expected.append(small.log_prob(th.ones(6)).sum())
    for output, other in zip(outputs, expected, strict=True):
        gradient, of_small = (th.autograd.grad(of, logits, retain_graph=True)[0] for of in (output, other))
        th.testing.assert_close(gradient, of_small)
        assert (gradient[~masks] == 0.0).all()


@pytest.mark.parametrize("scale", [1.0, 1e2, 1e4, 1e10, 1e30])
def test_numbers_stay_finite_however_sure_the_policy_is(scale: float) -> None:
    logits = (scale * th.tensor([[1.0, -1.0, 0.0, 3.0], [0.0, 1.0, 2.0, 3.0]])).requires_grad_()
    others = logits.detach().flip(1)
    masks = th.tensor([[True, True, True, False], [False, True, False, False]])
    one, other = MaskedCategorical(logits, masks), MaskedCategorical(others, masks)
    likeliest = one.probs.argmax(1)
    outputs = {"entropy": one.entropy(), "log_prob": one.log_prob(likeliest), "divergence": kl_divergence(other, one)}
    for name, output in outputs.items():
        assert output.isfinite().all(), name
        assert (output[1] == 0.0).all(), "the state without a choice"
        gradient = th.autograd.grad(output.sum(), logits, create_graph=True)[0]
        second = th.autograd.grad(gradient.square().sum(), logits, retain_graph=True, allow_unused=True)[0]
        assert gradient.isfinite().all() and (second is None or second.isfinite().all()), name
    assert 0.0 <= one.entropy()[0].item() <= np.log(3)


def test_thousands_of_actions_pass_all_checks_of_arguments() -> None:
    n = 50_000
    generator = th.Generator().manual_seed(0)
    logits = 5.0 * th.randn(3, n, generator=generator)
    masks = th.rand(3, n, generator=generator) < 0.9
    (one,) = make_distributions(logits, masks, [n])
    assert Categorical._validate_args and not constraints.simplex.check(one.probs).all(), "no test of the checks otherwise"
    log_probs, entropies = evaluate([one], one.sample())
    assert kl_divergence(one, MaskedCategorical(logits.roll(1, 1), masks)).isfinite().all()
    assert log_probs.isfinite().all() and entropies.isfinite().all()


def make_policy(space: spaces.Space, **kwargs: Any) -> MlpPolicy:
    th.manual_seed(0)
    return MlpPolicy(spaces.Box(-1, 1, (4,)), space, lambda _: 1e-3, net_arch=[8], ortho_init=False, **kwargs)


@pytest.mark.parametrize("share", [True, False], ids=["shared", "separate"])
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_values_and_probabilities_are_those_of_sb3_contrib(space: spaces.Space, share: bool) -> None:
    policy, n, rng = make_policy(space, share_features_extractor=share), 40, np.random.default_rng(0)
    observations = th.as_tensor(rng.normal(size=(n, 4)).astype(np.float32))
    masks = np.concatenate([np.eye(size, dtype=bool)[rng.integers(size, size=n)] for size in sizes_of(space)], axis=1)
    actions = policy(observations, action_masks=masks)[0]
    masks |= rng.random(masks.shape) < 0.4
    actor_critic = make_maskable_actor_critic(policy, True)
    assert isinstance(actor_critic, SeparableMaskableActorCritic)
    batch = Batch.of_observations(observations, Batch.as_actions(actions.reshape(n, -1), space))
    batch.extras["action_masks"] = th.as_tensor(masks)
    with th.no_grad():
        expected = policy.evaluate_actions(observations, actions, action_masks=masks)
        values, log_probs, entropy = actor_critic.evaluate(batch)
        assert entropy is not None and expected[2] is not None
        th.testing.assert_close(values, expected[0].flatten())
        th.testing.assert_close(log_probs, expected[1])
        th.testing.assert_close(entropy, expected[2])
        acted = actor_critic.act(batch)
        th.testing.assert_close(acted[0], expected[1])
        th.testing.assert_close(actor_critic.value(batch), values)
        assert not th.allclose(policy.evaluate_actions(observations, actions)[1], log_probs), "the masks must matter"
