r"""
The natural policy step: along :math:`F^{-1} g` instead of :math:`g`, to a given KL divergence (Kakade, 2001).
"""

import math
import warnings
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
import torch as th
from torch.distributions import Distribution

from sb3_reinforce.actor_critic.actor_critic import ActorCritic, NoNaturalStepError
from sb3_reinforce.actor_critic.batch import Batch
from sb3_reinforce.actor_critic.parameters import Parameters
from sb3_reinforce.actor_critic.state import detached, evaluation_mode, forget_graphs, kept_buffers, restored_on_error
from sb3_reinforce.arguments import check_number
from sb3_reinforce.distributed.workers import ALONE, Alone
from sb3_reinforce.update.fisher import Fisher, NoDirectionError, scaled_step, second_derivative_named, solve
from sb3_reinforce.update.gradients import Gradients
from sb3_reinforce.update.kl import has_finite_support, kl_divergence
from sb3_reinforce.update.policy_step import OptimizerStep, gradient_step
from sb3_reinforce.update.return_units import ROUNDING

#: A step is shortened until its divergence is at most this multiple of its target (or the second number): on average, and
#: where actions are finitely many for every timestep of the batch. There the mean says little of a policy that is nearly
#: deterministic: one step can make it sure of a wrong action in a state that the batch has hardly seen. No other action is
#: drawn there any more, while a Gaussian comes back
WORST, LEAST_WORST = 50.0, 1e-3
MAX_TRIALS = 20


class TooFarError(ValueError):
    """
    No step along a direction keeps the policy near itself.

    :param message: How far it would have gone
    """

    def __init__(self, message: str):
        super().__init__(message)


class Settings(NamedTuple):
    """
    How a natural step is computed, see :class:`sb3_reinforce.REINFORCE`.

    :param target_kl: The second-order KL divergence of the step, averaged over all timesteps
    :param cg_max_steps: Largest number of steps of the conjugate gradient method
    :param cg_damping: Multiple of the identity that is added to the Fisher information when solving
    :param sub_sampling_factor: The equations are solved with the Fisher information of one timestep out of this many
    """

    target_kl: float
    cg_max_steps: int
    cg_damping: float
    sub_sampling_factor: int


class NaturalStep(OptimizerStep):
    """
    Moves the actor along its natural gradient, if the gradient has a direction, and the critic with the policy's optimizer.

    :param model: The model that it belongs to
    """

    # The value loss would move the policy through shared layers, far beyond the divergence
    moves_shared_layers = False
    #: Whether updates without a direction are worth a warning
    warns_of_direction = True

    _warned_of_direction = False
    _warned_of_undoing = False
    # Whether the workers have told each other if they have found a reward
    _begun = False

    def check(self) -> None:
        check_policy(self.model.actor_critic)

    def begin(self) -> None:
        model = self.model
        check_second_derivative(model.actor_critic)
        self._begin_together()

    def _begin_together(self) -> None:
        model = self.model
        for progress_remaining in (1.0, model._current_progress_remaining, 0.0):
            self._target_kl_at(progress_remaining)
        self._share_found()

    def _share_found(self) -> None:
        self.model._reward_found = any(self.model.workers.gather(self.model._reward_found))
        self._begun = True

    def take(self, gradients: Gradients, batch: Batch, weights: th.Tensor, parameters: Parameters) -> dict[str, float]:
        if not parameters.actor:
            return super().take(gradients, batch, weights, parameters)
        logs = self._move_actor(gradients.actor, batch, weights, parameters.actor)
        # The optimizer moves the parameters that the critic's loss reaches, and skips those without a gradient
        optimizer, joint = self.model.policy.optimizer, self.joint(parameters)
        gradient_step(optimizer, gradients._replace(actor=[]), [], joint, self.model.max_grad_norm)
        return logs

    def _move_actor(
        self, gradient: list[th.Tensor], batch: Batch, weights: th.Tensor, parameters: list[th.nn.Parameter]
    ) -> dict[str, float]:
        model = self.model
        target_kl = self._target_kl_at(model._current_progress_remaining)
        settings = Settings(target_kl, model.cg_max_steps, model.cg_damping, model.sub_sampling_factor)
        norm = divergence = 0.0
        try:
            # Also with an entropy bonus: the bonus alone does not justify a step of full length
            self._check_reward_found()
            check_advantages(batch, model.normalize_advantage, model.workers)
            norm, divergence = natural_step(model.actor_critic, batch, weights, gradient, parameters, settings, model.workers)
        except NoDirectionError as error:
            # A solved task has such batches, and so has a task whose reward is not found yet: the next batch may be different
            if self.warns_of_direction and not self._warned_of_direction:
                warnings.warn(f"{error} No natural step is made in such updates.", UserWarning, stacklevel=2)
                self._warned_of_direction = True
        except TooFarError as error:
            if not self._warned_of_undoing:
                warnings.warn(str(error), UserWarning, stacklevel=2)
                self._warned_of_undoing = True
        return {"grad_norm": norm, "kl_divergence": divergence, "target_kl": target_kl}

    def _target_kl_at(self, progress_remaining: float) -> float:
        target_kl = self.model.target_kl
        if callable(target_kl):
            target_kl = target_kl(progress_remaining)
        if isinstance(target_kl, (th.Tensor, np.ndarray)) and math.prod(target_kl.shape) == 1:
            target_kl = target_kl.item()
        check_number("target_kl", target_kl, 0)  # a schedule may end at zero
        return float(target_kl)

    def _check_reward_found(self) -> None:
        """
        :raises NoDirectionError: If no reward other than zero has ever been recorded, so that the advantages are only errors
            of the critic
        """
        model = self.model
        if not self._begun:  # this kind of step was chosen during learning
            self._share_found()
        if not model._reward_found:
            # SB3's own buffer has the critic's value in the last reward of a truncated episode, which then counts as found
            model._reward_found = any(model.workers.gather(bool(np.any(model.rollout_buffer.rewards))))
        if not model._reward_found:
            raise NoDirectionError("The natural gradient needs a direction: all rewards so far were zero.")


