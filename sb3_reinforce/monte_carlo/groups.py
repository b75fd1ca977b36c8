"""Advantages in units of the group: several attempts at the same instance."""

import numpy as np

from sb3_reinforce.monte_carlo.episodes import Episodes
from sb3_reinforce.monte_carlo.returns import ROUNDING


@np.errstate(all="ignore")  # what is not finite in the end is found where it is used
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
    :return: Shape ``(n_timesteps,)``, float32; zero in a group of which nothing can be learned, see :func:`group_scales`
    """
    scales = group_scales(advantages, returns, episodes, group_size)
    return (centered_within_groups(advantages, episodes, group_size) * scales).astype(np.float32)


def centered_within_groups(advantages: np.ndarray, episodes: Episodes, group_size: int) -> np.ndarray:
    """
    :param advantages: Advantages, shape ``(n_timesteps,)``
    :param episodes: How the timesteps divide into episodes
    :param group_size: This many environments at a time have started from the same seed
    :return: The advantages without the mean of each group, shape ``(n_timesteps,)``, float64
    """
    return advantages - _mean(advantages, np.repeat(_group_ids(episodes, group_size), episodes.lengths))


def group_scales(advantages: np.ndarray, returns: np.ndarray, episodes: Episodes, group_size: int) -> np.ndarray:
    r"""
    :param advantages: See :func:`normalized_within_groups`
    :param returns: See there
    :param episodes: See there
    :param group_size: See there
    :return: :math:`1 / \sigma_g` for each timestep, shape ``(n_timesteps,)``, float64; zero in a group whose advantages differ
        by rounding errors alone, or whose episodes have all the same return
    """
    of_episodes = _group_ids(episodes, group_size)
    group_ids = np.repeat(of_episodes, episodes.lengths)
    n_timesteps = np.bincount(group_ids)
    variances = _mean(centered_within_groups(advantages, episodes, group_size) ** 2, group_ids)
    deviations = np.sqrt(variances * (n_timesteps / np.maximum(n_timesteps - 1, 1))[group_ids])
    rounding = ROUNDING * _largest(np.abs(returns), group_ids)
    # What differs then are the critic's errors, or the timesteps
    whole = returns[episodes.starts]
    differ = (_largest(whole, of_episodes) + _largest(-whole, of_episodes))[group_ids] > rounding[group_ids]
    useful = differ & (deviations > rounding[group_ids])
    return np.divide(1.0, deviations, out=np.zeros_like(deviations), where=useful)


def _group_ids(episodes: Episodes, group_size: int) -> np.ndarray:
    """The index of each episode's group."""
    return np.unique(episodes.env_ids // group_size, return_inverse=True)[1]


def _mean(values: np.ndarray, group_ids: np.ndarray) -> np.ndarray:
    """The mean of each timestep's group, in float64."""
    return (np.bincount(group_ids, values) / np.bincount(group_ids))[group_ids]


def _largest(values: np.ndarray, group_ids: np.ndarray) -> np.ndarray:
    """The largest value of each group."""
    largest = np.full(group_ids.max() + 1, -np.inf)
    np.maximum.at(largest, group_ids, values)
    return largest
