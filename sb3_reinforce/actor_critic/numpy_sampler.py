"""
The fast way to draw actions while a rollout is played.

Monte Carlo REINFORCE needs neither values nor log-probabilities while it acts. For the policies that it understands,
:class:`NumpySampler` evaluates only the policy network, in NumPy on the memory of the policy's own parameters.
"""

from collections.abc import Callable, Collection
from functools import partial

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    MultiCategoricalDistribution,
    StateDependentNoiseDistribution,
)
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor
from torch import nn

from sb3_reinforce.actor_critic.inspection import alternates, has_own_forward
from sb3_reinforce.actor_critic.sampler import Observation, PolicySampler, Sample, Timestep
from sb3_reinforce.buffers import one_hot
from sb3_reinforce.finite import check_finite, surely_finite

#: The noise is drawn ahead for at most this many steps, and this many numbers (unless a single step needs more)
NOISE_BLOCK = 256
MAX_NOISE = 2**14
#: Tables of discrete observations are used up to this many numbers
MAX_TABLE = 2**18

Activation = Callable[[np.ndarray, np.ndarray], object]


class NumpySampler(PolicySampler):
    """
    Acts with only the policy network, in NumPy, for policies that :func:`is_understood`. Its distribution is the policy's.

    :param policy: The policy
    :param n_envs: Number of environments
    :param rng: Source of the actions' randomness
    """

    evaluates = False

    def __init__(self, policy: ActorCriticPolicy, n_envs: int, rng: np.random.Generator):
        super().__init__(policy)
        self.n_envs = n_envs
        self.rng = rng
        self._features = Features(policy.observation_space)
        self._modules = _actor_layers(policy)
        self._linears = [layer for layer in self._modules if isinstance(layer, nn.Linear)]
        self._layers: list[tuple[np.ndarray, np.ndarray, np.ndarray, Activation | None]] = []
        self._buffers = [np.empty((n_envs, layer.out_features), np.float32) for layer in self._linears]
        self._head = self.make_head()

    def make_head(self) -> "Head":
        """
        :return: What draws actions from the outputs of the network
        """
        return HEADS[type(self.policy.action_dist)](self.policy, self.n_envs)

    def has_layers_of(self, policy: ActorCriticPolicy) -> bool:
        """
        :param policy: A policy that :func:`is_understood`
        :return: Whether it still has the layers that this sampler evaluates
        """
        return _actor_layers(policy) == self._modules

    def acts_as_it_is(self) -> bool:
        layers = _actor_layers(self.policy)
        return layers == self._modules and self._memory() == self._viewed and not any(map(has_own_forward, layers))

    def _memory(self) -> list[int]:
        return [tensor.data_ptr() for layer in self._linears for tensor in (layer.weight, layer.bias) if tensor is not None]

    def draw_afresh(self) -> None:
        self._head.draw_afresh()

    def start_rollout(self) -> None:
        self._viewed = self._memory()
        # Views of the parameters: changes that a callback makes in place take effect at once. They are taken anew for each
        # rollout, as other tensors may have replaced the parameters
        self._layers = []
        activations = [_bind(layer) for layer in self._modules if not isinstance(layer, nn.Linear)]
        for layer, buffer, activation in zip(self._linears, self._buffers, [*activations, None], strict=True):
            weight = layer.weight.detach().numpy().T
            bias = np.zeros((1, buffer.shape[1]), np.float32) if layer.bias is None else layer.bias.detach().numpy()[None]
            self._layers.append((weight, bias, buffer, activation))
        self._head.start_rollout(self.policy)

    def go_on_from(self, sampler: PolicySampler | None) -> None:
        """
        Use up the noise that another sampler has drawn ahead, so that a copy of a policy plays as the policy would have.

        :param sampler: The sampler that this one replaces
        """
        theirs = sampler._head if isinstance(sampler, NumpySampler) else None
        own = self._head
        if isinstance(own, NoiseHead) and isinstance(theirs, NoiseHead) and type(own) is type(theirs):
            if own.shape == theirs.shape:
                own._noise, own._next_noise = theirs._noise, theirs._next_noise

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_layers": []}  # the views are taken anew for the next rollout

    def inputs(self, obs: Observation) -> np.ndarray:
        """
        :param obs: Observations of all environments
        :return: The input of the MLP, shape ``(n_envs, n_inputs)``
        """
        return self._features(obs)

    def allowed(self, outputs: np.ndarray, timestep: Timestep) -> np.ndarray:
        """
        :param outputs: Outputs of the network, which are finite, shape ``(n_envs, n_outputs)``
        :param timestep: Gives the timestep within its episode that an environment is at
        :return: The same for the actions that are allowed
        """
        return outputs

    def outputs(self, obs: Observation) -> np.ndarray:
        """
        The parameters of the action distribution.

        :param obs: Observations of all environments
        :return: Logits, or means of a Gaussian, shape ``(n_envs, n_outputs)``; overwritten by the next call
        """
        x = latent = self.inputs(obs)
        for weight, bias, buffer, activation in self._layers:
            np.dot(x, weight, buffer)
            np.add(buffer, bias, buffer)
            if activation is not None:
                activation(buffer, buffer)
            latent, x = x, buffer
        self._latent = latent
        return x

    def sample(self, obs: Observation, timestep: Timestep) -> Sample:
        outputs = self.outputs(obs)
        if not surely_finite(outputs):
            self._features.check(obs)
            check_finite("output of the policy", outputs, timestep)
        actions = self._head.sample(self.allowed(outputs, timestep), self._latent, self.rng)
        if self._head.may_overflow:
            check_finite("action", actions, timestep)
        return actions, None, None


