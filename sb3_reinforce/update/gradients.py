"""
The gradient estimate of REINFORCE: gradients of a policy's losses on a rollout.

A batch of whole rollouts is taken in pieces that bound the memory; the sums over the pieces are exact.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_reinforce.actor_critic.actor_critic import ActorCritic
from sb3_reinforce.actor_critic.batch import Batch
from sb3_reinforce.actor_critic.parameters import Parameters
from sb3_reinforce.distributed.workers import Alone
from sb3_reinforce.finite import not_finite
from sb3_reinforce.monte_carlo.groups import normalized_within_groups


def normalized_advantages(batch: Batch, normalize_advantage: bool | str, group_size: int, workers: Alone) -> th.Tensor:
    """
    :param batch: A batch; with its episodes, if it is normalized within groups
    :param normalize_advantage: Whether to normalize the advantages, over all timesteps or within each ``"group"``
    :param group_size: This many environments at a time have started from the same seed
    :param workers: The workers, whose advantages are normalized together; those of a group all belong to one of them
    :return: Advantages, shape ``(n_timesteps,)``
    """
    if normalize_advantage == "group":
        assert batch.episodes is not None
        advantages, returns = batch.advantages.cpu().numpy(), batch.returns.cpu().numpy()
        return th.from_numpy(normalized_within_groups(advantages, returns, batch.episodes, group_size)).to(batch.advantages)
    return workers.normalized(batch.advantages) if normalize_advantage else batch.advantages


def log_prob_weights(advantages: th.Tensor, discounts: th.Tensor | None, divisor: int) -> th.Tensor:
    r"""
    The weight of each log-probability in the estimate, :math:`w_t A_t / Z`.

    :param advantages: Advantages :math:`A_t`, shape ``(n_timesteps,)``
    :param discounts: :math:`w_t`, shape ``(n_timesteps,)``; ``None``: 1
    :param divisor: :math:`Z`, the number of timesteps or of episodes
    :return: Shape ``(n_timesteps,)``
    """
    return (advantages if discounts is None else discounts * advantages) / divisor


class Gradients(NamedTuple):
    """
    The losses of a batch, and their gradients.

    :param policy_loss: Minus the weighted sum of the log-probabilities
    :param entropy_loss: Minus the mean entropy
    :param value_loss: Mean squared error of the values (with a critic)
    :param log_probs: Log-probability of each action, shape ``(n_timesteps,)``
    :param values: Value of each observation (with a critic), shape ``(n_timesteps,)``
    :param actor: Gradient of the policy and entropy losses, for each parameter of the actor
    :param critic: Gradient of ``vf_coef`` times the value loss, for each parameter that reaches the values; empty
        without a critic
    """

    policy_loss: float
    entropy_loss: float
    value_loss: float
    log_probs: th.Tensor
    values: th.Tensor
    actor: list[th.Tensor]
    critic: list[th.Tensor]


def estimate_gradients(
    actor_critic: ActorCritic,
    batch: Batch,
    weights: th.Tensor,
    parameters: Parameters,
    ent_coef: float,
    vf_coef: float,
    n_total: int,
) -> Gradients:
    r"""
    The policy gradient estimate :math:`\sum_t w_t \nabla \log \pi(a_t|s_t)` (Williams, 1992; Sutton and Barto, 2018,
    sec. 13.3), as the gradient of a loss to descend, with the entropy bonus and the critic's squared error.

    :param actor_critic: The policy
    :param batch: The batch
    :param weights: Weight of each log-probability (advantages over the number of episodes or timesteps),
        shape ``(n_timesteps,)``
    :param parameters: The parameters; if ``parameters.value`` is empty, there is no value loss
    :param ent_coef: Coefficient of the entropy
    :param vf_coef: Coefficient of the value loss
    :param n_total: Number of timesteps that the means are over: of this batch, or of the batches of all workers, whose results
        are then to be added up
    :return: Losses and gradients
    """
    has_critic = len(parameters.value) > 0
    sums = np.zeros(3)
    log_probs, values = th.zeros_like(weights), th.zeros_like(weights)
    actor: list[th.Tensor] = []
    critic: list[th.Tensor] = []
    for piece in actor_critic.pieces(batch):
        rows = piece.rows
        if has_critic:
            piece_values, log_prob, entropy = actor_critic.evaluate(piece)
            values[rows] = piece_values.detach()
        else:
            log_prob, entropy = actor_critic.act(piece)
        policy_loss = -(weights[rows] * log_prob).sum()
        # If the entropy has no analytical form, minus the log-probability estimates it, as in A2C
        entropy_loss = (log_prob if entropy is None else -entropy).sum() / n_total
        value_loss = ((piece.returns - piece_values) ** 2).sum() / n_total if has_critic else th.zeros_like(policy_loss)
        _add_gradients(actor, policy_loss + ent_coef * entropy_loss, parameters.actor, retain_graph=has_critic)
        if has_critic:
            _add_gradients(critic, vf_coef * value_loss, parameters.value, retain_graph=False)
        log_probs[rows] = log_prob.detach()
        sums += th.stack((policy_loss.detach(), entropy_loss.detach(), value_loss.detach())).cpu().double().numpy()
    return Gradients(float(sums[0]), float(sums[1]), float(sums[2]), log_probs, values, actor, critic)


def _add_gradients(
    gradients: list[th.Tensor], loss: th.Tensor, parameters: Sequence[th.nn.Parameter], retain_graph: bool
) -> None:
    if not parameters:
        return
    grads = th.autograd.grad(loss, parameters, retain_graph=retain_graph, allow_unused=True, materialize_grads=True)
    parts = [grad.detach() for grad in grads]  # zeros of unused ones require gradients in older versions of PyTorch
    if not gradients:  # a second set might take much memory
        gradients += parts
        return
    for total, part in zip(gradients, parts, strict=True):
        total += part


def add_up(gradients: Gradients, workers: Alone) -> Gradients:
    """
    :param gradients: Losses and gradients of this worker's batch, each a part of a sum
    :param workers: The workers
    :return: Losses and gradients of all workers' batches; log-probabilities and values stay this worker's own
    """
    tensors = [*gradients.actor, *gradients.critic]
    policy_loss, entropy_loss, value_loss = workers.add_up_with(tensors, gradients[:3])
    return gradients._replace(policy_loss=policy_loss, entropy_loss=entropy_loss, value_loss=value_loss)


def check_losses(gradients: Gradients, batch: Batch) -> None:
    """
    :param gradients: Losses and gradients of a batch
    :param batch: The batch
    :raises ValueError: If a loss is not finite
    """
    losses = {"policy loss": gradients.policy_loss, "entropy loss": gradients.entropy_loss, "value loss": gradients.value_loss}
    name = next((name for name, loss in losses.items() if not math.isfinite(loss)), None)
    if name is None:
        return
    errors = (batch.returns - gradients.values) ** 2 if name == "value loss" else batch.returns
    parts = {"return": batch.returns, "advantage": batch.advantages, "log-probability": gradients.log_probs}
    for what, part in {**parts, "squared error of the value": errors}.items():
        where = _where(part, batch)
        if where is not None:
            raise not_finite(what, *where)
    raise ValueError(f"The {name} must be finite, got {losses[name]}.")


def _where(part: th.Tensor, batch: Batch) -> tuple[float, int, int] | None:
    """The first number that is not finite, its environment and its timestep."""
    finite = part.isfinite()
    if finite.all() or batch.episodes is None:
        return None
    index, episodes = int(finite.int().argmin()), batch.episodes
    return float(part[index]), int(episodes.env_ids[episodes.episode_ids[index]]), int(episodes.timesteps[index])


def check_weights(policy: ActorCriticPolicy) -> None:
    """
    :param policy: A policy that has been updated
    :raises ValueError: If the update has left weights that are not finite
    """
    for name, parameter in policy.named_parameters():
        if not parameter.isfinite().all():
            raise ValueError(f"The weights must be finite, got NaN or infinity in {name} after the update.")
