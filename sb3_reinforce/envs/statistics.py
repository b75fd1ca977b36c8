"""Returns and lengths of the episodes that are being played, of all environments at once."""

import time
from typing import Any

import numpy as np


class EpisodeStatistics:
    """
    What SB3's ``Monitor`` counts, without a step in Python for each environment.

    :param n_envs: The number of environments
    """

    def __init__(self, n_envs: int):
        self.returns = np.zeros(n_envs)
        self.lengths = np.zeros(n_envs, dtype=np.int64)
        self.start = time.time()

    def clear(self) -> None:
        """Begin new episodes in all environments."""
        self.returns[:] = 0.0
        self.lengths[:] = 0

    def add(self, rewards: np.ndarray, playing: np.ndarray | None = None) -> None:
        """
        :param rewards: The rewards of a step, of shape (n_envs,)
        :param playing: Which environments have played, of shape (n_envs,); all of them if ``None``
        """
        if playing is None:
            self.returns += rewards
            self.lengths += 1
        else:
            np.add(self.returns, rewards, out=self.returns, where=playing)
            self.lengths += playing

    def end(self, env_ids: np.ndarray) -> list[dict[str, Any]]:
        """
        End episodes, and begin new ones.

        :param env_ids: The environments whose episodes have ended
        :return: The ``episode`` info of each of them, as SB3's ``Monitor`` writes it
        """
        seconds = round(time.time() - self.start, 6)
        returns, lengths = self.returns[env_ids].tolist(), self.lengths[env_ids].tolist()
        self.returns[env_ids] = 0.0
        self.lengths[env_ids] = 0
        return [{"r": round(r, 6), "l": length, "t": seconds} for r, length in zip(returns, lengths, strict=True)]