# The policies that are understood: SB3's own methods, a plain MLP on the CPU, flat observations


def is_understood(policy: ActorCriticPolicy, heads: Collection[type] | None = None) -> bool:
    """
    :param policy: A policy with SB3's own methods
    :param heads: The classes of its ``action_dist`` that the sampler can draw from; ``None``: SB3's own
    :return: Whether :class:`NumpySampler` can act for it
    """
    modules = [policy, *policy.mlp_extractor.modules(), *policy.pi_features_extractor.modules(), policy.action_net]
    return (
        policy.device.type == "cpu"
        and _only_flattens(policy.pi_features_extractor)
        and type(policy.action_dist) in (HEADS if heads is None else heads)
        and is_flat(policy.observation_space, policy.normalize_images)
        and type(policy.mlp_extractor.policy_net) is nn.Sequential
        and len(policy.mlp_extractor.policy_net) % 2 == 0
        and alternates(_actor_layers(policy), _ACTIVATIONS)
        and not any(has_own_forward(module) for module in modules)
        and not any(callable(getattr(type(policy.action_dist), name, None)) for name in vars(policy.action_dist))
        and all(parameter.dtype == th.float32 for parameter in policy.parameters())
    )


def _actor_layers(policy: ActorCriticPolicy) -> list[nn.Module]:
    return [*policy.mlp_extractor.policy_net, policy.action_net]


def _only_flattens(extractor: nn.Module) -> bool:
    """Whether a features extractor only flattens its input."""
    if type(extractor) is CombinedExtractor:
        return all(type(part) is nn.Flatten for part in extractor.extractors.values())
    return type(extractor) is FlattenExtractor


# Observations, after SB3's preprocessing and extractors that flatten


def is_flat(space: spaces.Space, normalize_images: bool = True) -> bool:
    """
    :param space: An observation space
    :param normalize_images: Whether the policy divides the numbers of images by 255
    :return: Whether :class:`Features` supports it
    """
    if isinstance(space, spaces.Dict):
        return all(is_flat(part, normalize_images) for part in space.spaces.values())
    if isinstance(space, spaces.Box):
        return not (normalize_images and is_image_space(space))
    if isinstance(space, spaces.MultiDiscrete):
        return len(space.nvec.shape) == 1
    return isinstance(space, spaces.Discrete | spaces.MultiBinary)


