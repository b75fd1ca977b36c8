"""The timesteps of an update, and limits on the memory that they take in a network."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch as th
from gymnasium import spaces
from gymnasium.vector.utils import create_empty_array
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.preprocessing import get_action_dim, get_flattened_obs_dim
from stable_baselines3.common.type_aliases import PyTorchObs, RolloutBufferSamples, TensorDict

from sb3_reinforce.buffers import EpisodeRolloutBufferSamples
from sb3_reinforce.distributed.workers import Alone
from sb3_reinforce.monte_carlo.episodes import Episodes

#: A forward pass takes at most this many timesteps, and this many numbers (of observations and action distributions), at once
MAX_TIMESTEPS = 2**15
MAX_NUMBERS = 2**23
#: How many numbers each value of a discrete observation, and each logit, counts as. A one-hot vector exists as int64 and as
#: float32, and pieces of this size keep 60,000 discrete observations within a tenth of the peak memory of A2C; a logit exists
#: as such, normalized, as a probability, and with its gradients
_PER_ONE_HOT, _PER_LOGIT = 12, 8


@dataclass(frozen=True)
class Batch:
    """
    The timesteps of an update, or a part of them, as tensors.

    :param observations: Observations
    :param actions: Actions, as ``evaluate_actions`` takes them
    :param advantages: Advantages as they are in the buffer (not normalized), shape ``(n_timesteps,)``
    :param returns: Targets of the critic, shape ``(n_timesteps,)``
    :param episodes: How the timesteps divide into episodes; ``None`` for a part that cuts through them
    :param rows: Where these timesteps are in the batch from which they were taken (the rollout, if this is the whole batch)
    :param extras: Further arguments of the policy besides the observations, by name
    :param timesteps: The timestep of each within its episode, shape ``(n_timesteps,)``; ``None`` where it is not known
    """

    observations: PyTorchObs
    actions: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor
    episodes: Episodes | None
    rows: slice | th.Tensor
    extras: TensorDict = field(default_factory=dict)
    timesteps: th.Tensor | None = None

    @classmethod
    def of_samples(
        cls,
        samples: EpisodeRolloutBufferSamples | RolloutBufferSamples,
        action_space: spaces.Space,
        episodes: Episodes | None,
        extras: TensorDict | None = None,
    ) -> "Batch":
        """
        :param samples: The samples of a rollout buffer
        :param action_space: Action space
        :param episodes: How they divide into episodes, if they are in that order
        :param extras: See above
        :return: The batch
        """
        actions = cls.as_actions(samples.actions, action_space)
        return cls(
            samples.observations,
            actions,
            samples.advantages,
            samples.returns,
            episodes if episodes is not None and episodes.n_timesteps == len(actions) else None,
            slice(0, len(actions)),
            extras or {},
            getattr(samples, "timesteps", None),
        )

    @classmethod
    def of_observations(cls, observations: PyTorchObs, actions: th.Tensor, episodes: Episodes | None = None) -> "Batch":
        """
        :param observations: Observations
        :param actions: Actions
        :param episodes: How they divide into episodes
        :return: A batch with advantages and returns of zero
        """
        zeros = th.zeros(len(actions), device=actions.device)
        return cls(observations, actions, zeros, zeros, episodes, slice(0, len(actions)))

    @staticmethod
    def as_actions(actions: th.Tensor, action_space: spaces.Space) -> th.Tensor:
        """
        :param actions: Actions of a rollout buffer, shape ``(n_timesteps, action_dim)``
        :param action_space: Action space
        :return: The same actions, as ``evaluate_actions`` takes them
        """
        if isinstance(action_space, spaces.Discrete):
            # Convert discrete action from float to long
            return actions.long().flatten()
        return actions.float()

    def __len__(self) -> int:
        return len(self.actions)

    def part(self, rows: slice | th.Tensor) -> "Batch":
        """
        :param rows: Some of the timesteps
        :return: The part of the batch with these timesteps
        """
        if isinstance(rows, slice) and rows == slice(0, len(self)):
            return replace(self, rows=rows)
        episodes = self.episodes.within(rows) if isinstance(rows, slice) and self.episodes is not None else None
        return Batch(
            take(self.observations, rows),
            self.actions[rows],
            self.advantages[rows],
            self.returns[rows],
            episodes,
            rows,
            {name: array[rows] for name, array in self.extras.items()},
            None if self.timesteps is None else self.timesteps[rows],
        )


def take(observations: PyTorchObs, rows: slice | th.Tensor) -> PyTorchObs:
    """
    :param observations: Observations of a batch
    :param rows: Some of the timesteps
    :return: Their observations
    """
    if isinstance(observations, dict):
        return {key: array[rows] for key, array in observations.items()}
    return observations[rows]


def slices(n: int, size: int) -> Iterator[slice]:
    """
    :param n: A number of timesteps
    :param size: The largest size of a piece
    :return: Slices that divide the timesteps into pieces of at most this size
    """
    return (slice(first, min(first + size, n)) for first in range(0, n, size))


def piece_size(observation_space: spaces.Space, action_space: spaces.Space) -> int:
    """
    :param observation_space: Observation space
    :param action_space: Action space
    :return: The number of timesteps that a policy gets at once
    """
    numbers = observation_numbers(observation_space) + _PER_LOGIT * _n_outputs(action_space)
    return max(1, min(MAX_TIMESTEPS, MAX_NUMBERS // max(numbers, 1)))


def observation_numbers(space: spaces.Space) -> int:
    """
    :param space: An observation space
    :return: How many numbers an observation counts as on its way into the network; a discrete one is a one-hot vector there
    """
    if isinstance(space, spaces.Dict):
        return sum(observation_numbers(part) for part in space.spaces.values())
    one_hot = isinstance(space, spaces.Discrete | spaces.MultiDiscrete)
    return get_flattened_obs_dim(space) * (_PER_ONE_HOT if one_hot else 1)


def _n_outputs(space: spaces.Space) -> int:
    """The number of distribution parameters that a network puts out (without a common log_std)."""
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return int(space.nvec.sum())
    return get_action_dim(space)


def drawn_batches(policy: ActorCriticPolicy) -> Iterator[Batch]:
    """
    Batches of one timestep, to find out what the outputs of a policy depend on. The observation of the first is drawn from the
    space, the same each time, as a network may have no output for zeros (a sequence of length zero, a length to divide by);
    zeros are the second choice, as numbers from a space without bounds may overflow.

    :param policy: A policy
    :return: The batches
    """
    space = copy.deepcopy(policy.observation_space)
    space.seed(0)
    if isinstance(policy.action_space, spaces.Discrete):
        action = th.zeros(1, dtype=th.long, device=policy.device)
    else:
        action = th.zeros(1, get_action_dim(policy.action_space), device=policy.device)
    episode = Episodes(np.ones(1, int), np.zeros(1, int), np.zeros(1, int))
    for draw in (space.sample, partial(create_empty_array, space, fn=np.zeros)):
        try:
            observation = policy.obs_to_tensor(draw())[0]  # type: ignore[arg-type]
        except Exception:  # the user's network may raise anything
            continue
        yield Batch.of_observations(observation, action, episode)


def sub_sample(n_timesteps: int, factor: int, workers: Alone) -> th.Tensor:
    """
    Draw one timestep out of each ``factor`` consecutive ones: a fixed stride would always pick the same timesteps of episodes
    of equal length. The draws are the same in each update, and do not depend on how workers have divided the batch.

    :param n_timesteps: Number of timesteps of this worker
    :param factor: Number of timesteps from which one is drawn
    :param workers: The workers, whose timesteps are counted one worker after the other
    :return: The timesteps, in order; over all workers together at least one
    """
    counts = workers.gather(n_timesteps)
    first, total = sum(counts[: workers.rank]), sum(counts)
    factor = min(factor, total)
    starts = np.arange(0, total, factor)
    sizes = np.minimum(factor, total - starts)
    drawn = starts + (np.random.default_rng(0).random(len(starts)) * sizes).astype(np.int64) - first
    return th.from_numpy(drawn[(drawn >= 0) & (drawn < n_timesteps)])
