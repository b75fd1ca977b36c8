"""A baseline that is linear in observation and time, fitted to the other episodes of the batch."""

import numpy as np

from sb3_reinforce.monte_carlo.episodes import Episodes


def linear(features: np.ndarray, returns: np.ndarray, episodes: Episodes, only_earlier_episodes: bool) -> np.ndarray:
    """
    A linear function of features of observation and time, fitted by ridge regression for each episode on the returns of
    the others (0 where there is no other episode). Unbiased under the condition of
    :func:`sb3_reinforce.monte_carlo.baselines.leave_one_out`.

    Duan et al. (2016, arXiv 1604.06778) fit theirs to the previous batch. The other episodes of this batch come from the
    present policy, and nothing has to be kept between updates.

    :param features: See :func:`linear_features`, shape ``(n_timesteps, n_features)``
    :param returns: Returns, shape ``(n_timesteps,)``
    :param episodes: How the timesteps divide into episodes
    :param only_earlier_episodes: Whether the later episodes of the same environment are left out
    :return: Shape ``(n_timesteps,)``, float64
    """
    returns = np.asarray(returns, dtype=np.float64)
    result = np.zeros(len(returns))
    if len(returns) == 0:
        return result
    # The fit does not depend on the level of a column, which is subtracted so that the sums below lose no digits
    level = returns.mean()
    rows = np.column_stack([features - features.mean(axis=0), returns - level, np.ones(len(returns))])
    total = rows.T @ rows
    left_out, n_left_out = np.zeros_like(total), 0
    for i in reversed(range(len(episodes.lengths))):
        span = slice(episodes.starts[i], episodes.starts[i] + episodes.lengths[i])
        has_later = i + 1 < len(episodes.lengths) and episodes.env_ids[i + 1] == episodes.env_ids[i]
        if not (only_earlier_episodes and has_later):
            left_out, n_left_out = np.zeros_like(total), 0
        left_out, n_left_out = left_out + rows[span].T @ rows[span], n_left_out + 1
        n_others = len(episodes.lengths) - n_left_out
        if n_others > 0:
            # The timesteps of an episode are not independent samples: the penalty weighs as much as one episode
            result[span] = level + ridge_prediction(total - left_out, rows[span, :-2], penalty=1.0 / n_others)
    return result


def ridge_prediction(moments: np.ndarray, features: np.ndarray, penalty: float) -> np.ndarray:
    r"""
    Ridge regression from the moments of its samples (Hoerl and Kennard, 1970), with a free intercept and features in units
    of their standard deviation :math:`\sigma_j`: the slopes minimise
    :math:`\langle (y - \bar y - (x - \bar x) \cdot \beta)^2 \rangle + \lambda \sum_j \sigma_j^2 \beta_j^2`.
    Far from its samples the regression is unreliable: the predictions are kept within three standard deviations of their mean.

    :param moments: :math:`\sum z z^T` over the samples with :math:`z = (x, y, 1)`, shape
        ``(n_features + 2, n_features + 2)``
    :param features: Features of the timesteps to predict for, shape ``(n, n_features)``
    :param penalty: :math:`\lambda`, positive
    :return: Shape ``(n,)``
    """
    second = moments / moments[-1, -1]
    means = second[-1, :-1]
    covariances = second[:-1, :-1] - np.outer(means, means)
    variances = np.diag(covariances)
    # A feature that is constant over the samples, up to rounding, predicts nothing
    varies = variances[:-1] > 1e-9 * np.diag(second)[:-2]
    deviations = np.sqrt(variances[:-1][varies])
    correlations = covariances[:-1, :-1][np.ix_(varies, varies)] / np.outer(deviations, deviations)
    slopes = np.linalg.solve(correlations + penalty * np.eye(len(deviations)), covariances[:-1, -1][varies] / deviations)
    deviation = 3.0 * np.sqrt(max(variances[-1], 0.0))
    predictions = (features - means[:-1])[:, varies] / deviations @ slopes
    return means[-1] + np.clip(predictions, -deviation, deviation)


def linear_features(observations: np.ndarray, timesteps: np.ndarray) -> np.ndarray:
    """
    The features of :func:`linear`: the observation, its squares, and the first three powers of the time in hundreds of
    timesteps (Duan et al., 2016, arXiv 1604.06778, supplement; without their clipping at 10, which the
    units of this regression make needless).

    :param observations: Flat observations, shape ``(n_timesteps, n_numbers)``
    :param timesteps: Timestep within the episode, shape ``(n_timesteps,)``
    :return: Shape ``(n_timesteps, 2 * n_numbers + 3)``, float64
    """
    obs, time = np.asarray(observations, dtype=np.float64), timesteps[:, None] / 100.0
    return np.concatenate([obs, obs**2, time, time**2, time**3], axis=1)
