"""SB3's rollout buffers, for rollouts of whole episodes: the environments contribute as many timesteps as they recorded."""

from collections.abc import Callable, Generator, Sequence
from typing import NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.type_aliases import TensorDict
from stable_baselines3.common.vec_env import VecNormalize

from sb3_reinforce.monte_carlo.episodes import Episodes
from sb3_reinforce.monte_carlo.returns import generalized_advantages, returns_to_go

#: Arrays with one number for each timestep
_NUMBERS = ("rewards", "episode_starts", "values", "log_probs")
_NO_EPISODES = Episodes(np.zeros(0, dtype=int), np.zeros(0, dtype=int), np.zeros(0, dtype=int))


class EpisodeRolloutBufferSamples(NamedTuple):
    """SB3's ``RolloutBufferSamples`` with the place of each timestep in its episode, shape ``(batch_size,)`` each."""

    observations: th.Tensor | TensorDict
    actions: th.Tensor
    old_values: th.Tensor
    old_log_prob: th.Tensor
    advantages: th.Tensor
    returns: th.Tensor
    timesteps: th.Tensor
    episode_ids: th.Tensor


class EpisodeRolloutBuffer(RolloutBuffer):
    """
    Rollout buffer for episodes of any length.

    It is filled one vector step at a time, with the environments that still record, and grows as needed. After
    :meth:`finish` all arrays are flat: only the recorded timesteps, episode by episode, with the episodes
    environment by environment, e.g. ``observations`` of shape ``(n_timesteps, *obs_shape)``, ``rewards`` and
    ``returns`` of shape ``(n_timesteps,)``. ``returns`` and ``advantages`` are raw (not normalized).

    :param buffer_size: Number of steps per environment for which memory is first set aside
    :param observation_space: Observation space
    :param action_space: Action space
    :param device: PyTorch device
    :param gae_lambda: Factor for trade-off of bias vs variance for Generalized Advantage Estimator;
        1 is the Monte Carlo return
    :param gamma: Discount factor
    :param n_envs: Number of parallel environments
    """

    #: Where each episode of the rollout lies in the flat arrays
    episodes: Episodes
    #: Timestep within the episode, shape ``(n_timesteps,)``
    timesteps: np.ndarray
    #: Index of the episode, shape ``(n_timesteps,)``
    episode_ids: np.ndarray

    #: Further arguments of the policy besides each observation, by name, shape ``(n_timesteps, ...)`` each
    extras: dict[str, np.ndarray]

    #: Computes returns and advantages from the rewards as the model does; ``None`` before the model has done so
    recompute: Callable[["EpisodeRolloutBuffer", np.ndarray, np.ndarray], None] | None = None

    _rows: dict[str, np.ndarray] | None = None

    def reset(self) -> None:
        super(RolloutBuffer, self).reset()
        self.generator_ready = False
        self.recompute = None
        self.extras = {}
        if self._rows is None:
            self._rows = self._allocate(self.buffer_size * self.n_envs)
        self._all_envs = np.arange(self.n_envs)
        self._publish(slice(0, 0), _NO_EPISODES)

    def _allocate(self, n_rows: int) -> dict[str, np.ndarray]:
        # A Gaussian draws no integers, whatever the dtype of the space
        dtype = np.float32 if isinstance(self.action_space, spaces.Box) else self.action_space.dtype
        # Integers of 16 bits are sorted in a quarter of the time
        env_ids = np.min_scalar_type(self.n_envs)
        kinds = {**self._observation_rows(), "actions": ((self.action_dim,), dtype), "env_ids": ((), env_ids)}
        # Untouched pages of an empty array take no memory
        rows = {name: np.empty((n_rows, *shape), dtype) for name, (shape, dtype) in kinds.items()}
        return {**rows, **{name: np.zeros(n_rows, np.float32) for name in _NUMBERS}}

    def _observation_rows(self) -> dict[str, tuple[tuple[int, ...], np.dtype | None]]:
        return {"observations": (self.obs_shape, self.observation_space.dtype)}

    def add(
        self,
        obs: np.ndarray | dict[str, np.ndarray],
        action: np.ndarray,
        reward: np.ndarray,
        episode_start: np.ndarray,
        value: th.Tensor | None = None,
        log_prob: th.Tensor | None = None,
        recording: np.ndarray | None = None,
        extras: dict[str, np.ndarray] | None = None,
    ) -> None:
        """
        Add one vector step.

        :param obs: Observations of all environments
        :param action: Their actions
        :param reward: Their rewards, shape ``(n_envs,)``
        :param episode_start: Start of episode signals, shape ``(n_envs,)``
        :param value: Values of the observations, if they are known already
        :param log_prob: Log-probabilities of the actions, if they are known already
        :param recording: Indices of the environments that record this step; all of them if ``None``
        :param extras: Further arguments of the policy besides the observations, by name, shape ``(n_envs, ...)`` each
        """
        assert self._rows is not None
        if recording is None:
            recording = self._all_envs
        if len(recording) == 0:  # a step that is no timestep of any episode
            return
        first, stop = self.pos, self.pos + len(recording)
        if stop > len(self._rows["rewards"]):
            self._grow(stop)
        rows, n_rows = self._rows, stop - first
        if len(recording) < self.n_envs:
            # `take` needs a ninth of the time of an index
            obs = (
                {key: value.take(recording, 0) for key, value in obs.items()}
                if isinstance(obs, dict)
                else obs.take(recording, 0)
            )
            action, reward, episode_start = (np.asarray(x).take(recording, 0) for x in (action, reward, episode_start))
        if self.n_envs > 1:
            rows["env_ids"][first:stop] = recording
        self._write_observations(obs, first, stop)
        rows["actions"][first:stop] = action.reshape(n_rows, self.action_dim)
        rows["rewards"][first:stop] = reward
        rows["episode_starts"][first:stop] = episode_start
        if value is not None:
            rows["values"][first:stop] = value.detach().cpu().numpy().reshape(self.n_envs)[recording]
        if log_prob is not None:
            rows["log_probs"][first:stop] = log_prob.detach().cpu().numpy().reshape(self.n_envs)[recording]
        if extras is not None:
            self._write_extras(extras, recording, first, stop)
        self.pos = stop

    def _write_extras(self, extras: dict[str, np.ndarray], recording: np.ndarray, first: int, stop: int) -> None:
        assert self._rows is not None
        for name, array in extras.items():
            if name not in self.extras:
                self.extras[name] = np.empty((len(self._rows["rewards"]), *array.shape[1:]), array.dtype)
            self.extras[name][first:stop] = array[recording]

    def _write_observations(self, obs: np.ndarray | dict[str, np.ndarray], first: int, stop: int) -> None:
        assert isinstance(obs, np.ndarray)
        rows = self._rows_for("observations", obs.dtype)
        # Discrete observations lack the last axis
        rows[first:stop] = obs if obs.ndim == rows.ndim else obs.reshape(-1, *self.obs_shape)

    def _rows_for(self, name: str, dtype: np.dtype) -> np.ndarray:
        """Rows that can hold a dtype, which may differ from the space's: ``VecNormalize`` turns integers into floats."""
        assert self._rows is not None
        rows = self._rows[name]
        if rows.dtype != dtype and not np.can_cast(dtype, rows.dtype):
            # A new rollout keeps nothing of the last one
            wider = np.empty(rows.shape, dtype if self.pos == 0 else np.result_type(rows, dtype))
            wider[: self.pos] = rows[: self.pos]
            self._rows[name] = rows = wider
        return rows

    def _grow(self, n_rows: int) -> None:
        assert self._rows is not None
        n_rows = max(n_rows, 2 * len(self._rows["rewards"]))
        for arrays in (self._rows, self.extras):
            for name, array in arrays.items():
                arrays[name] = np.zeros((n_rows, *array.shape[1:]), array.dtype)
                arrays[name][: self.pos] = array[: self.pos]

    def finish(self, episodes: Episodes) -> None:
        """
        Put the recorded timesteps into the order of their episodes.

        :param episodes: The recorded episodes, environment by environment
        """
        assert episodes.n_timesteps == self.pos, f"{self.pos} timesteps were added, {episodes.n_timesteps} recorded"
        order: slice | np.ndarray = slice(0, self.pos)
        if self.n_envs > 1:
            assert self._rows is not None
            order = np.argsort(self._rows["env_ids"][: self.pos], kind="stable")
        self._publish(order, episodes)
        self.full = True

    def _publish(self, order: slice | np.ndarray, episodes: Episodes) -> None:
        assert self._rows is not None
        self._publish_observations(order)
        for name in ("actions", *_NUMBERS):
            setattr(self, name, self._rows[name][order])
        self.extras = {name: array[order] for name, array in self.extras.items()}
        self.returns = np.zeros(len(self.rewards), np.float32)
        self.advantages = np.zeros(len(self.rewards), np.float32)
        self.episodes = episodes
        self.timesteps, self.episode_ids = episodes.timesteps, episodes.episode_ids

    def _publish_observations(self, order: slice | np.ndarray) -> None:
        assert self._rows is not None
        self.observations = _in_order(self._rows["observations"], order)

    def size(self) -> int:
        """
        :return: Number of recorded timesteps
        """
        return self.pos

    def compute_returns_and_advantage(self, last_values: th.Tensor | np.ndarray, dones: np.ndarray) -> None:
        """
        Compute the returns and advantages again, from ``rewards`` that a callback has changed at the end of a rollout: with
        the model's baseline, and with the known values after the episodes that a time limit or a horizon has cut.

        In a buffer that no model has evaluated, this gives the returns-to-go (TD(lambda) targets if ``gae_lambda < 1``) and
        their advantages over ``values``, and both arguments have a number for each episode, shape ``(n_episodes,)``.

        :param last_values: Values of the observations after the rollout, as in SB3, shape ``(n_envs,)`` or ``(n_envs, 1)``.
            They are used for the episodes that go on in the next rollout (``complete_episodes=False``)
        :param dones: Whether an episode ended with the last step, so that its value is not used, shape ``(n_envs,)``
        :raises ValueError: If their lengths do not match
        """
        if isinstance(last_values, th.Tensor):
            last_values = last_values.detach().cpu().numpy()
        last_values, dones = np.asarray(last_values, dtype=np.float64).ravel(), np.asarray(dones, dtype=bool).ravel()
        if self.recompute is None:
            self.set_returns_and_advantages(np.where(dones, 0.0, last_values))
        else:
            self.recompute(self, last_values, dones)

    def set_returns_and_advantages(self, last_values: np.ndarray) -> None:
        """
        The returns-to-go (TD(lambda) targets if ``gae_lambda < 1``) and the advantages over ``values``.

        :param last_values: The value after each episode's last timestep, 0 where nothing follows, shape ``(n_episodes,)``
        """
        if self.gae_lambda == 1.0:
            returns = returns_to_go(self.rewards, self.gamma, self.episodes, last_values)
            advantages = returns - self.values
        else:
            advantages = generalized_advantages(
                self.rewards, self.values, self.gamma, self.gae_lambda, self.episodes, last_values
            )
            returns = advantages + self.values
        self.returns, self.advantages = as_float32(returns), as_float32(advantages)

    def flat_observations(self) -> np.ndarray:
        """
        :return: The observations as rows of numbers; a discrete observation has a number for each of its values; shape
            ``(n_timesteps, n_numbers)``
        """
        return _flatten(self.observations, self.observation_space)

    def get(  # type: ignore[override]
        self, batch_size: int | None = None, shuffle: bool = True
    ) -> Generator[EpisodeRolloutBufferSamples, None, None]:
        """
        :param batch_size: Number of timesteps per minibatch; ``None``: one minibatch of all timesteps
        :param shuffle: Whether to draw the timesteps in random order. Otherwise the minibatches are views of the buffer,
            which the next rollout overwrites
        :return: Minibatches that cover the rollout once
        """
        assert self.full, "The buffer holds no finished rollout."
        n_timesteps = len(self.rewards)
        batch_size = n_timesteps if batch_size is None else batch_size
        order = np.random.permutation(n_timesteps) if shuffle else None
        for first in range(0, n_timesteps, batch_size):
            rows = slice(first, first + batch_size)
            yield self._get_samples(rows if order is None else order[rows])

    def _get_samples(  # type: ignore[override]
        self, batch_inds: np.ndarray | slice, env: VecNormalize | None = None
    ) -> EpisodeRolloutBufferSamples:
        return EpisodeRolloutBufferSamples(
            observations=self._observation_samples(batch_inds),
            # Cast to float32, as SB3 does: the log-probabilities of a MultiBinary space need it
            actions=self.to_torch(self.actions[batch_inds].astype(np.float32, copy=False), copy=False),
            old_values=self.to_torch(self.values[batch_inds], copy=False),
            old_log_prob=self.to_torch(self.log_probs[batch_inds], copy=False),
            advantages=self.to_torch(self.advantages[batch_inds], copy=False),
            returns=self.to_torch(self.returns[batch_inds], copy=False),
            timesteps=self.to_torch(self.timesteps[batch_inds], copy=False),
            episode_ids=self.to_torch(self.episode_ids[batch_inds], copy=False),
        )

    def _observation_samples(self, batch_inds: np.ndarray | slice) -> th.Tensor | TensorDict:
        return self.to_torch(self.observations[batch_inds], copy=False)


