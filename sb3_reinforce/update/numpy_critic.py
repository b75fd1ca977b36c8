"""
The critic of SB3's MLP policies, fitted in NumPy.

Training a small MLP is mostly bookkeeping. With the gradient written out and Adam on one flat vector, it is 3 times as fast
as the same steps in PyTorch, which are used for every other critic and optimizer.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_reinforce.actor_critic.actor_critic import Regression
from sb3_reinforce.actor_critic.inspection import alternates, has_own_forward
from sb3_reinforce.distributed.workers import Alone

#: Larger critics are fitted in PyTorch, which needs no copies of the weights and the optimizer's state
MAX_FLAT = 2**20


def is_plain(regression: Regression, parameters: Sequence[nn.Parameter]) -> bool:
    """
    :param regression: A critic
    :param parameters: The parameters that reach only the values
    :return: Whether the critic and its optimizer are of the kind that is written out in NumPy: a tanh or ReLU MLP of float32
        on the CPU, after a features extractor that the actor shares, and Adam without extras
    """
    policy = regression.actor_critic.policy
    optimizer = policy.optimizer
    groups = [group for group in optimizer.param_groups if group["critic"] and group["params"]]
    if regression.latents is None or type(optimizer) is not th.optim.Adam:
        return False
    layers = [*policy.mlp_extractor.value_net, policy.value_net]
    linears = layers[::2]
    own = [parameter for layer in linears for parameter in layer.parameters()]
    modules = [policy.mlp_extractor, policy.mlp_extractor.value_net, *layers]
    steps = {float(optimizer.state[p]["step"]) if optimizer.state.get(p) else 0.0 for p in own}
    return (
        len(groups) == 1
        and not any(groups[0][extra] for extra in ("weight_decay", "amsgrad", "maximize"))
        and type(policy.mlp_extractor.value_net) is nn.Sequential
        and len(layers) % 2 == 1
        and alternates(layers, (nn.Tanh, nn.ReLU))
        and all(layer.bias is not None for layer in linears)
        and len(own) == len(parameters)
        and all(a is b for a, b in zip(own, parameters, strict=True))
        and all(p.dtype == th.float32 and p.device.type == "cpu" for p in own)
        and not any(has_own_forward(m) or m._backward_hooks for m in modules)
        and not any(p._backward_hooks for p in own)
        and not optimizer._optimizer_step_pre_hooks
        and not optimizer._optimizer_step_post_hooks
        and len(steps) == 1
        and sum(p.numel() for p in own) <= MAX_FLAT
    )


def fit_in_numpy(
    policy: ActorCriticPolicy,
    x: np.ndarray,
    y: np.ndarray,
    minibatches: Iterable[tuple[np.ndarray | slice, int]],
    max_grad_norm: float,
    workers: Alone,
) -> list[float]:
    """
    :param policy: The policy, with a critic that :func:`is_plain`
    :param x: The critic's inputs, shape ``(n_timesteps, n_features)``
    :param y: The returns, shape ``(n_timesteps,)``
    :param minibatches: For each step the rows of this worker, and the number of rows of all workers
    :param max_grad_norm: The largest norm of a gradient
    :param workers: The workers
    :return: The loss of each minibatch
    """
    layers = [*policy.mlp_extractor.value_net, policy.value_net]
    critic = _FlatMlp(layers[::2], [type(layer) is nn.Tanh for layer in layers[1::2]])
    adam = _FlatAdam(policy.optimizer, critic.parameters)
    gradient = th.from_numpy(critic.gradient)  # the same memory
    losses = []
    with np.errstate(all="ignore"):  # the losses show if the fit diverges
        for rows, n_total in minibatches:
            losses.append(critic.mse_gradient(x[rows], y[rows], n_total))
            workers.add_up([gradient])
            norm = np.sqrt(critic.gradient.dot(critic.gradient))
            critic.gradient *= min(1.0, max_grad_norm / (norm + 1e-6))
            adam.step(critic.weights, critic.gradient)
    critic.write_back()
    adam.write_back()
    return losses


class _FlatMlp:
    """
    An MLP in NumPy. Its weights are one flat vector, and their gradient is another.

    :param linears: The linear layers
    :param is_tanh: For each layer except the last, whether tanh (else ReLU) follows
    """

    def __init__(self, linears: Sequence[nn.Linear], is_tanh: Sequence[bool]):
        self.is_tanh = is_tanh
        self.parameters = [parameter for layer in linears for parameter in layer.parameters()]
        self.weights = np.concatenate([p.detach().numpy().ravel() for p in self.parameters])
        self.gradient = np.empty_like(self.weights)
        self._layers, self._gradients = (self._views(flat) for flat in (self.weights, self.gradient))

    def _views(self, flat: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        parts = [
            flat[first:stop].reshape(p.shape)
            for p, (first, stop) in zip(self.parameters, pairwise(_offsets(self.parameters)), strict=True)
        ]
        return list(zip(parts[::2], parts[1::2], strict=True))

    def mse_gradient(self, x: np.ndarray, y: np.ndarray, n_total: int) -> float:
        """
        Sum of squared errors over ``n_total``; its gradient is written to ``gradient``.

        :param x: Inputs, shape ``(n, n_features)``
        :param y: Targets, shape ``(n,)``
        :param n_total: The divisor of the sum
        :return: The error
        """
        activations = [x]
        for (weight, bias), tanh in zip(self._layers[:-1], self.is_tanh, strict=True):
            hidden = activations[-1].dot(weight.T)
            hidden += bias
            activations.append(np.tanh(hidden, hidden) if tanh else np.maximum(hidden, 0.0, out=hidden))
        weight, bias = self._layers[-1]
        residuals = activations[-1].dot(weight.T)
        residuals += bias
        residuals -= y[:, None]
        delta = residuals * np.float32(2.0 / n_total)
        for i in range(len(self._layers) - 1, -1, -1):
            np.dot(delta.T, activations[i], self._gradients[i][0])
            np.sum(delta, axis=0, out=self._gradients[i][1])
            if i > 0:
                delta = delta.dot(self._layers[i][0])
                hidden = activations[i]
                if self.is_tanh[i - 1]:
                    hidden *= hidden
                    np.subtract(1.0, hidden, out=hidden)
                    delta *= hidden
                else:
                    delta *= hidden > 0.0
        flat = residuals.ravel()
        return float(flat.dot(flat)) / n_total

    def write_back(self) -> None:
        """Write the weights to the parameters."""
        _write(self.weights, self.parameters)


class _FlatAdam:
    """
    Adam (Kingma and Ba, 2015, algorithm 1) on a flat vector, continued from the state of an optimizer.

    :param optimizer: The optimizer
    :param parameters: The parameters that the vector holds
    """

    def __init__(self, optimizer: th.optim.Optimizer, parameters: Sequence[nn.Parameter]):
        group = next(group for group in optimizer.param_groups if group["critic"] and group["params"])
        (self.beta1, self.beta2), self.lr, self.eps = group["betas"], float(group["lr"]), group["eps"]
        self._states = [optimizer.state[parameter] for parameter in parameters]
        for state, parameter in zip(self._states, parameters, strict=True):
            if not state:
                state["step"] = th.zeros((), dtype=th.float32)
                state["exp_avg"], state["exp_avg_sq"] = th.zeros_like(parameter), th.zeros_like(parameter)
        self.n_steps = int(self._states[0]["step"])
        self.mean, self.square = (
            np.concatenate([state[name].numpy().ravel() for state in self._states]) for name in ("exp_avg", "exp_avg_sq")
        )

    def step(self, weights: np.ndarray, gradient: np.ndarray) -> None:
        """
        :param weights: The vector, changed in place
        :param gradient: Its gradient
        """
        self.n_steps += 1
        self.mean *= self.beta1
        self.mean += (1.0 - self.beta1) * gradient
        self.square *= self.beta2
        change = gradient * gradient
        change *= 1.0 - self.beta2
        self.square += change
        np.sqrt(self.square, change)
        change /= (1.0 - self.beta2**self.n_steps) ** 0.5
        change += self.eps
        np.divide(self.mean, change, change)
        change *= self.lr / (1.0 - self.beta1**self.n_steps)
        weights -= change

    def write_back(self) -> None:
        """Write the moments to the state of the optimizer."""
        for name, flat in (("exp_avg", self.mean), ("exp_avg_sq", self.square)):
            _write(flat, [state[name] for state in self._states])
        for state in self._states:
            state["step"].fill_(self.n_steps)


def _offsets(tensors: Sequence[th.Tensor]) -> list[int]:
    return [0, *np.cumsum([tensor.numel() for tensor in tensors]).tolist()]


def _write(flat: np.ndarray, tensors: Sequence[th.Tensor]) -> None:
    with th.no_grad():
        for tensor, (first, stop) in zip(tensors, pairwise(_offsets(tensors)), strict=True):
            tensor.copy_(th.from_numpy(flat[first:stop]).view_as(tensor))
