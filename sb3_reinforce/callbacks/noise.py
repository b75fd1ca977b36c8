r"""
The noise of the gradient estimate, from the gradients of single episodes or of groups of episodes.

The estimate of a batch is a sum over its timesteps, hence over its :math:`N` episodes, or over groups :math:`k` of
:math:`n_k` episodes:

.. math::
    \hat G = \sum_t \omega_t \nabla \log \pi(a_t | s_t) = \sum_k s_k, \qquad \omega_t = w_t A_t / Z.

If :math:`Z` and the scale of the advantages were fixed, :math:`\hat G` would be the mean of independent :math:`g_i = N s_i`,
one for each episode. But the number of timesteps, and the standard deviation that divides the advantages, also fluctuate with
the episodes. The estimate is thus a ratio: an episode with large gradients also enlarges the divisor.
To first order in :math:`1/N` (the variance of a ratio estimator: Cochran, 1977, "Sampling Techniques", sec. 6.3),
the deviation of :math:`\hat G` is the mean of

.. math:: e_i = N (s_i - c_i \hat G), \qquad \sum_i c_i = 1,

where :math:`c_i` is the share of the episode in the divisor, so that :math:`\operatorname{Cov}(\hat G) = \Sigma / N` with
:math:`\Sigma` the covariance of the :math:`e_i`. An average over episodes without normalization has :math:`c_i = 1/N`: there,
:math:`e_i = g_i - \hat G`, without approximation.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch as th

from sb3_reinforce.actor_critic.actor_critic import ActorCritic
from sb3_reinforce.actor_critic.batch import Batch
from sb3_reinforce.actor_critic.state import left_unchanged
from sb3_reinforce.monte_carlo.episodes import Episodes


def divisor_shares(advantages: np.ndarray, episodes: Episodes, average_over: str, normalize_advantage: bool) -> np.ndarray:
    r"""
    By how much each timestep enlarges the divisor of the estimate, :math:`c_t = \partial \log (Z \sigma) / \partial t` in
    the sense that they sum to 1: each timestep (or each episode) adds :math:`1/Z` to :math:`\log Z`, and a timestep with the
    normalized advantage :math:`\tilde A_t` adds :math:`(\tilde A_t^2 - 1) / 2T` to :math:`\log \sigma`.

    :param advantages: Advantages, normalized or not, shape ``(n_timesteps,)``
    :param episodes: How the timesteps divide into episodes
    :param average_over: The divisor of the estimate, the number of ``"timesteps"`` or of ``"episodes"``
    :param normalize_advantage: Whether it is also divided by the standard deviation of the advantages
    :return: Shape ``(n_timesteps,)``, float64
    """
    n_timesteps = episodes.n_timesteps
    shares = np.full(n_timesteps, 1.0 / n_timesteps)
    if average_over == "episodes":
        shares = np.repeat(1.0 / (len(episodes.lengths) * episodes.lengths), episodes.lengths)
    squares = (advantages - np.mean(advantages, dtype=np.float64)) ** 2
    if normalize_advantage and squares.any():
        shares = shares + 0.5 * (squares / squares.mean() - 1.0) / n_timesteps
    return shares


def covariance_trace(
    squared_parts: np.ndarray, cross: float, squared_norm: float, shares: np.ndarray, sizes: np.ndarray
) -> float:
    r"""
    The trace of the covariance of the estimate, from its parts of independent groups of episodes:

    .. math::
        \frac{\operatorname{tr} \hat \Sigma}{N} = \frac{N}{K - 1} \sum_k \frac{1}{n_k} |s_k - c_k \hat G|^2
        = \frac{N}{K - 1} \Big( \sum_k \frac{|s_k|^2}{n_k} - 2 \hat G \cdot \sum_k \frac{c_k s_k}{n_k}
        + |\hat G|^2 \sum_k \frac{c_k^2}{n_k} \Big).

    With :math:`c_k = n_k / N` this is the mean square between groups over :math:`N`, unbiased for any sizes of the groups: for
    groups of one episode it is the sample covariance with :math:`N - 1` in the denominator, and for groups of equal size
    :math:`\mathcal{S} / N` of McCandlish et al. (2018, arXiv 1812.06162), appendix A.1.

    :param squared_parts: :math:`|s_k|^2`, shape ``(n_groups,)``, at least two
    :param cross: :math:`\hat G \cdot \sum_k c_k s_k / n_k`
    :param squared_norm: :math:`|\hat G|^2`
    :param shares: :math:`c_k`, shape ``(n_groups,)``, which sum to 1
    :param sizes: Number of episodes :math:`n_k` of each group, shape ``(n_groups,)``
    :return: The trace, in squared units of the gradient
    :raises ValueError: If there are fewer than two groups
    """
    if len(sizes) < 2:
        raise ValueError(f"A covariance needs at least two groups of episodes, got {len(sizes)}.")
    squares = np.sum(squared_parts / sizes) - 2.0 * cross + squared_norm * np.sum(shares**2 / sizes)
    # If all parts are alike, a rounding error of either sign is left
    return float(np.sum(sizes) * max(squares, 0.0) / (len(sizes) - 1))


class EstimateNoise(NamedTuple):
    r"""
    How noisy the gradient estimate of a batch is.

    :param squared_norm: :math:`|\hat G|^2` of the estimate itself; minus the trace, it estimates :math:`|G|^2` without bias
        (:math:`|\mathcal{G}|^2` of McCandlish et al., 2018, arXiv 1812.06162, appendix A.1)
    :param covariance_trace: Trace of the covariance of the estimate
    :param cosine: Cosine between the gradients of the even and of the odd groups; ``None`` if one of them is zero
    """

    squared_norm: float
    covariance_trace: float
    cosine: float | None


def measure_noise(
    actor_critic: ActorCritic,
    batch: Batch,
    weights: th.Tensor,
    shares: np.ndarray,
    groups: Sequence[slice],
    sizes: np.ndarray,
    parameters: Sequence[th.nn.Parameter],
) -> list[EstimateNoise]:
    """
    The noise of several estimates, which weigh the same timesteps differently. At most four gradients per weighting
    are in memory at a time.

    :param actor_critic: The policy
    :param batch: The batch
    :param weights: Weight of each log-probability, shape ``(n_weightings, n_timesteps)``
    :param shares: See :func:`divisor_shares`, shape ``(n_weightings, n_timesteps)``
    :param groups: The timesteps of each group of episodes, at least two
    :param sizes: Number of episodes in each group, shape ``(n_groups,)``
    :param parameters: The parameters to differentiate with respect to
    :return: The noise under each weighting
    """
    group_shares = np.stack([shares[:, group].sum(axis=1) for group in groups])
    shape = (len(weights), sum(parameter.numel() for parameter in parameters))
    halves = [th.zeros(shape, device=weights.device) for _ in range(2)]
    weighed = th.zeros(shape, device=weights.device)
    squared_parts = np.empty(group_shares.shape)
    for k, part in enumerate(group_gradients(actor_critic, batch, weights, groups, parameters)):
        squared_parts[k] = _products(part, part)
        halves[k % 2] += part
        weighed += part * th.as_tensor(group_shares[k][:, None] / sizes[k], dtype=part.dtype, device=part.device)
    total = halves[0] + halves[1]
    squared_norms, crosses = _products(total, total), _products(total, weighed)
    even, odd, product = (_products(halves[i], halves[j]) for i, j in ((0, 0), (1, 1), (0, 1)))
    return [
        EstimateNoise(
            float(squared_norms[i]),
            covariance_trace(squared_parts[:, i], crosses[i], squared_norms[i], group_shares[:, i], sizes),
            float(np.clip(product[i] / np.sqrt(even[i] * odd[i]), -1.0, 1.0)) if even[i] * odd[i] > 0.0 else None,
        )
        for i in range(len(weights))
    ]


def _products(a: th.Tensor, b: th.Tensor) -> np.ndarray:
    """Scalar products of the rows, in float64 (which not every device has), without a float64 copy of the tensors."""
    return np.array([th.sum((x * y).cpu(), dtype=th.float64).item() for x, y in zip(a, b, strict=True)])


def divide(episodes: Episodes, max_groups: int, together: int = 1) -> tuple[list[slice], np.ndarray]:
    """
    Divide the episodes, in their order, into groups with nearly equal numbers of episodes.

    :param episodes: The episodes of a rollout
    :param max_groups: The largest number of groups; with fewer episodes, each is a group of its own
    :param together: This many episodes at a time depend on each other, and stay together
    :return: The timesteps of each group, and its number of episodes, shape ``(n_groups,)``
    """
    n_units = max(1, len(episodes.lengths) // together)
    n_groups = min(max_groups, n_units)
    bounds = np.arange(n_groups + 1) * n_units // n_groups * together
    bounds[-1] = len(episodes.lengths)
    rows = np.append(0, np.cumsum(episodes.lengths))[bounds].tolist()
    return [slice(first, stop) for first, stop in pairwise(rows)], np.diff(bounds)


def group_gradients(
    actor_critic: ActorCritic,
    batch: Batch,
    weights: th.Tensor,
    groups: Sequence[slice],
    parameters: Sequence[th.nn.Parameter],
) -> Iterator[th.Tensor]:
    r"""
    The parts :math:`s_k = \sum_{t \in k} \omega_t \nabla \log \pi(a_t|s_t)` of an estimate, for several weightings of the
    same timesteps at once.

    One forward pass per group, and one backward pass per weighting over only that group: each timestep is visited as
    often as in a single gradient of the whole batch, and the result is exact for any policy. (Batched backward passes over the
    whole batch do the work of all groups for each of them, and took 1 to 50 times as long. ``torch.func.vmap`` over padded
    groups took 0.2 to 1 times as long for a small MLP and one to eight weightings, but cannot evaluate SB3's policies
    unchanged.) The policy does not change.

    :param actor_critic: The policy
    :param batch: The batch
    :param weights: Weights :math:`\omega_t`, shape ``(n_weightings, n_timesteps)``
    :param groups: The timesteps of each group
    :param parameters: The parameters to differentiate with respect to
    :return: For each group a tensor of shape ``(n_weightings, n_parameters)``
    """
    for group in groups:
        with left_unchanged(actor_critic.policy), th.enable_grad():
            gradients = _gradients(actor_critic, batch.part(group), weights[:, group], parameters)
        yield gradients


def _gradients(
    actor_critic: ActorCritic,
    batch: Batch,
    weights: th.Tensor,
    parameters: Sequence[th.nn.Parameter],
) -> th.Tensor:
    n_weightings = len(weights)
    total = th.zeros(n_weightings, sum(parameter.numel() for parameter in parameters), device=weights.device)
    for piece in actor_critic.pieces(batch):
        log_probs, _ = actor_critic.act(piece)
        for i in range(n_weightings):
            # `grad` returns the gradients and does not change those stored in the parameters
            gradients = th.autograd.grad(
                log_probs,
                parameters,
                weights[i, piece.rows].to(log_probs.dtype),
                retain_graph=i < n_weightings - 1,
                allow_unused=True,
                materialize_grads=True,
            )
            total[i] += th.cat([gradient.flatten() for gradient in gradients]).detach()
    return total