class Features:
    """
    The input of the networks from observations of any dtype, shape ``(n_envs, n_features)``, float32.

    :param space: The space of the observations, see :func:`is_flat`
    """

    def __init__(self, space: spaces.Space):
        self.space = space
        self._sizes: list[int] = []
        if isinstance(space, spaces.Dict):
            self._parts = {key: Features(part) for key, part in space.spaces.items()}
        elif isinstance(space, spaces.Discrete | spaces.MultiDiscrete):
            self._sizes = [int(space.n)] if isinstance(space, spaces.Discrete) else space.nvec.tolist()
        # They take a fifth of the time of `one_hot`. A number outside the space, even below 0 (from the end), gives NaN
        self._tables = [
            np.concatenate([np.eye(size, dtype=np.float32), np.full((size, size), np.nan, np.float32)])
            for size in self._sizes
            if sum(size**2 for size in self._sizes) <= MAX_TABLE
        ]

    def __call__(self, obs: Observation) -> np.ndarray:
        """
        :param obs: Observations of all environments
        :return: The features
        :raises ValueError: If a discrete observation is outside its space (or the features are NaN there)
        """
        if isinstance(obs, dict):
            return np.concatenate([part(obs[key]) for key, part in self._parts.items()], axis=1)
        if self._tables:
            columns = obs if obs.dtype.kind in "iu" else obs.astype(np.int64)  # towards zero, as PyTorch does it
            try:
                if len(self._tables) == 1:
                    return self._tables[0][columns.reshape(-1)]
                columns = columns.reshape(-1, len(self._sizes))
                return np.concatenate([table[columns[:, i]] for i, table in enumerate(self._tables)], axis=1)
            except IndexError:
                pass  # `one_hot` names the observation
        if self._sizes:
            return one_hot(obs.reshape(-1, len(self._sizes)), self._sizes)
        flat = obs if obs.ndim == 2 else obs.reshape(len(obs), -1)
        return flat if flat.dtype == np.float32 else flat.astype(np.float32)

    def check(self, obs: Observation) -> None:
        """
        :param obs: Observations of all environments
        :raises ValueError: If a discrete observation is outside its space
        """
        if isinstance(obs, dict):
            for key, part in self._parts.items():
                part.check(obs[key])
        elif self._sizes:
            one_hot(obs.reshape(-1, len(self._sizes)), self._sizes)


# Activations: functions of the input and of the array for the output (which may be the same)


def sigmoid(x: np.ndarray, out: np.ndarray) -> None:
    """
    :param x: Numbers
    :param out: Where their logistic function goes; may be the same array
    """
    # 1 / (1 + exp(-x)) without overflow
    np.multiply(x, 0.5, out)
    np.tanh(out, out)
    np.add(out, 1.0, out)
    np.multiply(out, 0.5, out)


def _silu(x: np.ndarray, out: np.ndarray) -> None:
    gate = np.empty_like(x)
    sigmoid(x, gate)
    np.multiply(x, gate, out)


def _leaky_relu(x: np.ndarray, out: np.ndarray, slope: float) -> None:
    np.copyto(out, np.where(x >= 0.0, x, np.float32(slope) * x))


def _elu(x: np.ndarray, out: np.ndarray, alpha: float) -> None:
    np.copyto(out, np.where(x > 0.0, x, np.float32(alpha) * np.expm1(np.minimum(x, 0.0))))


_ACTIVATIONS: dict[type[nn.Module], Callable[[nn.Module], Activation]] = {
    nn.Tanh: lambda layer: np.tanh,
    nn.ReLU: lambda layer: lambda x, out: np.maximum(x, 0.0, out=out),
    nn.LeakyReLU: lambda layer: partial(_leaky_relu, slope=layer.negative_slope),  # type: ignore[arg-type]
    nn.ELU: lambda layer: partial(_elu, alpha=layer.alpha),  # type: ignore[arg-type]
    nn.Sigmoid: lambda layer: sigmoid,
    nn.SiLU: lambda layer: _silu,
    nn.Identity: lambda layer: np.positive,
}


def _bind(layer: nn.Module) -> Activation:
    return _ACTIVATIONS[type(layer)](layer)


# Heads: a sample of the action distribution from its parameters


