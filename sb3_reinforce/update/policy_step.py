"""
The policy step of an update.

To define one of your own (mirror descent, a trust region, ...), write a subclass of :class:`PolicyStep` and put it into the
attribute ``policy_step_class`` of a model, or of a subclass of REINFORCE.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch as th

from sb3_reinforce.actor_critic.batch import Batch
from sb3_reinforce.actor_critic.parameters import Parameters
from sb3_reinforce.update.gradients import Gradients


class PolicyStep:
    """
    Moves the policy along the gradient estimate of a batch, jointly with one step of the critic. One object serves a model
    for as long as it learns; it reads the model's arguments when it takes a step, as they may change at any time. A saved
    model names the class; the object's own state is not saved.

    :param model: The :class:`sb3_reinforce.REINFORCE` that it belongs to, with ``policy``, ``policy.optimizer``,
        ``actor_critic`` (the policy on a batch), ``workers`` and all arguments
    """

    #: Whether the value loss may move the layers that the critic shares with the actor
    moves_shared_layers = True

    def __init__(self, model: Any):
        self.model = model

    def check(self) -> None:
        """
        Called when the model gets its policy, and when learning begins.

        :raises ValueError: If the step cannot be taken with the policy
        """

    def begin(self) -> None:
        """
        Called when learning begins, with all workers together, before SB3 counts the timesteps anew and sets up the log.

        :raises ValueError: If the step cannot be taken with the model's policy or arguments
        """

    def take(self, gradients: Gradients, batch: Batch, weights: th.Tensor, parameters: Parameters) -> dict[str, float]:
        """
        Change the policy. If an error is raised, all weights are restored.

        :param gradients: Losses of the batch, and their gradients, summed over the workers: ``gradients.actor`` for
            ``parameters.actor``, ``gradients.critic`` for ``parameters.value``
        :param batch: The batch
        :param weights: Weight of each log-probability in the estimate, shape ``(n_timesteps,)``
        :param parameters: The parameters that the update trains
        :return: The values to log as ``train/...``, by name
        :raises ValueError: If a gradient is not finite
        """
        raise NotImplementedError(f"{type(self).__name__} must define `take`.")

    def joint(self, parameters: Parameters) -> list[th.nn.Parameter]:
        """
        :param parameters: The parameters that the update trains
        :return: Those that the value loss moves together with the policy step. With ``vf_coef=0`` the critic moves only in its
            own passes: here not even its momentum moves it
        """
        return parameters.value if self.model.vf_coef > 0 else []


class OptimizerStep(PolicyStep):
    """
    A step of the policy's optimizer along the gradient, as in A2C.

    :param model: The model that it belongs to
    """

    def take(self, gradients: Gradients, batch: Batch, weights: th.Tensor, parameters: Parameters) -> dict[str, float]:
        optimizer, joint = self.model.policy.optimizer, self.joint(parameters)
        norm = gradient_step(optimizer, gradients, parameters.actor, joint, self.model.max_grad_norm)
        return {"grad_norm": norm}


def clip_by_norm(gradients: Sequence[th.Tensor], max_norm: float) -> th.Tensor:
    """
    Scale gradients in place so that their common norm is at most ``max_norm``. For the few small gradients of an MLP
    this takes a third of the time of PyTorch's own function, which first sorts them by device.

    :param gradients: The gradients
    :param max_norm: The largest norm
    :return: Their norm before the scaling, a scalar
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
    Descend the losses. The gradients of actor and critic are clipped separately, so that the scale of the critic's
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