class EpisodeDictRolloutBuffer(EpisodeRolloutBuffer, DictRolloutBuffer):  # type: ignore[misc]
    """
    :class:`EpisodeRolloutBuffer` for dictionary observations: ``observations`` is a dictionary of flat arrays.

    :param buffer_size: Number of steps per environment for which memory is first set aside
    :param observation_space: Observation space
    :param action_space: Action space
    :param device: PyTorch device
    :param gae_lambda: Factor for trade-off of bias vs variance for Generalized Advantage Estimator;
        1 is the Monte Carlo return
    :param gamma: Discount factor
    :param n_envs: Number of parallel environments
    """

    observation_space: spaces.Dict
    obs_shape: dict[str, tuple[int, ...]]
    observations: dict[str, np.ndarray]

    def _observation_rows(self) -> dict[str, tuple[tuple[int, ...], np.dtype | None]]:
        return {f"observations/{key}": (shape, self.observation_space[key].dtype) for key, shape in self.obs_shape.items()}

    def _write_observations(self, obs: np.ndarray | dict[str, np.ndarray], first: int, stop: int) -> None:
        assert isinstance(obs, dict)
        for key, shape in self.obs_shape.items():
            array = obs[key]
            self._rows_for(f"observations/{key}", array.dtype)[first:stop] = array.reshape(-1, *shape)

    def _publish_observations(self, order: slice | np.ndarray) -> None:
        assert self._rows is not None
        self.observations = {key: _in_order(self._rows[f"observations/{key}"], order) for key in self.obs_shape}

    def _observation_samples(self, batch_inds: np.ndarray | slice) -> TensorDict:
        return {key: self.to_torch(array[batch_inds], copy=False) for key, array in self.observations.items()}