class Head:
    """
    :param policy: The policy
    :param n_envs: Number of environments
    """

    #: Whether finite parameters may give an action that is not finite
    may_overflow = False

    def __init__(self, policy: ActorCriticPolicy, n_envs: int):
        self._action_shape = (n_envs, *(policy.action_space.shape or ()))

    def draw_afresh(self) -> None:
        """Discard noise that was drawn ahead."""

    def start_rollout(self, policy: ActorCriticPolicy) -> None:
        """
        :param policy: The policy, for the parameters of the distribution that are not outputs of the network
        """

    def sample(self, outputs: np.ndarray, latent: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """
        :param outputs: Outputs of the policy network, shape ``(n_envs, n_outputs)``
        :param latent: Input of its last layer, shape ``(n_envs, latent_dim)``
        :param rng: Source of randomness
        :return: Actions
        """
        raise NotImplementedError()


class NoiseHead(Head):
    """A head whose noise is independent of the outputs, and drawn ahead."""

    def __init__(self, policy: ActorCriticPolicy, n_envs: int):
        super().__init__(policy, n_envs)
        assert isinstance(policy.action_net, nn.Linear)
        self.shape = (n_envs, policy.action_net.out_features)
        self._next_noise = 0
        self._noise = np.empty((0, *self.shape), np.float32)

    def draw_afresh(self) -> None:
        self._next_noise = len(self._noise)

    def noise(self, rng: np.random.Generator) -> np.ndarray:
        """
        :param rng: Source of randomness
        :return: Fresh noise, shape ``(n_envs, n_outputs)``
        """
        if self._next_noise == len(self._noise):
            n_steps = max(1, min(NOISE_BLOCK, MAX_NOISE // (self.shape[0] * self.shape[1])))
            self._noise, self._next_noise = self.draw(rng, (n_steps, *self.shape)).astype(np.float32, copy=False), 0
        self._next_noise += 1
        return self._noise[self._next_noise - 1]

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        """
        :param rng: Source of randomness
        :param shape: Shape
        :return: Noise of that shape
        """
        raise NotImplementedError()


class CategoricalHead(NoiseHead):
    """The largest of the logits with Gumbel noise (Gumbel, 1954)."""

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return -np.log(rng.standard_exponential(shape))

    def sample(self, outputs: np.ndarray, latent: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return (outputs + self.noise(rng)).argmax(axis=1)


class MultiCategoricalHead(CategoricalHead):
    def __init__(self, policy: ActorCriticPolicy, n_envs: int):
        super().__init__(policy, n_envs)
        ends = np.cumsum(policy.action_dist.action_dims).tolist()  # type: ignore[attr-defined]
        self._parts = [slice(first, stop) for first, stop in zip([0, *ends[:-1]], ends, strict=True)]

    def sample(self, outputs: np.ndarray, latent: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        noisy = outputs + self.noise(rng)
        actions = np.empty((len(outputs), len(self._parts)), dtype=np.int64)
        for i, part in enumerate(self._parts):
            np.argmax(noisy[:, part], axis=1, out=actions[:, i])
        return actions


class _BernoulliHead(NoiseHead):
    """A logit above logistic noise."""

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return rng.logistic(size=shape)

    def sample(self, outputs: np.ndarray, latent: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return (outputs > self.noise(rng)).astype(np.float32)


class _GaussianHead(NoiseHead):
    def start_rollout(self, policy: ActorCriticPolicy) -> None:
        self._log_std = policy.log_std.detach().numpy()
        if not np.isfinite(np.exp(self._log_std)).all():
            raise ValueError(f"The log_std of the policy must be finite (and its exponential too), got {self._log_std}.")

    def draw(self, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    def sample(self, outputs: np.ndarray, latent: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return (outputs + np.exp(self._log_std) * self.noise(rng)).reshape(self._action_shape)


class _StateDependentNoiseHead(Head):
    """
    gSDE (Raffin et al., 2021, https://arxiv.org/abs/2005.05719): the noise is the latent features times the policy's last
    matrices, which come from PyTorch's generator.
    """

    may_overflow = True

    def start_rollout(self, policy: ActorCriticPolicy) -> None:
        self._policy = policy

    def sample(self, outputs: np.ndarray, latent: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        distribution = self._policy.action_dist
        assert isinstance(distribution, StateDependentNoiseDistribution)
        matrices = distribution.exploration_matrices.detach().numpy()
        with np.errstate(invalid="ignore", over="ignore"):
            # As in `get_noise` of the distribution
            if len(latent) == 1 or len(latent) != len(matrices):
                noise = latent @ distribution.exploration_mat.detach().numpy()
            else:
                noise = np.matmul(latent[:, None], matrices)[:, 0]
            actions = outputs + noise
        if distribution.bijector is not None:
            np.tanh(actions, actions)
        return actions.reshape(self._action_shape)


HEADS: dict[type, type[Head]] = {
    CategoricalDistribution: CategoricalHead,
    MultiCategoricalDistribution: MultiCategoricalHead,
    BernoulliDistribution: _BernoulliHead,
    DiagGaussianDistribution: _GaussianHead,
    StateDependentNoiseDistribution: _StateDependentNoiseHead,
}
