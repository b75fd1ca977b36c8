"""How far apart two policies are."""

import torch as th
from torch.distributions import Bernoulli, Categorical, Distribution, Independent
from torch.nn.functional import softplus

from sb3_reinforce.actor_critic.actor_critic import ActorCritic
from sb3_reinforce.actor_critic.batch import Batch
from sb3_reinforce.distributed.workers import Alone

#: :func:`approximate_kl` takes fewer than twice this many timesteps. The whole batch of 256 environments would take an eighth
#: of the training time, for a number in the log
MEASURED_ON = 2**13
#: A policy is nearly certain of an action if all others together have less than this probability
REST = 1e-3


def approximate_kl(actor_critic: ActorCritic, batch: Batch, old_log_probs: th.Tensor, workers: Alone) -> float:
    """
    How far an update moved the policy, measured after it (http://joschu.net/blog/kl-approx.html), on a part of a large batch.

    :param actor_critic: The policy
    :param batch: The batch
    :param old_log_probs: Log-probabilities of the actions before the update, shape ``(n_timesteps,)``
    :param workers: The workers, over whose timesteps the mean is taken
    :return: Estimate of the KL divergence of the new policy from the old one
    """
    n_total, _ = workers.totals(len(batch), 0)
    if n_total >= 2 * MEASURED_ON:
        batch = actor_critic.sub_sample(batch, n_total // MEASURED_ON, workers)
        old_log_probs = old_log_probs[batch.rows]
    log_probs = actor_critic.log_probs(batch) if len(batch) else old_log_probs  # none of this worker's timesteps was drawn
    log_ratio = log_probs - old_log_probs
    return workers.mean(th.exp(log_ratio) - 1 - log_ratio)


def kl_divergence(old: Distribution, new: Distribution) -> th.Tensor:
    """
    The KL divergence. PyTorch's own is infinite as soon as a probability rounds to 0 or 1 (for a Bernoulli, from a logit of
    17 on); this one is computed from the logits.

    :param old: A distribution
    :param new: Another of the same kind
    :return: The divergence of the new one from the old one, in the batch shape of the two
    """
    if isinstance(old, Independent) and isinstance(new, Independent):
        divergence = kl_divergence(old.base_dist, new.base_dist)
        for _ in range(old.reinterpreted_batch_ndims):  # possibly none
            divergence = divergence.sum(-1)
        return divergence
    if isinstance(old, Bernoulli) and isinstance(new, Bernoulli):
        one = _expected(th.sigmoid(old.logits), softplus(-new.logits), softplus(-old.logits))
        return one + _expected(th.sigmoid(-old.logits), softplus(new.logits), softplus(old.logits))
    if isinstance(old, Categorical) and isinstance(new, Categorical):
        return _expected(old.probs, old.logits, new.logits).sum(-1)
    return th.distributions.kl_divergence(old, new)


def has_finite_support(distribution: Distribution) -> bool:
    """
    :param distribution: A distribution
    :return: Whether there are finitely many actions, each of which has a probability that may vanish
    """
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    return isinstance(distribution, Bernoulli | Categorical)


def is_nearly_certain(distribution: Distribution) -> bool:
    """
    :param distribution: A distribution
    :return: Whether one of finitely many actions has nearly all of the probability, at every timestep
    """
    while isinstance(distribution, Independent):
        distribution = distribution.base_dist
    if isinstance(distribution, Categorical):
        rest = 1.0 - distribution.probs.amax(dim=-1)
    elif isinstance(distribution, Bernoulli):
        rest = th.minimum(distribution.probs, 1.0 - distribution.probs)
    else:
        return False
    return bool((rest < REST).all())


def _expected(probs: th.Tensor, minuend: th.Tensor, subtrahend: th.Tensor) -> th.Tensor:
    """Probabilities times a difference; zero where the probability is, as for a masked action (logit -inf)."""
    never = probs == 0
    return probs * (minuend.masked_fill(never, 0.0) - subtrahend.masked_fill(never, 0.0))
