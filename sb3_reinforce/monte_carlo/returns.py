"""
The returns of the episodes in a rollout.

Pure functions over flat arrays: the timesteps of all episodes one after the other, episode by episode.
Everything is computed in float64, for all episodes at once.
"""

import numpy as np

from sb3_reinforce.monte_carlo.episodes import Episodes

#: A sum or a deviation that is smaller than this, relative to the numbers, is a rounding error
ROUNDING = 4 * float(np.finfo(np.float32).eps)
#: Returns are alike if they deviate by less than this share of their mean
ALIKE = 0.1


def are_alike(mean: float, deviation: float) -> bool:
    """
    :param mean: Mean of some returns
    :param deviation: Their standard deviation
    :return: Whether it is no more than a small share of their mean
    """
    return bool(deviation <= ALIKE * abs(mean))


def discounted_sums(x: np.ndarray, discount: float, lengths: np.ndarray) -> np.ndarray:
    r"""
    For every timestep the discounted sum from it to the end of its episode:
    :math:`y_t = \sum_{k=t}^{T-1} \text{discount}^{k-t} x_k`.

    Each pass doubles the length of the sums (a parallel scan), so that the work is
    :math:`O(n \log T)` in whole-array operations, whatever the lengths of the episodes.

    :param x: Summands, shape ``(n_timesteps,)``
    :param discount: Discount per timestep, in [0, 1]
    :param lengths: Lengths of the episodes, shape ``(n_episodes,)``
    :return: The sums, shape ``(n_timesteps,)``, float64
    """
    sums = np.array(x, dtype=np.float64)
    remaining = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(sums)) - 1
    stride, factor, longest = 1, discount, int(lengths.max(initial=0))
    while stride < longest and factor > 0.0:
        sums[:-stride] += np.where(remaining[:-stride] >= stride, factor * sums[stride:], 0.0)
        stride, factor = 2 * stride, factor * factor
    return sums


def returns_to_go(rewards: np.ndarray, gamma: float, episodes: Episodes, last_values: np.ndarray | None = None) -> np.ndarray:
    r"""
    Monte Carlo returns :math:`G_t = \sum_{k=t}^{T-1} \gamma^{k-t} r_k + \gamma^{T-t} V(s_T)`
    (Sutton and Barto, 2018, eq. 3.8, with the bootstrap of a truncated episode).

    :param rewards: Rewards, shape ``(n_timesteps,)``
    :param gamma: Discount factor
    :param episodes: How the timesteps divide into episodes
    :param last_values: The value after each episode's last recorded timestep: :math:`V(s_T)` of a truncated
        episode, 0 of a terminated one, shape ``(n_episodes,)``. ``None``: 0
    :return: Return from each timestep on, shape ``(n_timesteps,)``, float64
    """
    summands = np.array(rewards, dtype=np.float64)
    if last_values is not None:
        summands[episodes.ends] += gamma * np.asarray(last_values, dtype=np.float64)
    return discounted_sums(summands, gamma, episodes.lengths)


def whole_episode_returns(returns: np.ndarray, episodes: Episodes) -> np.ndarray:
    """
    The return :math:`G_0` of the whole episode, at each of its timesteps.

    :param returns: Returns-to-go, shape ``(n_timesteps,)``
    :param episodes: How the timesteps divide into episodes
    :return: Shape ``(n_timesteps,)``
    """
    return np.repeat(returns[episodes.starts], episodes.lengths)


def generalized_advantages(
    rewards: np.ndarray,
    values: np.ndarray,
    gamma: float,
    gae_lambda: float,
    episodes: Episodes,
    last_values: np.ndarray,
) -> np.ndarray:
    r"""
    Generalized advantage estimation :math:`A_t = \sum_{k \geq t} (\gamma\lambda)^{k-t} \delta_k` with
    :math:`\delta_k = r_k + \gamma V(s_{k+1}) - V(s_k)` (Schulman et al., 2016, arXiv 1506.02438, eq. 16).

    :param rewards: Rewards, shape ``(n_timesteps,)``
    :param values: Values of the states, shape ``(n_timesteps,)``
    :param gamma: Discount factor
    :param gae_lambda: Trade-off of bias against variance; 1 gives the Monte Carlo return minus the value
    :param episodes: How the timesteps divide into episodes
    :param last_values: Value after the last recorded timestep, 0 where the episode terminated,
        shape ``(n_episodes,)``
    :return: Advantages, shape ``(n_timesteps,)``, float64
    """
    next_values = np.append(np.asarray(values, dtype=np.float64)[1:], 0.0)
    next_values[episodes.ends] = last_values
    deltas = rewards + gamma * next_values - values
    return discounted_sums(deltas, gamma * gae_lambda, episodes.lengths)
