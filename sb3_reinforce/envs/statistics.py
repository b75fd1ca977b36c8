"""Returns and lengths of the episodes that are being played, of all environments at once."""

import time

import numpy as np


class EpisodeStatistics:
    """
    What SB3's ``Monitor`` counts, without a step in Python for each environment.

    :param n_envs: The number of environments
    """

    def __init__(self, n_envs: int):
        self._counts = np.zeros((2, n_envs))  # returns and lengths
        self.start = time.time()

    @property
    def lengths(self) -> np.ndarray:
        """The number of steps that each environment has played in its episode."""
        return self._counts[1]

    def clear(self) -> None:
        """Begin new episodes in all environments."""
        self._counts[:] = 0.0

    def add(self, rewards: np.ndarray, dead: np.ndarray | None = None) -> None:
        """
        :param rewards: The rewards of a step, of shape (n_envs,)
        :param dead: The environments that have not played, but only begun an episode
        """
        self._counts[0] += rewards
        self._counts[1] += 1.0
        if dead is not None:
            self._counts[:, dead] = 0.0

    def running(self, env_id: int) -> tuple[float, int, float]:
        """
        :param env_id: An environment
        :return: The return and the length so far of the episode that it plays, and the time of the beginning
        """
        of_env, length = self._counts[:, env_id].tolist()
        return round(of_env, 6), int(length), self.start

    def end(self, env_ids: np.ndarray) -> tuple[list[float], list[int], float]:
        """
        End episodes, and begin new ones.

        :param env_ids: The environments whose episodes have ended
        :return: The return and the length of each of these episodes, and the seconds since the beginning
        """
        returns, lengths = self._counts.take(env_ids, axis=1).tolist()
        self._counts[:, env_ids] = 0.0
        # Rounded as by the Monitor, which takes longer than all the rest
        rounded = [r if r.is_integer() else round(r, 6) for r in returns]
        return rounded, list(map(int, lengths)), round(time.time() - self.start, 6)
