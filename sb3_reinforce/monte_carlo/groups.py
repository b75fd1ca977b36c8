"""Advantages in units of the group: several attempts at the same instance."""

import numpy as np

from sb3_reinforce.finite import ROUNDING
from sb3_reinforce.monte_carlo.episodes import Episodes


def normalized_within_groups(advantages: np.ndarray, returns: np.ndarray, episodes: Episodes, group_size: int) -> np.ndarray:
    r"""
    Advantages with mean 0 and deviation 1 over the timesteps of each group: :math:`(A_t - \bar A_g) / \sigma_g`. With one
    reward at the end, no baseline and episodes of equal length these are the advantages of GRPO (Shao et al., 2024, arXiv
    2402.03300, sec. 4.1.2). The estimate is then not that of the expected return: an instance counts the more, the less
    its returns differ (Liu et al., 2025, arXiv 2503.20783).

    :param advantages: Advantages, shape ``(n_timesteps,)``
    :param returns: Returns, shape ``(n_timesteps,)``
    :param episodes: How the timesteps divide into episodes
    :param group_size: This many environments at a time have started from the same seed
    :return: Shape ``(n_timesteps,)``, float32; zero in a group whose advantages differ by rounding errors alone
    """
    means = _mean(advantages, _group_ids(episodes, group_size))
    return ((advantages - means) * group_scales(advantages, returns, episodes, group_size)).astype(np.float32)


def group_scales(advantages: np.ndarray, returns: np.ndarray, episodes: Episodes, group_size: int) -> np.ndarray:
    r"""
    :param advantages: See :func:`normalized_within_groups`
    :param returns: See there
    :param episodes: See there
    :param group_size: See there
    :return: :math:`1 / \sigma_g` for each timestep, shape ``(n_timesteps,)``, float64; zero in a group whose advantages differ
        by rounding errors alone
    """
    group_ids = _group_ids(episodes, group_size)
    sizes = np.bincount(group_ids)[group_ids]
    variances = _mean((advantages - _mean(advantages, group_ids)) ** 2, group_ids) * sizes / np.maximum(sizes - 1, 1)
    deviations, rounding = np.sqrt(variances), ROUNDING * np.sqrt(_mean(np.square(returns, dtype=np.float64), group_ids))
    return np.divide(1.0, deviations, out=np.zeros_like(deviations), where=deviations > rounding)


def _group_ids(episodes: Episodes, group_size: int) -> np.ndarray:
    return np.unique(np.repeat(episodes.env_ids // group_size, episodes.lengths), return_inverse=True)[1]


def _mean(values: np.ndarray, group_ids: np.ndarray) -> np.ndarray:
    """The mean of each timestep's group, in float64."""
    return (np.bincount(group_ids, values) / np.bincount(group_ids))[group_ids]
