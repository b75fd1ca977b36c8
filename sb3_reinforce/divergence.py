"""The distributions of a policy's actions, and the KL divergence between two of them."""

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch.distributions import Bernoulli, Categorical, Distribution, Independent
from torch.nn.functional import softplus

from sb3_reinforce.policies import has_sb3_forward


def action_laws(policy: ActorCriticPolicy, observations: PyTorchObs, actions: th.Tensor) -> list[Distribution]:
    """
    The distributions of the independent parts of an action. A squashed Gaussian's is the Gaussian: a divergence does not
    change under an invertible function of the action.

    :param policy: The policy
    :param observations: Observations
    :param actions: Their actions, which only policies with methods of their own look at
    :return: Distributions of one batch
    :raises ValueError: If such a policy does not leave its distribution where SB3's does
    """
    if has_sb3_forward(policy):
        laws = policy.get_distribution(observations).distribution
    else:
        # SB3's `get_distribution` may pass by the methods of such a policy, and what is trained is `evaluate_actions`
        before = getattr(policy.action_dist, "distribution", None)
        log_prob = policy.evaluate_actions(observations, actions)[1]
        laws = getattr(policy.action_dist, "distribution", None)  # type: ignore[assignment]
        if laws is before or not th.allclose(policy.action_dist.log_prob(actions), log_prob, equal_nan=True):
            raise ValueError(
                "`natural_gradient=True` needs a policy that leaves the distribution of its `evaluate_actions` in "
                f"`policy.action_dist`, got {type(policy).__name__}."
            )
    return laws if isinstance(laws, list) else [laws]


def kl_divergence(old: Distribution, new: Distribution) -> th.Tensor:
    """
    The KL divergence. PyTorch's own is infinite as soon as a probability rounds to 0 or 1 (that of a Bernoulli from a logit of
    17 on); these are taken from the logits.

    :param old: A distribution
    :param new: One of the same kind
    :return: The divergence of the new one from the old one, the batch shape of the two
    """
    if isinstance(old, Independent) and isinstance(new, Independent):
        divergence = kl_divergence(old.base_dist, new.base_dist)
        for _ in range(old.reinterpreted_batch_ndims):  # none, too
            divergence = divergence.sum(-1)
        return divergence
    if isinstance(old, Bernoulli) and isinstance(new, Bernoulli):
        one = _expected(th.sigmoid(old.logits), softplus(-new.logits), softplus(-old.logits))
        return one + _expected(th.sigmoid(-old.logits), softplus(new.logits), softplus(old.logits))
    if isinstance(old, Categorical) and isinstance(new, Categorical):
        return _expected(old.probs, old.logits, new.logits).sum(-1)
    return th.distributions.kl_divergence(old, new)


def _expected(probs: th.Tensor, minuend: th.Tensor, subtrahend: th.Tensor) -> th.Tensor:
    """Probabilities times a difference; nothing where the probability is zero, as of a masked action, whose logit is -inf."""
    never = probs == 0
    return probs * (minuend.masked_fill(never, 0.0) - subtrahend.masked_fill(never, 0.0))
