"""Returns and lengths of the episodes that are being played, of all environments at once."""

import time

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

    def add(self, rewards: np.ndarray, dead: np.ndarray | None = None) -> None:
        """
        :param rewards: The rewards of a step, of shape (n_envs,)
        :param dead: The environments that have not played, but only begun an episode
        """
        self.returns += rewards
        self.lengths += 1
        if dead is not None:
            self.returns[dead] = 0.0
            self.lengths[dead] = 0

    def end(self, env_ids: np.ndarray) -> tuple[list[float], list[int], float]:
        """
        End episodes, and begin new ones.

        :param env_ids: The environments whose episodes have ended
        :return: The return and the length of each of these episodes, and the seconds since the beginning
        """
        returns, lengths = self.returns.take(env_ids).tolist(), self.lengths.take(env_ids).tolist()
        self.returns[env_ids] = 0.0
        self.lengths[env_ids] = 0
        # Rounded as by the Monitor, which takes longer than all the rest
        rounded = [r if r.is_integer() else round(r, 6) for r in returns]
        return rounded, lengths, round(time.time() - self.start, 6)
