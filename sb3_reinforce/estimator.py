"""
The gradient estimate of REINFORCE: gradients of a policy's losses on a rollout, and the step along them.

Everything here takes a batch of whole rollouts in pieces that bound the memory; the sums over the pieces are exact.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from tempfile import TemporaryFile
from typing import IO, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import get_action_dim, get_flattened_obs_dim
from stable_baselines3.common.type_aliases import PyTorchObs, RolloutBufferSamples, TensorDict

from sb3_reinforce.buffers import EpisodeRolloutBuffer, EpisodeRolloutBufferSamples
from sb3_reinforce.checks import not_finite
from sb3_reinforce.distributed import ALONE, Workers
from sb3_reinforce.policies import has_sb3_forward

#: A forward pass takes at most this many timesteps, and this many numbers (of observations and action distributions), at once
MAX_TIMESTEPS = 2**15
MAX_NUMBERS = 2**23
#: How much a value of a discrete observation and a logit weigh in it. A one-hot vector is there as int64 and as float32, and
#: pieces of this size keep 60,000 discrete observations within a tenth of the peak memory of A2C; a logit is there as such,
#: normalized, as a probability, and with its gradients
_PER_ONE_HOT, _PER_LOGIT = 12, 8
#: Copies of more bytes than this go into a temporary file: with 60,000 discrete observations they would take a sixth of all
#: memory
MAX_COPIED = 24 * 2**20


def trainable(parameters: Sequence[th.nn.Parameter]) -> list[th.nn.Parameter]:
    """
    :param parameters: Parameters
    :return: Those of them that are not frozen
    """
    return [parameter for parameter in parameters if parameter.requires_grad]


def log_prob_weights(
    advantages: th.Tensor,
    discounts: th.Tensor | None,
    divisor: int,
    normalize_advantage: bool,
    workers: Workers = ALONE,
) -> th.Tensor:
    r"""
    The weight of each log-probability in the estimate, :math:`w_t A_t / Z`.

    :param advantages: Advantages :math:`A_t`, shape ``(n_timesteps,)``
    :param discounts: :math:`w_t`, shape ``(n_timesteps,)``; ``None``: 1
    :param divisor: :math:`Z`, the number of timesteps or of episodes
    :param normalize_advantage: Whether to normalize the advantages first
    :param workers: The workers, whose advantages are normalized together
    :return: Shape ``(n_timesteps,)``
    """
    if normalize_advantage and not workers.alone:
        moments = workers.moments(advantages.cpu().numpy())
        if moments.n > 1:
            deviation = float(moments.deviation / (moments.n - 1)) ** 0.5
            advantages = (advantages - float(moments.mean)) / (deviation + 1e-8)
    elif normalize_advantage and len(advantages) > 1:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
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
    policy: ActorCriticPolicy,
    observations: PyTorchObs,
    actions: th.Tensor,
    weights: th.Tensor,
    returns: th.Tensor,
    ent_coef: float,
    vf_coef: float,
    actor_parameters: Sequence[th.nn.Parameter],
    value_parameters: Sequence[th.nn.Parameter],
    n_total: int,
) -> Gradients:
    r"""
    The policy gradient estimate :math:`\sum_t w_t \nabla \log \pi(a_t|s_t)` (Williams, 1992; Sutton and Barto, 2018,
    sec. 13.3), as the gradient of a loss to descend, with the entropy bonus and the critic's squared error.

    :param policy: The policy
    :param observations: Observations of the batch
    :param actions: Actions of the batch
    :param weights: Weight of each log-probability (advantages over the number of episodes or timesteps),
        shape ``(n_timesteps,)``
    :param returns: Targets of the critic, shape ``(n_timesteps,)``
    :param ent_coef: Coefficient of the entropy
    :param vf_coef: Coefficient of the value loss
    :param actor_parameters: Parameters that reach the log-probabilities
    :param value_parameters: Parameters that reach the values, those shared with the actor too; empty: no value loss
    :param n_total: Number of timesteps that the means are over: of this batch, or of this one and those of other workers, to
        whose sums it is then to be added
    :return: Losses and gradients
    """
    n_timesteps = len(weights)
    has_critic = len(value_parameters) > 0
    sums = np.zeros(3)
    log_probs, values = th.zeros_like(weights), th.zeros_like(weights)
    actor: list[th.Tensor] = []
    critic: list[th.Tensor] = []
    for rows in pieces(policy, n_timesteps):
        if has_critic or not has_sb3_forward(policy):
            piece_values, log_prob, entropy = policy.evaluate_actions(take(observations, rows), actions[rows])
            piece_values = piece_values.flatten()
        else:
            distribution = policy.get_distribution(take(observations, rows))
            log_prob, entropy, piece_values = distribution.log_prob(actions[rows]), distribution.entropy(), values[rows]
        policy_loss = -(weights[rows] * log_prob).sum()
        # Where the entropy has no analytical form, minus the log-probability estimates it, as in A2C
        entropy_loss = (log_prob if entropy is None else -entropy).sum() / n_total
        value_loss = ((returns[rows] - piece_values) ** 2).sum() / n_total if has_critic else th.zeros_like(policy_loss)
        _add_gradients(actor, policy_loss + ent_coef * entropy_loss, actor_parameters, retain_graph=has_critic)
        if has_critic:
            _add_gradients(critic, vf_coef * value_loss, value_parameters, retain_graph=False)
        log_probs[rows], values[rows] = log_prob.detach(), piece_values.detach()
        sums += th.stack((policy_loss.detach(), entropy_loss.detach(), value_loss.detach())).cpu().double().numpy()
    return Gradients(float(sums[0]), float(sums[1]), float(sums[2]), log_probs, values, actor, critic)


def _add_gradients(
    gradients: list[th.Tensor], loss: th.Tensor, parameters: Sequence[th.nn.Parameter], retain_graph: bool
) -> None:
    if not parameters:
        return
    parts = th.autograd.grad(loss, parameters, retain_graph=retain_graph, allow_unused=True, materialize_grads=True)
    if not gradients:  # no second set of what may be large
        gradients += parts
        return
    for total, part in zip(gradients, parts, strict=True):
        total += part


def add_up(gradients: Gradients, workers: Workers) -> Gradients:
    """
    :param gradients: Losses and gradients of this worker's batch, each a part of a sum
    :param workers: The workers
    :return: Those of all workers' batches; log-probabilities and values are left this worker's own
    """
    if workers.alone:
        return gradients
    losses = th.tensor([gradients.policy_loss, gradients.entropy_loss, gradients.value_loss])
    losses = losses.to(gradients.log_probs)
    workers.add_up([*gradients.actor, *gradients.critic, losses])
    policy_loss, entropy_loss, value_loss = losses.tolist()
    return gradients._replace(policy_loss=policy_loss, entropy_loss=entropy_loss, value_loss=value_loss)


def clip_by_norm(gradients: Sequence[th.Tensor], max_norm: float) -> th.Tensor:
    """
    Scale gradients in place so that their common norm is at most ``max_norm``. A third of the time of PyTorch's own
    function for the few small gradients of an MLP, as it does not sort them by device first.

    :param gradients: The gradients
    :param max_norm: The largest norm
    :return: Their norm before, a scalar
    """
    norm = th.linalg.vector_norm(th.stack([th.linalg.vector_norm(gradient) for gradient in gradients]))
    scale = th.clamp(max_norm / (norm + 1e-6), max=1.0)
    for gradient in gradients:
        gradient.mul_(scale)
    return norm


def gradient_step(
    optimizer: th.optim.Optimizer,
    gradients: Gradients,
    actor_parameters: Sequence[th.nn.Parameter],
    value_parameters: Sequence[th.nn.Parameter],
    max_grad_norm: float,
) -> float:
    """
    Descend the losses. The gradients of actor and critic are clipped each by itself, so that the scale of the critic's
    never shortens the policy's step.

    :param optimizer: The optimizer of the policy
    :param gradients: Gradients of the losses, which are clipped in place
    :param actor_parameters: The parameters of ``gradients.actor``
    :param value_parameters: The parameters of ``gradients.critic``; empty: the critic does not move
    :param max_grad_norm: The largest norm of each gradient
    :return: Norm of the actor's gradient before clipping
    :raises ValueError: If a gradient is not finite
    """
    grad_norm, critic_norm = (
        float(clip_by_norm(part, max_grad_norm)) if part else 0.0 for part in (gradients.actor, gradients.critic)
    )
    for name, norm in (("policy", grad_norm), ("critic", critic_norm)):
        if not math.isfinite(norm):
            raise ValueError(f"The gradient of the {name} must be finite, got a norm of {norm}.")
    optimizer.zero_grad()
    for parameter, gradient in zip(actor_parameters, gradients.actor, strict=True):
        parameter.grad = gradient
    if value_parameters:
        for parameter, gradient in zip(value_parameters, gradients.critic, strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
    optimizer.step()
    return grad_norm


def evaluate_log_probs(policy: ActorCriticPolicy, observations: PyTorchObs, actions: th.Tensor) -> th.Tensor:
    """
    :param policy: The policy
    :param observations: Observations of the batch
    :param actions: Actions of the batch
    :return: Log-probability of each action, shape ``(n_timesteps,)``
    """
    results = []
    with th.no_grad():
        for rows in pieces(policy, len(actions)):
            piece = take(observations, rows)
            if has_sb3_forward(policy):
                results.append(policy.get_distribution(piece).log_prob(actions[rows]))
            else:
                results.append(policy.evaluate_actions(piece, actions[rows])[1])
    return th.cat(results)


def check_update(
    policy: ActorCriticPolicy,
    observations: PyTorchObs,
    actions: th.Tensor,
    old_log_probs: th.Tensor,
    workers: Workers = ALONE,
) -> float:
    """
    How far an update moved the policy, measured after it (http://joschu.net/blog/kl-approx.html).

    :param policy: The policy
    :param observations: Observations of the batch
    :param actions: Actions of the batch
    :param old_log_probs: Log-probabilities of the actions before the update, shape ``(n_timesteps,)``
    :param workers: The workers, over whose timesteps the mean is taken
    :return: Estimate of the KL divergence of the new policy from the old one
    :raises ValueError: If the update has left weights that are not finite
    """
    for name, parameter in policy.named_parameters():
        if not parameter.isfinite().all():
            raise ValueError(f"The weights must be finite, got NaN or infinity in {name} after the update.")
    log_ratio = evaluate_log_probs(policy, observations, actions) - old_log_probs
    terms = th.exp(log_ratio) - 1 - log_ratio
    return float(terms.mean() if workers.alone else workers.moments(terms.cpu().numpy()).mean)


def evaluate_values(policy: ActorCriticPolicy, observations: PyTorchObs, n_timesteps: int) -> th.Tensor:
    """
    :param policy: The policy
    :param observations: Observations
    :param n_timesteps: Number of observations
    :return: Values of the observations, shape ``(n_timesteps,)``; for a policy with methods of its own those that
        ``policy.forward`` returns
    """
    value_function = policy.predict_values if has_sb3_forward(policy) else (lambda obs: policy(obs)[1])
    with th.no_grad():
        results = [value_function(take(observations, rows)).flatten() for rows in pieces(policy, n_timesteps)]
    return th.cat(results)


def check_losses(
    gradients: Gradients, batch: EpisodeRolloutBufferSamples | RolloutBufferSamples, buffer: RolloutBuffer
) -> None:
    """
    :param gradients: Losses and gradients of a batch
    :param batch: The batch
    :param buffer: The buffer that it is the whole of
    :raises ValueError: If a loss is not finite
    """
    losses = {"policy loss": gradients.policy_loss, "entropy loss": gradients.entropy_loss, "value loss": gradients.value_loss}
    name = next((name for name, loss in losses.items() if not math.isfinite(loss)), None)
    if name is None:
        return
    errors = (batch.returns - gradients.values) ** 2 if name == "value loss" else batch.returns
    parts = {"return": batch.returns, "advantage": batch.advantages, "log-probability": gradients.log_probs}
    for what, part in {**parts, "squared error of the value": errors}.items():
        where = _where(part, buffer)
        if where is not None:
            raise not_finite(what, *where)
    raise ValueError(f"The {name} must be finite, got {losses[name]}.")


def _where(part: th.Tensor, buffer: RolloutBuffer) -> tuple[float, int, int] | None:
    """The first number that is not finite, its environment and its timestep."""
    finite = part.isfinite()
    if finite.all() or not isinstance(buffer, EpisodeRolloutBuffer):
        return None
    index = int(finite.int().argmin())
    env_id = int(buffer.episodes.env_ids[buffer.episode_ids[index]])
    return float(part[index]), env_id, int(buffer.timesteps[index])


def pieces(policy: ActorCriticPolicy, n_timesteps: int) -> Iterator[slice]:
    """
    :param policy: The policy that the batch is put through
    :param n_timesteps: Number of timesteps
    :return: Slices that divide the batch into pieces of bounded size
    """
    size = piece_size(policy)
    return (slice(first, min(first + size, n_timesteps)) for first in range(0, n_timesteps, size))


def piece_size(policy: ActorCriticPolicy) -> int:
    """
    :param policy: A policy
    :return: The number of timesteps that it is given at once
    """
    numbers = observation_numbers(policy.observation_space) + _PER_LOGIT * _n_outputs(policy.action_space)
    return max(1, min(MAX_TIMESTEPS, MAX_NUMBERS // max(numbers, 1)))


def observation_numbers(space: spaces.Space) -> int:
    """
    :param space: An observation space
    :return: What an observation takes on its way into the network, where a discrete one has a number for each of its values
    """
    if isinstance(space, spaces.Dict):
        return sum(observation_numbers(part) for part in space.spaces.values())
    one_hot = isinstance(space, spaces.Discrete | spaces.MultiDiscrete)
    return get_flattened_obs_dim(space) * (_PER_ONE_HOT if one_hot else 1)


def _n_outputs(space: spaces.Space) -> int:
    """The number of parameters of the distribution that a network has to give (without a common log_std)."""
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return int(space.nvec.sum())
    return get_action_dim(space)


def take(observations: th.Tensor | TensorDict, rows: slice | th.Tensor) -> th.Tensor | TensorDict:
    """
    :param observations: Observations of a batch
    :param rows: Which of them
    :return: Those observations
    """
    if isinstance(observations, dict):
        return {key: array[rows] for key, array in observations.items()}
    return observations[rows]


@contextmanager
def all_or_nothing(policy: ActorCriticPolicy) -> Iterator[None]:
    """
    Restore the weights and the state of the optimizer if the update inside does not come to its end.

    :param policy: The policy
    """
    state = policy.optimizer.state
    before = {parameter: dict(values) for parameter, values in state.items()}
    of_optimizer = [value for values in before.values() for value in values.values() if isinstance(value, th.Tensor)]
    try:
        with restored_on_error([*policy.parameters(), *policy.buffers(), *of_optimizer]):
            yield
    except BaseException:
        state.clear()
        state.update(before)
        raise


@contextmanager
def restored_on_error(tensors: Sequence[th.Tensor]) -> Iterator[None]:
    """
    Restore tensors to what they are now if what is inside does not come to its end.

    :param tensors: The tensors
    """
    large = sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor.device.type == "cpu") > MAX_COPIED
    with TemporaryFile() if large else nullcontext() as file:
        kept = [_write(tensor, file) for tensor in tensors]
        try:
            yield
        except BaseException:
            if file is not None:
                file.seek(0)
            with th.no_grad():
                for tensor, before in zip(tensors, kept, strict=True):
                    tensor.copy_(_read(tensor, file) if before is None else before)
            raise


def _write(tensor: th.Tensor, file: IO[bytes] | None) -> th.Tensor | None:
    """A copy, unless it goes into the file."""
    if file is None or tensor.device.type != "cpu":
        return tensor.detach().clone()
    file.write(tensor.detach().contiguous().view(-1).view(th.uint8).numpy().data)
    return None


def _read(tensor: th.Tensor, file: IO[bytes] | None) -> th.Tensor:
    assert file is not None
    content = bytearray(file.read(tensor.numel() * tensor.element_size()))
    return th.frombuffer(content, dtype=tensor.dtype).view(tensor.shape) if content else tensor