def natural_step(
    actor_critic: ActorCritic,
    batch: Batch,
    weights: th.Tensor,
    gradient: Sequence[th.Tensor],
    parameters: Sequence[th.nn.Parameter],
    settings: Settings,
    workers: Alone,
) -> tuple[float, float]:
    r"""
    Descend a loss along its natural gradient (Kakade, 2001): :math:`\theta \leftarrow \theta - \alpha F^{-1} g`.

    :param actor_critic: The policy
    :param batch: The batch
    :param weights: Weights of the log-probabilities in the gradient, shape ``(n_timesteps,)``
    :param gradient: Gradient of the loss, for each parameter
    :param parameters: The parameters, none of them frozen
    :param settings: How the step is computed
    :param workers: The workers, each of which has a part of the batch, and the gradient of the whole batch
    :return: Norm of the gradient, and KL divergence of the policy from the one before, averaged over the timesteps
    :raises NoDirectionError: If the gradient is zero, up to rounding, or the policy does not change along it
    :raises TooFarError: If no fraction of the step keeps the divergence near its target
    :raises ValueError: If the gradient or the step is not finite. After any of these errors the weights are unchanged
    """
    # In float64, which not every device has
    norm = float(th.linalg.vector_norm(th.cat([part.flatten() for part in gradient]).cpu().double()))
    if not math.isfinite(norm):
        raise ValueError(f"The gradient of the policy must be finite, got a norm of {norm}.")
    with kept_buffers(actor_critic.policy), second_derivative_named(actor_critic.policy):
        fisher = sampled = Fisher(actor_critic, batch, parameters, workers)
        if settings.sub_sampling_factor > 1:  # `fisher`, of all timesteps, still measures how far the policy moves
            some = actor_critic.sub_sample(batch, settings.sub_sampling_factor, workers)
            sampled = Fisher(actor_critic, some, fisher.parameters, workers, keep=True)
        of_parameter = dict(zip(parameters, gradient, strict=True))
        flat = [of_parameter[parameter].flatten() for parameter in fisher.parameters]
        if not any(part.any() for part in flat):
            raise NoDirectionError("The natural gradient needs a direction, got a policy gradient of zero.")
        direction = solve(sampled, th.cat(flat), settings.cg_max_steps, settings.cg_damping)
        step = scaled_step(fisher, direction, settings.target_kl)
    check_gain(float(th.cat(flat).dot(step)), weights, settings.target_kl, workers)
    return norm, _descend(actor_critic, batch, fisher, step, settings.target_kl, workers)


def _descend(
    actor_critic: ActorCritic, batch: Batch, fisher: Fisher, step: th.Tensor, target_kl: float, workers: Alone
) -> float:
    """Subtract a step from the parameters, shortened if it goes too far; returns the divergence."""
    before = distributions_as_it_acts(actor_critic, batch)
    parts = step.split([parameter.numel() for parameter in fisher.parameters])
    most = max(WORST * target_kl, LEAST_WORST)
    furthest = th.max if all(map(has_finite_support, chain(*before))) else th.mean
    taken, fraction = 0.0, 1.0
    with restored_on_error(fisher.parameters):
        for _ in range(MAX_TRIALS):
            with th.no_grad():
                for parameter, part in zip(fisher.parameters, parts, strict=True):
                    parameter.sub_((fraction - taken) * part.view_as(parameter))
            taken = fraction
            divergences = divergences_from(before, actor_critic, batch)
            worst = workers.gather(float(furthest(divergences)))
            if all(each <= most for each in worst):
                total = divergences.sum().view(1)
                workers.add_up([total])
                return float(total) / fisher.n_timesteps
            # To second order the divergence grows with the square of the length
            fraction *= max(0.1, 0.9 * math.sqrt(most / max(worst))) if math.isfinite(sum(worst)) else 0.1
        raise TooFarError(
            f"A natural step of any length would have moved the policy too far, by a KL divergence of {max(worst):.3g} with "
            f"`target_kl` at {target_kl:.3g}, and was left out."
        )


