"""How the timesteps of a rollout divide into episodes."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Episodes:
    """
    How the timesteps of a flat array divide into episodes.

    :param lengths: Number of recorded timesteps of each episode, shape ``(n_episodes,)``, all positive
    :param env_ids: The environment each episode was played in, shape ``(n_episodes,)``; the episodes of one
        environment are in the order of play
    :param first_timesteps: Timestep within its episode at which the recording of each episode begins,
        shape ``(n_episodes,)``; nonzero only for an episode that continues from an earlier rollout
    """

    lengths: np.ndarray
    env_ids: np.ndarray
    first_timesteps: np.ndarray

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def n_timesteps(self) -> int:
        """Number of recorded timesteps."""
        return int(self.lengths.sum())

    @property
    def starts(self) -> np.ndarray:
        """Index of the first recorded timestep of each episode, shape ``(n_episodes,)``."""
        return np.cumsum(self.lengths) - self.lengths

    @property
    def ends(self) -> np.ndarray:
        """Index of the last recorded timestep of each episode, shape ``(n_episodes,)``."""
        return np.cumsum(self.lengths) - 1

    @property
    def episode_ids(self) -> np.ndarray:
        """Index of the episode that each timestep belongs to, shape ``(n_timesteps,)``."""
        return np.repeat(np.arange(len(self.lengths)), self.lengths)

    @property
    def timesteps(self) -> np.ndarray:
        """The ``t`` of each timestep within its episode, shape ``(n_timesteps,)``."""
        return np.arange(self.n_timesteps) + np.repeat(self.first_timesteps - self.starts, self.lengths)

    def within(self, rows: slice) -> "Episodes | None":
        """
        :param rows: Consecutive timesteps
        :return: Their episodes; ``None`` if the timesteps cut through an episode
        """
        bounds = np.append(0, np.cumsum(self.lengths))
        first, stop = np.searchsorted(bounds, (rows.start, rows.stop)).tolist()
        if stop >= len(bounds) or bounds[first] != rows.start or bounds[stop] != rows.stop:
            return None
        return Episodes(self.lengths[first:stop], self.env_ids[first:stop], self.first_timesteps[first:stop])
