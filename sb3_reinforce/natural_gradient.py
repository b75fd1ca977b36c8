r"""
The natural policy gradient: a step along :math:`F^{-1} g` instead of :math:`g`.

:math:`F`, the Fisher information of the policy averaged over the batch's timesteps, is the Hessian of the KL divergence
between the policy and its neighbours. It is never formed: the conjugate gradient method needs its products with vectors
alone, which are the derivative of a derivative.

Papers: Kakade (2001), "A Natural Policy Gradient"; Schulman et al. (2015), https://arxiv.org/abs/1502.05477, appendix C,
for the conjugate gradient method and the step's size (without that paper's surrogate objective and line search).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch as th
from sb3_contrib.common.utils import conjugate_gradient_solver, flat_grad
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.type_aliases import PyTorchObs
from torch.distributions import Distribution
from torch.nn.attention import SDPBackend, sdpa_kernel

from sb3_reinforce.distributed import ALONE, Workers
from sb3_reinforce.divergence import action_laws, kl_divergence
from sb3_reinforce.estimator import pieces, restored_on_error, take
from sb3_reinforce.policies import detached, drawn_batch, evaluation_mode, forget_graphs

#: Norm of the right-hand side that the solver gets. It starts from noise of 1e-4, which has to vanish against the solution
SOLVER_NORM = 1e6
#: The solver stops where the residual is so much smaller than the right-hand side
RESIDUAL_TOLERANCE = 1e-5
#: From so many times its target on a step's divergence is worth a warning, and from so large a one on
OVERSHOOT, LEAST_OVERSHOOT = 10.0, 1e-3
#: From so many times its target on a step is undone, and from so large a divergence on: it would end the learning for good
#: where it makes a policy sure of the wrong action
TOO_FAR, LEAST_TOO_FAR = 100.0, 0.1
#: What is smaller than this, relative to what it is a sum of, is a rounding error
ROUNDING = 4 * th.finfo(th.float32).eps


class NoDirectionError(ValueError):
    """
    There is nothing to learn from a batch: every direction is as good as the others.

    :param message: What shows it
    """

    def __init__(self, message: str):
        super().__init__(message)


class TooFarError(ValueError):
    """
    The second-order divergence says nothing of where a step would lead.

    :param message: How far it would have gone
    """

    def __init__(self, message: str):
        super().__init__(message)


class NaturalStep(NamedTuple):
    """
    What a step has come to.

    :param gradient_norm: Norm of the gradient
    :param divergence: KL divergence of the policy from what it was before, averaged over the timesteps
    """

    gradient_norm: float
    divergence: float

    def overshot(self, target_kl: float) -> bool:
        """
        :param target_kl: What the divergence was to be, to second order
        :return: Whether that did not reach far enough
        """
        return self.divergence > max(OVERSHOOT * target_kl, LEAST_OVERSHOOT)


class Fisher:
    r"""
    The Fisher information of a policy, a matrix that is known by its products with vectors.

    .. math::
        F = \frac{1}{n} \sum_t \nabla^2_{\theta'}
        \operatorname{KL}\big(\pi_\theta(\cdot | s_t) \,\|\, \pi_{\theta'}(\cdot | s_t)\big) \Big|_{\theta' = \theta}

    The divergence of an action is the sum over its dimensions. Where the batch is one piece, its graph is built once and
    serves all products; else the pieces' graphs are built anew for each, one at a time, so that the memory stays bounded.

    :param policy: The policy
    :param observations: Observations to average over
    :param actions: Their actions, which only policies with methods of their own look at
    :param parameters: The parameters to differentiate by, none of them frozen. The attribute ``parameters`` holds those
        of them that reach the distribution of any timestep, in the order that the vectors have
    :param workers: The workers, whose timesteps are averaged over together
    :param keep: Whether the attribute holds the others, too
    """

    def __init__(
        self,
        policy: ActorCriticPolicy,
        observations: PyTorchObs,
        actions: th.Tensor,
        parameters: Sequence[th.nn.Parameter],
        workers: Workers = ALONE,
        keep: bool = False,
    ):
        self._policy, self._observations, self._actions = policy, observations, actions
        self._workers = workers
        self._pieces = list(pieces(policy, len(actions)))
        # The same dropout in each product, or this would not be one matrix
        self._noise = _generator(actions.device).get_state()
        divergence = th.zeros(())
        reached = th.zeros(len(self._pieces), len(parameters))
        for i, rows in enumerate(self._pieces):
            divergence = self._divergence(rows)
            if divergence.requires_grad:
                gradients = th.autograd.grad(divergence, parameters, retain_graph=True, allow_unused=True)
                reached[i] = th.tensor([float(gradient is not None) for gradient in gradients])
        counts = th.cat([th.tensor([float(len(actions))]), reached.sum(dim=0)])
        workers.add_up([counts])
        self.n_timesteps, kept = float(counts[0]), (counts[1:] > 0) | keep
        self.parameters = [p for p, is_kept in zip(parameters, kept, strict=True) if is_kept]
        self._passed_by = [
            [p for p, is_kept, is_reached in zip(parameters, kept, row, strict=True) if is_kept and not is_reached]
            for row in reached
        ]
        self._graph: th.Tensor | None = None
        if self.parameters and len(self._pieces) == 1:
            self._graph = self._derivative(divergence, self._passed_by[0])

    def __call__(self, vector: th.Tensor) -> th.Tensor:
        """
        :param vector: A vector, shape ``(n_parameters,)``
        :return: Its product with the matrix
        """
        if self._graph is not None:
            total = self._product(self._graph, vector)
        else:
            total = th.zeros_like(vector)
            with _fixed_noise(vector.device, self._noise):
                for rows, passed_by in zip(self._pieces, self._passed_by, strict=True):
                    total += self._product(self._derivative(self._divergence(rows), passed_by), vector)
        self._workers.add_up([total])
        return total / self.n_timesteps

    def _derivative(self, divergence: th.Tensor, passed_by: list[th.nn.Parameter]) -> th.Tensor:
        # `flat_grad` leaves out parameters that are not reached, but its results are parts of one sum
        for parameter in passed_by:
            divergence = divergence + 0.0 * parameter.square().sum()
        return flat_grad(divergence, self.parameters, create_graph=True, retain_graph=True)

    def _product(self, graph: th.Tensor, vector: th.Tensor) -> th.Tensor:
        return flat_grad(graph.dot(vector), self.parameters, retain_graph=True)

    def _divergence(self, rows: slice) -> th.Tensor:
        """The sum of the KL divergences, of value zero: its derivatives are what counts."""
        with sdpa_kernel(SDPBackend.MATH):  # the other kernels of attention have no second derivative
            laws = action_laws(self._policy, take(self._observations, rows), self._actions[rows])
        return th.stack([kl_divergence(detached(law), law).sum() for law in laws]).sum()


def check_policy(policy: ActorCriticPolicy) -> None:
    """
    :param policy: The policy. One that has no output for an observation that is drawn is not looked at
    :raises ValueError: If the KL divergence between its distributions is not known
    """
    sample = drawn_batch(policy)
    if sample is None:
        return
    observations, actions = sample
    with evaluation_mode(policy), th.no_grad():
        for law in action_laws(policy, observations, actions):
            try:
                kl_divergence(law, law)
            except NotImplementedError as error:
                raise ValueError(
                    "`natural_gradient=True` needs a distribution with a KL divergence in `torch.distributions`, "
                    f"got {type(law).__name__} of {type(policy).__name__}."
                ) from error


def check_second_derivative(policy: ActorCriticPolicy, parameters: Sequence[th.nn.Parameter]) -> None:
    """
    :param policy: The policy. One that has no output for an observation that is drawn is looked at when it first steps
    :param parameters: The parameters that are to step along the natural gradient
    :raises ValueError: If the distribution cannot be differentiated twice by them
    """
    sample = drawn_batch(policy)
    if sample is None:
        return
    try:
        with evaluation_mode(policy), th.enable_grad(), second_derivative_named(policy):
            fisher = Fisher(policy, *sample, parameters)
            if fisher.parameters:
                fisher(th.cat([th.ones_like(parameter).flatten() for parameter in fisher.parameters]))
    finally:
        forget_graphs(policy)


@contextmanager
def second_derivative_named(policy: ActorCriticPolicy) -> Iterator[None]:
    """
    :param policy: The policy
    :raises ValueError: If PyTorch says that there is no second derivative of it
    """
    try:
        yield
    except RuntimeError as error:  # NotImplementedError among them
        if "derivative" not in str(error):
            raise
        raise ValueError(
            f"`natural_gradient=True` needs layers that can be differentiated twice, got {type(policy).__name__}, for which "
            f"PyTorch says: {str(error).splitlines()[0]}"
        ) from error


def check_advantages(advantages: th.Tensor, returns: th.Tensor, normalize_advantage: bool, workers: Workers = ALONE) -> None:
    """
    The natural step is as long for a small gradient as for a large one, so rounding errors must not pass for advantages.

    :param advantages: Advantages, not normalized, shape ``(n_timesteps,)``
    :param returns: The returns that they are differences of, shape ``(n_timesteps,)``
    :param normalize_advantage: Whether their mean will be subtracted
    :param workers: The workers, of whose advantages one other than zero is enough
    :raises NoDirectionError: If the advantages are all zero, up to rounding
    """
    of_advantages, of_returns = (workers.moments(array.cpu().numpy()) for array in (advantages, returns))
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


def natural_step(
    policy: ActorCriticPolicy,
    gradient: Sequence[th.Tensor],
    parameters: Sequence[th.nn.Parameter],
    observations: PyTorchObs,
    actions: th.Tensor,
    weights: th.Tensor,
    target_kl: float,
    cg_max_steps: int,
    cg_damping: float,
    sub_sampling_factor: int,
    workers: Workers = ALONE,
) -> NaturalStep:
    r"""
    Descend a loss along its natural gradient (Kakade, 2001): :math:`\theta \leftarrow \theta - \alpha F^{-1} g`.

    :param policy: The policy
    :param gradient: Gradient of the loss, for each parameter
    :param parameters: Those parameters, none of them frozen
    :param observations: Observations of the batch
    :param actions: Actions of the batch
    :param weights: Weights of their log-probabilities in the gradient, shape ``(n_timesteps,)``
    :param target_kl: The second-order KL divergence of the step, averaged over all timesteps
    :param cg_max_steps: Largest number of steps of the conjugate gradient method
    :param cg_damping: Multiple of the identity that is added to the Fisher information when solving
    :param sub_sampling_factor: The equations are solved with the Fisher information of one of so many timesteps
    :param workers: The workers, each of which has a part of the batch and the gradient of all of it
    :return: Norm of the gradient, and how far the step went
    :raises NoDirectionError: If the gradient is zero, up to rounding, or the policy does not change along it
    :raises TooFarError: If the step would go so far that its second-order divergence says nothing
    :raises ValueError: If the gradient or the step is not finite. In all cases the weights are then as they were
    """
    # In float64, which not every device has
    norm = float(th.linalg.vector_norm(th.cat([part.flatten() for part in gradient]).cpu().double()))
    if not math.isfinite(norm):
        raise ValueError(f"The gradient of the policy must be finite, got a norm of {norm}.")
    with _kept_buffers(policy), second_derivative_named(policy):
        fisher = sampled = Fisher(policy, observations, actions, parameters, workers)
        if sub_sampling_factor > 1:  # how far the policy moves is a matter of all timesteps
            rows = sub_sample(len(actions), sub_sampling_factor, workers).to(actions.device)
            sampled = Fisher(policy, take(observations, rows), actions[rows], fisher.parameters, workers, keep=True)
        of_parameter = dict(zip(parameters, gradient, strict=True))
        flat = [of_parameter[parameter].flatten() for parameter in fisher.parameters]
        if not any(part.any() for part in flat):
            raise NoDirectionError("The natural gradient needs a direction, got a policy gradient of zero.")
        direction = solve(sampled, th.cat(flat), cg_max_steps, cg_damping)
        step = scaled_step(fisher, direction, target_kl)
    check_gain(float(th.cat(flat).dot(step)), weights, target_kl, workers)
    before = _laws_as_it_acts(policy, observations, actions)
    with restored_on_error(fisher.parameters):
        with th.no_grad():
            sizes = [parameter.numel() for parameter in fisher.parameters]
            for parameter, part in zip(fisher.parameters, step.split(sizes), strict=True):
                parameter.sub_(part.view_as(parameter))
        total = th.tensor([_divergence_from(before, policy, observations, actions)])
        workers.add_up([total])
        divergence = float(total) / fisher.n_timesteps
        if not divergence <= max(TOO_FAR * target_kl, LEAST_TOO_FAR):
            raise TooFarError(
                f"A natural step would have moved the policy by a KL divergence of {divergence:.3g}, with `target_kl` at "
                f"{target_kl:.3g}, and was left out."
            )
    return NaturalStep(norm, divergence)


def sub_sample(n_timesteps: int, factor: int, workers: Workers = ALONE) -> th.Tensor:
    """
    One timestep of each ``factor`` that follow each other, drawn: a fixed stride would meet episodes of the same length at
    the same timesteps. The draws are the same in each update, and do not depend on how workers have divided the batch.

    :param n_timesteps: Number of timesteps of this worker
    :param factor: How many to draw one from
    :param workers: The workers, whose timesteps follow each other
    :return: The timesteps, in order; of all workers together at least one
    """
    counts = workers.gather(n_timesteps)
    first, total = sum(counts[: workers.rank]), sum(counts)
    factor = min(factor, total)
    starts = np.arange(0, total, factor)
    sizes = np.minimum(factor, total - starts)
    drawn = starts + (np.random.default_rng(0).random(len(starts)) * sizes).astype(np.int64) - first
    return th.from_numpy(drawn[(drawn >= 0) & (drawn < n_timesteps)])


def check_gain(gain: float, weights: th.Tensor, target_kl: float, workers: Workers = ALONE) -> None:
    r"""
    Along the step :math:`s` the objective rises by :math:`\sum_t w_t x_t` with :math:`x_t = s^\top \nabla \log \pi(a_t|s_t)`,
    whose mean square under the policy is :math:`s^\top F s`, twice the divergence. Where the policy is all but sure of its
    actions, the terms cancel: what is then left of a batch without a rare action is rounding, and scaled to a step of
    full length it would point anywhere.

    :param gain: By how much, to first order, the loss falls along the step
    :param weights: :math:`w_t`, shape ``(n_timesteps,)``
    :param target_kl: Divergence of the step
    :param workers: The workers, over whose timesteps the sum runs
    :raises NoDirectionError: If the sum is zero, up to rounding
    """
    of_weights = workers.moments(weights.cpu().numpy())
    most = of_weights.n * of_weights.root_mean_square * math.sqrt(2.0 * target_kl)
    if not gain >= ROUNDING * most:  # NaN, too
        raise NoDirectionError(
            f"The natural gradient needs a direction, got one along which the objective rises by {gain:.3g}, a rounding error "
            f"beside the {most:.3g} that it could."
        )


def _divergence_from(
    before: Sequence[Distribution], policy: ActorCriticPolicy, observations: PyTorchObs, actions: th.Tensor
) -> float:
    """The sum over all timesteps of the divergences of the policy from what it was."""
    try:
        after = _laws_as_it_acts(policy, observations, actions)
    except ValueError:  # PyTorch refuses what is out of all bounds, such as a deviation of zero
        return math.inf
    return sum(float(kl_divergence(old, new).sum()) for old, new in zip(before, after, strict=True))


def _laws_as_it_acts(policy: ActorCriticPolicy, observations: PyTorchObs, actions: th.Tensor) -> list[Distribution]:
    """The distributions of all timesteps' actions, without dropout and the like."""
    with evaluation_mode(policy), th.no_grad():
        return [
            detached(law)
            for rows in pieces(policy, len(actions))
            for law in action_laws(policy, take(observations, rows), actions[rows])
        ]


def solve(product: Callable[[th.Tensor], th.Tensor], gradient: th.Tensor, cg_max_steps: int, cg_damping: float) -> th.Tensor:
    r"""
    A multiple of the solution :math:`x` of :math:`(F + \lambda I) x = g` by the conjugate gradient method.

    :param product: Multiplies :math:`F` with a vector
    :param gradient: :math:`g`, finite and not zero, shape ``(n_parameters,)``
    :param cg_max_steps: Largest number of steps
    :param cg_damping: :math:`\lambda`
    :return: A positive multiple of :math:`x`
    """
    # In two steps: the squares of numbers that are very small or large would leave the range of float32
    gradient = gradient / gradient.abs().max()
    gradient = gradient * (SOLVER_NORM / th.linalg.vector_norm(gradient))
    with _fixed_noise(gradient.device):
        return conjugate_gradient_solver(
            lambda vector: product(vector) + cg_damping * vector,
            gradient,
            max_iter=cg_max_steps,
            residual_tol=(RESIDUAL_TOLERANCE * SOLVER_NORM) ** 2,
        )


def scaled_step(product: Callable[[th.Tensor], th.Tensor], direction: th.Tensor, target_kl: float) -> th.Tensor:
    r"""
    The multiple :math:`s` of a direction whose KL divergence to second order, :math:`\frac{1}{2} s^\top F s`, is
    ``target_kl``.

    :param product: Multiplies :math:`F`, without damping, with a vector
    :param direction: The direction, shape ``(n_parameters,)``
    :param target_kl: The divergence
    :return: The step
    :raises NoDirectionError: If the divergence does not change along the direction
    :raises ValueError: If the direction is not finite
    """
    curvature = float(direction.dot(product(direction)))
    if not 0.0 < curvature < math.inf:  # NaN, too, where the direction is not finite
        # Never below zero but by rounding
        error = NoDirectionError if math.isfinite(curvature) else ValueError
        raise error(
            "The natural gradient needs a finite direction along which the policy changes, got one with a Fisher information "
            f"of {curvature} (a larger `cg_damping` makes the equations easier to solve)."
        )
    step = math.sqrt(2.0 * target_kl / curvature) * direction
    if not step.isfinite().all():
        raise ValueError("The natural gradient needs a finite direction, got a step with NaN or infinity.")
    return step


@contextmanager
def _kept_buffers(policy: ActorCriticPolicy) -> Iterator[None]:
    """The statistics of batch normalization: a product with the Fisher information is no further look at the batch."""
    buffers = [(buffer, buffer.clone()) for buffer in policy.buffers()]
    try:
        yield
    finally:
        for buffer, before in buffers:
            buffer.copy_(before)


@contextmanager
def _fixed_noise(device: th.device, noise: th.Tensor | None = None) -> Iterator[None]:
    """
    The solver starts from random numbers. With these they are the same in all workers, and none are taken from the
    generator that the actions come from.
    """
    generator = _generator(device)
    state = generator.get_state()
    if noise is None:
        generator.manual_seed(0)
    else:
        generator.set_state(noise)
    try:
        yield
    finally:
        generator.set_state(state)


def _generator(device: th.device) -> th.Generator:
    return th.cuda.default_generators[device.index] if device.type == "cuda" else th.default_generator
