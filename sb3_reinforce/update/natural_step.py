r"""
The natural policy step: along :math:`F^{-1} g` instead of :math:`g`, to a given KL divergence (Kakade, 2001).
"""

import math
import warnings
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch as th
from torch.distributions import Distribution

from sb3_reinforce.actor_critic.actor_critic import ActorCritic, NoNaturalStepError
from sb3_reinforce.actor_critic.batch import Batch
from sb3_reinforce.actor_critic.parameters import Parameters
from sb3_reinforce.actor_critic.state import detached, evaluation_mode, forget_graphs, kept_buffers, restored_on_error
from sb3_reinforce.arguments import check_over_time, value_at
from sb3_reinforce.distributed.workers import ALONE, Alone
from sb3_reinforce.monte_carlo.returns import ROUNDING, are_alike
from sb3_reinforce.update.fisher import (
    SOLVER_NORM,
    Fisher,
    NoDirectionError,
    make_fisher,
    scaled_step,
    second_derivative_named,
    solve,
)
from sb3_reinforce.update.gradients import Gradients
from sb3_reinforce.update.kl import has_finite_support, is_nearly_certain, kl_divergence
from sb3_reinforce.update.policy_step import OptimizerStep, gradient_step

#: A step is shortened until its divergence is at most this multiple of its target (or the second number): on average, and
#: where actions are finitely many for every timestep of the batch. There the mean says little of a policy that is nearly
#: deterministic: one step can make it sure of a wrong action in a state that the batch has hardly seen. No other action is
#: drawn there any more, while a Gaussian comes back
WORST, LEAST_WORST = 50.0, 1e-3
MAX_TRIALS = 20
#: Unless ``sub_sampling_factor`` says otherwise, the Fisher information is that of fewer than twice this many timesteps. For
#: 256 environments whose episodes have 400 timesteps the whole training then takes less than a third of the time
OF_TIMESTEPS = 2**13
#: The divergences at which the curvature is compared with what it should be, the length that is tried where it is zero, the
#: largest one (so long a step needs a policy so sure that nothing is known of its curvature), and the relative difference that
#: is too much
TRIED_KL, TRIED_LENGTH, LONGEST, MISMATCH = (1e-3, 1e-4, 1e-5), 1e-2, 0.1, 0.2


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
    :param sub_sampling_factor: The equations are solved with the Fisher information of one timestep out of this many.
        ``None``: of :data:`OF_TIMESTEPS` at least, which also determine the length of the step
    """

    target_kl: float
    cg_max_steps: int
    cg_damping: float
    sub_sampling_factor: int | None


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

    def __init__(self, model: Any):
        super().__init__(model)
        # The layers of the policy that was tried: in a model from a file, those that it has at first
        self._tried = [*model.policy.modules()]

    def check(self) -> None:
        check_policy(self.model.actor_critic)
        if self.model.uses_critic:
            check_critic(self.model.actor_critic)

    def begin(self) -> None:
        if self._refusal() != "":
            check_second_derivative(self.model.actor_critic)
            self._keep_refusal("")
        self._begin_together()

    def _refusal(self) -> str | None:
        """
        The reason why this policy has no natural steps, empty if it has some; ``None`` if that was not tried. It is not tried
        again, as the outcome may depend on the weights, and a run must go on as it began.
        """
        return self.model._natural_refusal if self._tried == [*self.model.policy.modules()] else None

    def _keep_refusal(self, reason: str) -> None:
        self._tried, self.model._natural_refusal = [*self.model.policy.modules()], reason

    def _begin_together(self) -> None:
        model = self.model
        # A schedule may end at zero
        check_over_time("target_kl", model.target_kl, model._current_progress_remaining, 0)
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
        target_kl = value_at("target_kl", model.target_kl, model._current_progress_remaining, 0)
        norm = divergence = 0.0
        try:
            # Also with an entropy bonus: the bonus alone does not justify a step of full length
            self._check_reward_found()
            if model.normalize_advantage == "group":
                check_groups(weights, model.workers)
            else:
                share = check_advantages(batch, bool(model.normalize_advantage), model.workers)
                target_kl *= share**2 if model.uses_critic and model.reward_to_go else 1.0
            settings = Settings(target_kl, model.cg_max_steps, model.cg_damping, model.sub_sampling_factor)
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
        factor = settings.sub_sampling_factor
        of = batch if factor is not None else _part_of_large(batch, actor_critic, workers)
        fisher = sampled = make_fisher(actor_critic, of, parameters, workers)
        if factor is not None and factor > 1:  # `fisher`, of all timesteps, still measures how far the policy moves
            some = actor_critic.sub_sample(batch, factor, workers)
            sampled = make_fisher(actor_critic, some, fisher.parameters, workers, keep=True)
        of_parameter = dict(zip(parameters, gradient, strict=True))
        flat = [of_parameter[parameter].flatten() for parameter in fisher.parameters]
        if not any(part.any() for part in flat):
            raise NoDirectionError("The natural gradient needs a direction, got a policy gradient of zero.")
        direction = solve(sampled, th.cat(flat), settings.cg_max_steps, settings.cg_damping)
        step = scaled_step(fisher, direction, settings.target_kl)
    check_gain(float(th.cat(flat).dot(step)), weights, settings.target_kl, workers)
    return norm, _descend(actor_critic, batch, fisher, step, settings.target_kl, workers)


def _part_of_large(batch: Batch, actor_critic: ActorCritic, workers: Alone) -> Batch:
    n_total, _ = workers.totals(len(batch), 0)
    return batch if n_total < 2 * OF_TIMESTEPS else actor_critic.sub_sample(batch, n_total // OF_TIMESTEPS, workers)


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
                total = th.stack((divergences.sum(), divergences.new_tensor(len(batch))))
                workers.add_up([total])
                return float(total[0] / total[1])
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
    divergences = th.cat([th.stack(list(map(_of_timesteps, *parts))).sum(0) for parts in zip(before, after, strict=True)])
    return divergences.nan_to_num(nan=math.inf, posinf=math.inf)  # where PyTorch has been told to refuse nothing


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
            parameters = actor_critic.actor_parameters()
            fisher = make_fisher(actor_critic, batch, parameters, ALONE)
            if fisher.parameters:
                # gSDE takes no derivative of its deviation by the features, on purpose
                if not (getattr(policy, "use_sde", False) and not getattr(policy.action_dist, "learn_features", False)):
                    check_curvature(actor_critic, batch, fisher)
            elif parameters:
                raise NoNaturalStepError(
                    "`natural_gradient=True` needs a KL divergence that depends on the policy's parameters, got "
                    f"{type(policy).__name__}, whose does not."
                )
    finally:
        forget_graphs(policy)


def check_critic(actor_critic: ActorCritic) -> None:
    """
    :param actor_critic: The policy. If it has no output for a drawn observation, it is not checked
    :raises NoNaturalStepError: If the critic has no parameters of its own. Those that it shares belong to the actor, so the
        value loss would reach nothing
    """
    batch = actor_critic.drawn_batch()
    if batch is None:
        return
    actor, value = actor_critic.split(batch)
    if value and value <= actor:
        raise NoNaturalStepError(
            "`natural_gradient=True` needs a critic with parameters of its own, got "
            f"{type(actor_critic.policy).__name__}, which shares all of them with the actor."
        )


def check_curvature(actor_critic: ActorCritic, batch: Batch, fisher: Fisher) -> None:
    """
    Compare the Fisher information with the divergence that it is the curvature of, along a direction: derivatives that are cut
    off somewhere, or a divergence that is not smooth, give another matrix without a word.

    :param actor_critic: The policy
    :param batch: A few timesteps
    :param fisher: The Fisher information of these
    :raises NoNaturalStepError: If it is not the curvature, as far as float32 can tell
    """
    before = distributions_as_it_acts(actor_critic, batch)
    if all(map(is_nearly_certain, chain(*before))):  # the curvature is then what rounding leaves of larger numbers
        return
    generator = th.Generator().manual_seed(0)
    vector = th.cat([th.randn(p.numel(), generator=generator).to(p) for p in fisher.parameters])
    # As large as the solver's, for gradients may be clipped on their way
    curvature = float(vector.dot(fisher(SOLVER_NORM * vector))) / SOLVER_NORM

    def divergence_at(length: float) -> float:
        return _mean_divergence(actor_critic, batch, before, fisher, length * vector)

    if curvature <= 0.0:
        is_wrong = divergence_at(TRIED_LENGTH) > TRIED_KL[-1]
    else:
        measured = [_measured_curvature(divergence_at, kl, math.sqrt(2.0 * kl / curvature)) for kl in TRIED_KL]
        # Where the divergence is not quadratic, other lengths find other curvatures, and nothing is known
        is_known = max(measured) - min(measured) < MISMATCH * min(measured) and not any(map(math.isnan, measured))
        is_wrong = is_known and not any(abs(each - curvature) <= MISMATCH * curvature for each in measured)
    if is_wrong:
        raise NoNaturalStepError(
            "`natural_gradient=True` needs a KL divergence whose second derivative PyTorch finds, got "
            f"{type(actor_critic.policy).__name__}, whose divergence has another curvature than {curvature:.3g}."
        )


def _measured_curvature(divergence_at: Callable[[float], float], target_kl: float, length: float) -> float:
    """
    :param divergence_at: The divergence after a step of a length
    :param target_kl: About how large the divergence should be
    :param length: The length that is tried first
    :return: The curvature that the divergence has up to there; NaN if that is too far
    """
    for _ in range(MAX_TRIALS):
        divergence = divergence_at(length)
        if length <= LONGEST and 0.5 * target_kl <= divergence <= 2.0 * target_kl:
            return 2.0 * divergence / length**2
        # To second order the divergence grows with the square of the length
        factor = math.sqrt(target_kl / divergence) if divergence > 0.0 else 10.0
        length *= min(max(factor, 0.1), 10.0)
    return math.nan


def _mean_divergence(
    actor_critic: ActorCritic, batch: Batch, before: list[list[Distribution]], fisher: Fisher, step: th.Tensor
) -> float:
    """The divergence of the policy at two points, on both sides of where it is, so that the third derivative has no part."""
    divergences = []
    kept = [parameter.detach().clone() for parameter in fisher.parameters]
    parts = step.split([parameter.numel() for parameter in fisher.parameters])
    try:
        for sign in (1.0, -1.0):
            with th.no_grad():
                for parameter, old, part in zip(fisher.parameters, kept, parts, strict=True):
                    parameter.copy_(old + sign * part.view_as(parameter))
            divergences.append(float(divergences_from(before, actor_critic, batch).mean()))
    finally:
        with th.no_grad():
            for parameter, old in zip(fisher.parameters, kept, strict=True):
                parameter.copy_(old)
    return sum(divergences) / 2


def check_groups(weights: th.Tensor, workers: Alone) -> None:
    """
    :param weights: Weights of advantages that are normalized within groups: exactly zero where these do not differ
    :param workers: The workers
    :raises NoDirectionError: If the advantages differ within no group
    """
    if not any(workers.gather(bool(weights.any()))):
        raise NoDirectionError("The natural gradient needs a direction: the advantages must differ within a group.")


def check_advantages(batch: Batch, normalize_advantage: bool, workers: Alone) -> float:
    r"""
    The natural step is as long for a small gradient as for a large one, so rounding errors must not pass for advantages, and
    where the returns :math:`G` are alike, the errors of a critic should not. If the advantages :math:`A` vary more than the
    returns, the critic has added the rest: at most :math:`\mathrm{Var}\,G / \mathrm{Var}\,A` of their variance tells better
    actions from worse ones. A step along a signal with noise gains most if its length is multiplied by the signal's share of
    the variance (Wiener, 1949).

    :param batch: A batch with its returns, and with advantages that are not normalized
    :param normalize_advantage: Whether their mean will be subtracted
    :param workers: The workers; a nonzero advantage in one of them is enough
    :return: This share, if the returns are alike, and at most 1
    :raises NoDirectionError: If the advantages are all zero, up to rounding
    """
    of_advantages, of_returns = (workers.moments(array.cpu().numpy()) for array in (batch.advantages, batch.returns))
    if normalize_advantage and of_advantages.n > 1:
        size = math.sqrt(of_advantages.variance)
    else:
        size = of_advantages.root_mean_square
    if size <= ROUNDING * of_returns.root_mean_square:
        what = "differ" if normalize_advantage else "be other than zero"
        raise NoDirectionError(
            f"The natural gradient needs a direction: the advantages must {what}, got a deviation of {size} for returns of "
            f"about {of_returns.root_mean_square}."
        )
    if not are_alike(float(of_returns.mean), math.sqrt(of_returns.variance)):
        return 1.0
    return float(of_returns.deviation / max(of_returns.deviation, of_advantages.deviation, np.finfo(float).tiny))


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
