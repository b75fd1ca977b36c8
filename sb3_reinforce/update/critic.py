"""The critic's regression on the returns, which follows each policy step."""

from collections.abc import Sequence

import numpy as np
import torch as th

from sb3_reinforce.actor_critic.actor_critic import ActorCritic, Regression
from sb3_reinforce.actor_critic.batch import Batch
from sb3_reinforce.distributed.workers import ALONE, Alone
from sb3_reinforce.update.numpy_critic import fit_in_numpy, is_plain
from sb3_reinforce.update.policy_step import clip_by_norm


def fit_critic(
    actor_critic: ActorCritic,
    batch: Batch,
    parameters: Sequence[th.nn.Parameter],
    n_updates: int,
    batch_size: int,
    max_grad_norm: float,
    workers: Alone,
) -> None:
    """
    Regression of the critic on the returns. Only the critic's own parameters move.

    :param actor_critic: The policy
    :param batch: The batch, with the returns as targets
    :param parameters: The parameters that reach only the values; if there are none, nothing is done
    :param n_updates: Number of passes over the batch
    :param batch_size: Largest number of timesteps per minibatch; the minibatches of a pass are of equal size
    :param max_grad_norm: The largest norm of a gradient
    :param workers: The workers, each with a batch of its own: they take the same steps, along the gradients of all their
        batches. A minibatch consists of a part of each worker's batch
    :raises ValueError: If the regression diverges
    """
    if not parameters or n_updates == 0:
        return
    regression = actor_critic.regression(batch)
    # No gradient is left on the actor's parameters, so that the optimizer skips them
    actor_critic.policy.optimizer.zero_grad(set_to_none=True)
    plain = is_plain(regression, parameters)
    passes = n_updates, batch_size
    losses = _fit_to_all(regression, parameters, plain, passes, max_grad_norm, workers) if workers.size > 1 else None
    minibatches = (minibatch for _ in range(n_updates) for minibatch in actor_critic.minibatches(batch, batch_size, workers))
    if losses is None and plain:
        assert regression.latents is not None
        x, y = regression.latents.numpy(), batch.returns.numpy()
        losses = fit_in_numpy(actor_critic.policy, x, y, minibatches, max_grad_norm, workers)
    elif losses is None:
        found = []
        for rows, n_total in minibatches:
            loss, gradients = _minibatch_gradient(regression, rows, n_total, parameters)
            workers.add_up(gradients)
            _step(actor_critic.policy.optimizer, parameters, gradients, max_grad_norm)
            found.append(loss)
        losses = th.stack(found).tolist()
    if not np.isfinite(losses).all():
        raise ValueError("The value loss must be finite, got nan or infinity while the critic was fitted to the returns.")


def _fit_to_all(
    regression: Regression,
    parameters: Sequence[th.nn.Parameter],
    plain: bool,
    passes: tuple[int, int],
    max_grad_norm: float,
    workers: Alone,
) -> list[float] | None:
    """
    Where all the workers' inputs and targets are fewer numbers than the gradients of all minibatches, send those: every
    worker then takes the same steps separately.
    """
    n_updates, batch_size = passes
    n_total, _ = workers.totals(len(regression.batch), 0)
    n_parts = -(-n_total // batch_size)
    n_inputs = regression.actor_critic.policy.features_dim
    n_numbers = sum(parameter.numel() for parameter in parameters)
    if n_total * (n_inputs + 1) > 2 * n_updates * n_parts * n_numbers:
        return None
    own = (regression.latents.numpy(), regression.batch.returns.numpy()) if plain and regression.latents is not None else None
    gathered = workers.gather((own, int(np.random.randint(2**31))))
    if any(data is None for data, _ in gathered):  # a hook on one of them, say
        return None
    x, y = (np.concatenate(arrays) for arrays in zip(*(data for data, _ in gathered), strict=True))
    rng = np.random.default_rng(gathered[0][1])
    parts = (part for _ in range(n_updates) for part in np.array_split(rng.permutation(n_total), n_parts))
    policy = regression.actor_critic.policy
    return fit_in_numpy(policy, x, y, ((part, len(part)) for part in parts), max_grad_norm, ALONE)


def _minibatch_gradient(
    regression: Regression, rows: np.ndarray | slice, n_total: int, parameters: Sequence[th.nn.Parameter]
) -> tuple[th.Tensor, list[th.Tensor]]:
    """Sum of squared errors over ``n_total``, and its gradient."""
    device = regression.batch.returns.device
    loss = th.zeros((), device=device)
    gradients: list[th.Tensor] = []
    where = rows if isinstance(rows, slice) else th.from_numpy(rows).to(device)
    for values, returns in regression.values_and_returns(where):
        part_loss = ((values - returns) ** 2).sum() / n_total
        # A layer that the values do not go through has a gradient of zero, in every worker
        grads = th.autograd.grad(part_loss, parameters, allow_unused=True, materialize_grads=True)
        found = [grad.detach() for grad in grads]  # those zeros require gradients in older versions of PyTorch
        for total, part_gradient in zip(gradients, found, strict=False):  # `gradients` is empty at first
            total += part_gradient
        gradients = gradients or found
        loss = loss + part_loss.detach()
    return loss, gradients or [th.zeros_like(parameter) for parameter in parameters]


def _step(
    optimizer: th.optim.Optimizer,
    parameters: Sequence[th.nn.Parameter],
    gradients: Sequence[th.Tensor],
    max_grad_norm: float,
) -> None:
    clip_by_norm(gradients, max_grad_norm)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