def _in_order(array: np.ndarray, order: slice | np.ndarray) -> np.ndarray:
    """Rows of an array. `take` copies short rows in a fifth of the time of an index."""
    return array[order] if isinstance(order, slice) else array.take(order, axis=0)


@np.errstate(under="ignore")
def as_float32(array: np.ndarray) -> np.ndarray:
    """
    :param array: Numbers in float64; the smallest become 0
    :return: The same in float32
    """
    return array.astype(np.float32)


def one_hot(columns: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """
    SB3's encoding of discrete observations. No table is kept, whose size would be the square of the number of values.

    :param columns: Integers, of any dtype, shape ``(n, len(sizes))``
    :param sizes: How many values each column has
    :return: For each column one number per value, 1 for the actual value, else 0, shape ``(n, sum(sizes))``, float32
    :raises ValueError: If a number is not one of its column's values
    """
    values = columns.astype(np.int64)  # towards zero, as PyTorch does it
    result = np.zeros((len(values), sum(sizes)), np.float32)
    every_row, first = np.arange(len(values)), 0
    for column, size in zip(values.T, sizes, strict=True):
        if column.size and not 0 <= column.min() <= column.max() < size:
            wrong = next(value for value in column.tolist() if not 0 <= value < size)
            raise ValueError(f"A discrete observation must be one of the {size} integers from 0 on, got {wrong}.")
        result[every_row, first + column] = 1.0
        first += size
    return result


def _flatten(observations: np.ndarray | dict[str, np.ndarray], space: spaces.Space) -> np.ndarray:
    if isinstance(space, spaces.Dict):
        return np.concatenate([_flatten(observations[key], part) for key, part in space.spaces.items()], axis=1)
    assert isinstance(observations, np.ndarray)
    rows = observations.reshape(len(observations), -1)
    if isinstance(space, spaces.Discrete):
        # As in SB3, without the `start` of the space
        return one_hot(rows, [int(space.n)])
    if isinstance(space, spaces.MultiDiscrete):
        return one_hot(rows, space.nvec.ravel().tolist())
    return rows