def distributions_as_it_acts(actor_critic: ActorCritic, batch: Batch) -> list[list[Distribution]]:
    """
    :param actor_critic: The policy
    :param batch: A batch
    :return: The distributions of all timesteps' actions, piece by piece, without dropout and the like
    """
    with evaluation_mode(actor_critic.policy), th.no_grad():
        return [[detached(one) for one in actor_critic.distributions(piece)] for piece in actor_critic.pieces(batch)]


def divergences_from(before: Sequence[list[Distribution]], actor_critic: ActorCritic, batch: Batch) -> th.Tensor:
    """
    :param before: The distributions that the policy had
    :param actor_critic: The policy
    :param batch: The batch
    :return: The KL divergence of the policy from these distributions, summed over the dimensions of an action, shape
        ``(n_timesteps,)``
    """
    try:
        after = distributions_as_it_acts(actor_critic, batch)
    except ValueError:  # PyTorch refuses parameters out of range, such as a deviation of zero
        return th.full((1,), math.inf)
    return th.cat([th.stack(list(map(_of_timesteps, *parts))).sum(0) for parts in zip(before, after, strict=True)])


def _of_timesteps(old: Distribution, new: Distribution) -> th.Tensor:
    divergence = kl_divergence(old, new)
    return divergence.flatten(1).sum(1) if divergence.dim() > 1 else divergence


def check_policy(actor_critic: ActorCritic) -> None:
    """
    :param actor_critic: The policy. If it has no output for a drawn observation, it is not checked
    :raises NoNaturalStepError: If the KL divergence between its distributions is not known
    """
    batch = actor_critic.drawn_batch()
    if batch is None:
        return
    with evaluation_mode(actor_critic.policy), th.no_grad():
        for distribution in actor_critic.distributions(batch):
            try:
                kl_divergence(distribution, distribution)
            except NotImplementedError as error:
                raise NoNaturalStepError(
                    "`natural_gradient=True` needs a distribution with a KL divergence in `torch.distributions`, "
                    f"got {type(distribution).__name__} of {type(actor_critic.policy).__name__}."
                ) from error


def check_second_derivative(actor_critic: ActorCritic) -> None:
    """
    :param actor_critic: The policy. If it has no output for a drawn observation, it is not checked before its first step
    :raises NoNaturalStepError: If its distribution cannot be differentiated twice by the actor's parameters
    """
    policy, batch = actor_critic.policy, actor_critic.drawn_batch()
    if batch is None:
        return
    try:
        with evaluation_mode(policy), th.enable_grad(), second_derivative_named(policy):
            fisher = Fisher(actor_critic, batch, actor_critic.actor_parameters(), ALONE)
            if fisher.parameters:
                fisher(th.cat([th.ones_like(parameter).flatten() for parameter in fisher.parameters]))
    finally:
        forget_graphs(policy)


def check_advantages(batch: Batch, normalize_advantage: bool, workers: Alone) -> None:
    """
    The natural step is as long for a small gradient as for a large one, so rounding errors must not pass for advantages.

    :param batch: A batch with its returns, and with advantages that are not normalized
    :param normalize_advantage: Whether their mean will be subtracted
    :param workers: The workers; a nonzero advantage in one of them is enough
    :raises NoDirectionError: If the advantages are all zero, up to rounding
    """
    of_advantages, of_returns = (workers.moments(array.cpu().numpy()) for array in (batch.advantages, batch.returns))
    if normalize_advantage and of_advantages.n > 1:
        size = math.sqrt(of_advantages.deviation / of_advantages.n)
    else:
        size = of_advantages.root_mean_square
    if size <= ROUNDING * of_returns.root_mean_square:
        what = "differ" if normalize_advantage else "be other than zero"
        raise NoDirectionError(
            f"The natural gradient needs a direction: the advantages must {what}, got a deviation of {size} for returns of "
            f"about {of_returns.root_mean_square}."
        )


def check_gain(gain: float, weights: th.Tensor, target_kl: float, workers: Alone) -> None:
    r"""
    Along the step :math:`s` the objective rises by :math:`\sum_t w_t x_t` with :math:`x_t = s^\top \nabla \log \pi(a_t|s_t)`,
    whose mean square under the policy is :math:`s^\top F s`, twice the divergence. If the policy is nearly sure of its
    actions, the terms cancel: without a rare action in the batch only rounding errors are left, and a step of full length
    would point anywhere.

    :param gain: The amount by which the loss falls along the step, to first order
    :param weights: :math:`w_t`, shape ``(n_timesteps,)``
    :param target_kl: Divergence of the step
    :param workers: The workers, over whose timesteps the sum runs
    :raises NoDirectionError: If the sum is zero, up to rounding
    """
    of_weights = workers.moments(weights.cpu().numpy())
    most = of_weights.n * of_weights.root_mean_square * math.sqrt(2.0 * target_kl)
    if not gain >= ROUNDING * most:  # also NaN
        raise NoDirectionError(
            f"The natural gradient needs a direction, got one along which the objective rises by {gain:.3g}, a rounding error "
            f"beside the {most:.3g} that it could."
        )
