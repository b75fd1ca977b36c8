"""
Baselines: what is subtracted from the returns to lower the variance of the gradient estimate.

A baseline may depend on anything but the actions of its own episode from its own timestep on; then it leaves the
expectation of the estimate as it is (Williams, 1992; Sutton and Barto, 2018, sec. 13.4).
Pure functions over flat arrays, as in :mod:`sb3_reinforce.returns`.
"""

from collections.abc import Callable

import numpy as np

from sb3_reinforce.returns import Episodes

#: A user's own baseline: ``baseline(returns, timesteps, episode_ids)``, all of shape ``(n_timesteps,)``
BaselineFunction = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def evaluate(
    baseline: str | BaselineFunction | None,
    returns: np.ndarray,
    values: np.ndarray,
    episodes: Episodes,
    reward_to_go: bool,
    only_earlier_episodes: bool,
    features: np.ndarray | None = None,
) -> np.ndarray:
    """
    The baseline of each timestep. With the returns of whole episodes, an episode has one for all of its timesteps, except
    with ``"linear"``: what the observation and the time say about the whole return, they say at every timestep.

    :param baseline: ``None``, ``"mean"``, ``"leave_one_out"``, ``"linear"``, ``"value"`` or a function
    :param returns: Returns-to-go, or at every timestep the return of its whole episode, shape ``(n_timesteps,)``
    :param values: Values of the observations, for ``"value"``, shape ``(n_timesteps,)``
    :param episodes: How the timesteps divide into episodes
    :param reward_to_go: Which of the two the returns are
    :param only_earlier_episodes: Whether the later episodes of the same environment are left out of ``"leave_one_out"`` and
        ``"linear"``
    :param features: For ``"linear"``, see :func:`linear_features`, shape ``(n_timesteps, n_features)``
    :return: Shape ``(n_timesteps,)``
    """
    if baseline is None:
        return np.zeros(len(returns))
    if callable(baseline):
        return from_function(baseline, returns, episodes.timesteps, episodes.episode_ids)
    if baseline == "linear":
        assert features is not None
        return linear(features, returns, episodes, only_earlier_episodes)
    timesteps, env_ids = episodes.timesteps, episodes.env_ids[episodes.episode_ids]
    if not reward_to_go:
        returns, values, env_ids = returns[episodes.starts], values[episodes.starts], episodes.env_ids
        timesteps = np.zeros(len(returns), dtype=int)
    if baseline == "mean":
        result = mean(returns)
    elif baseline == "leave_one_out":
        result = leave_one_out(returns, timesteps, env_ids if only_earlier_episodes else None)
    else:
        result = np.asarray(values, dtype=np.float64)
    return result if reward_to_go else np.repeat(result, episodes.lengths)


def mean(returns: np.ndarray) -> np.ndarray:
    """
    The mean of the returns, for each of them. It contains the sample itself, which shrinks the expected gradient
    by about the sample's share in the mean: slightly biased.

    :param returns: Shape ``(n,)``
    :return: Shape ``(n,)``
    """
    return np.full(len(returns), np.mean(returns, dtype=np.float64))


def leave_one_out(returns: np.ndarray, timesteps: np.ndarray, env_ids: np.ndarray | None = None) -> np.ndarray:
    """
    For each return the mean of the other episodes' returns from the same timestep on
    (Kool et al., 2019, with one mean per timestep); 0 where there is no other. Unbiased, as long as the existence of
    the other episodes does not depend on this one.

    :param returns: Returns, shape ``(n,)``
    :param timesteps: Timestep of each return within its episode, shape ``(n,)``; at most one return of
        an episode may stand at a timestep
    :param env_ids: The environment of each return, shape ``(n,)``, the episodes of one environment in the order in which
        they were played. If given, the later episodes of the same environment are left out: when a rollout is over
        after so many steps, whether they are played depends on the length of this one. ``None``: all others count
    :return: Shape ``(n,)``, float64
    """
    returns = np.asarray(returns, dtype=np.float64)
    # Centred, so that the differences of sums below lose no digits to a common offset
    centre = returns.mean() if len(returns) > 0 else 0.0
    centred = returns - centre
    total = np.bincount(timesteps, weights=centred)[timesteps]
    count = np.bincount(timesteps)[timesteps]
    if env_ids is None:
        total, count = total - centred, count - 1
    else:
        later_sum, later_count = _from_here_on(centred, timesteps, env_ids)
        total, count = total - later_sum, count - later_count
    return np.where(count > 0, total / np.maximum(count, 1) + centre, 0.0)


def _from_here_on(returns: np.ndarray, timesteps: np.ndarray, env_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Sum and number of the returns of this and the later episodes of the same environment at the same timestep.

    :return: Two arrays of shape ``(n,)``
    """
    order = np.lexsort((timesteps, env_ids))  # stable: within a group the episodes stay in the order of play
    group_start = np.ones(len(order), dtype=bool)
    group_start[1:] = (np.diff(timesteps[order]) != 0) | (np.diff(env_ids[order]) != 0)
    last_of_group = np.append(np.flatnonzero(group_start)[1:], len(order))[np.cumsum(group_start) - 1] - 1
    sums = np.append(0.0, np.cumsum(returns[order]))
    here = np.arange(len(order))
    later_sum, later_count = np.empty(len(order)), np.empty(len(order), dtype=int)
    later_sum[order] = sums[last_of_group + 1] - sums[here]
    later_count[order] = last_of_group + 1 - here
    return later_sum, later_count


def linear(features: np.ndarray, returns: np.ndarray, episodes: Episodes, only_earlier_episodes: bool) -> np.ndarray:
    """
    A linear function of features of observation and time, fitted by ridge regression for each episode on the returns of
    the others (0 where there is no other). Unbiased under the condition of :func:`leave_one_out`.

    Duan et al. (2016, arXiv 1604.06778) fit theirs to the previous batch. The other episodes of this one are of the present
    policy, and nothing has to be kept from one update to the next.

    :param features: See :func:`linear_features`, shape ``(n_timesteps, n_features)``
    :param returns: Returns, shape ``(n_timesteps,)``
    :param episodes: How the timesteps divide into episodes
    :param only_earlier_episodes: Whether the later episodes of the same environment are left out, as in :func:`leave_one_out`
    :return: Shape ``(n_timesteps,)``, float64
    """
    returns = np.asarray(returns, dtype=np.float64)
    result = np.zeros(len(returns))
    if len(returns) == 0:
        return result
    # The level of a column drops out of the fit; without it the sums below lose no digits to it
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
            # The timesteps of an episode are no independent samples: the penalty weighs as much as one episode
            result[span] = level + ridge_prediction(total - left_out, rows[span, :-2], penalty=1.0 / n_others)
    return result


def ridge_prediction(moments: np.ndarray, features: np.ndarray, penalty: float) -> np.ndarray:
    r"""
    Ridge regression from the moments of its samples (Hoerl and Kennard, 1970), with a free intercept and features in units
    of their standard deviation :math:`\sigma_j`: the slopes minimise
    :math:`\langle (y - \bar y - (x - \bar x) \cdot \beta)^2 \rangle + \lambda \sum_j \sigma_j^2 \beta_j^2`.
    Far from its samples it says nothing: the predictions are kept within three standard deviations of their mean.

    :param moments: :math:`\sum z z^T` over the samples with :math:`z = (x, y, 1)`, shape
        ``(n_features + 2, n_features + 2)``
    :param features: What to predict at, shape ``(n, n_features)``
    :param penalty: :math:`\lambda`, positive
    :return: Shape ``(n,)``
    """
    second = moments / moments[-1, -1]
    means = second[-1, :-1]
    covariances = second[:-1, :-1] - np.outer(means, means)
    variances = np.diag(covariances)
    # What the samples do not vary in, up to rounding, predicts nothing
    varies = variances[:-1] > 1e-9 * np.diag(second)[:-2]
    deviations = np.sqrt(variances[:-1][varies])
    correlations = covariances[:-1, :-1][np.ix_(varies, varies)] / np.outer(deviations, deviations)
    slopes = np.linalg.solve(correlations + penalty * np.eye(len(deviations)), covariances[:-1, -1][varies] / deviations)
    deviation = 3.0 * np.sqrt(max(variances[-1], 0.0))
    predictions = (features - means[:-1])[:, varies] / deviations @ slopes
    return means[-1] + np.clip(predictions, -deviation, deviation)


def linear_features(observations: np.ndarray, timesteps: np.ndarray) -> np.ndarray:
    """
    What :func:`linear` is linear in: the observation, its squares, and the first three powers of the time in hundreds of
    timesteps (Duan et al., 2016, arXiv 1604.06778, supplement; as they have it but for their clipping at 10, which the
    units of the regression here make needless).

    :param observations: Flat observations, shape ``(n_timesteps, n_numbers)``
    :param timesteps: Timestep within the episode, shape ``(n_timesteps,)``
    :return: Shape ``(n_timesteps, 2 * n_numbers + 3)``, float64
    """
    obs, time = np.asarray(observations, dtype=np.float64), timesteps[:, None] / 100.0
    return np.concatenate([obs, obs**2, time, time**2, time**3], axis=1)


def from_function(
    function: BaselineFunction, returns: np.ndarray, timesteps: np.ndarray, episode_ids: np.ndarray
) -> np.ndarray:
    """
    The baseline that a user's function gives.

    :param function: Called with the three arrays below, as float64 copies; returns an array of the same shape
    :param returns: Returns, shape ``(n_timesteps,)``
    :param timesteps: Timestep of each return within its episode, shape ``(n_timesteps,)``
    :param episode_ids: Index of the episode of each return, shape ``(n_timesteps,)``
    :return: Shape ``(n_timesteps,)``, float64
    :raises ValueError: If the function returns anything but finite numbers of that shape
    """
    arguments = [np.array(array, dtype=np.float64) for array in (returns, timesteps, episode_ids)]
    result = function(*arguments)
    try:
        values = np.asarray(result)
        if values.dtype.kind == "c":
            raise TypeError("complex numbers would lose their imaginary parts")
        values = values.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The callable `baseline` returned {type(result).__name__}, expected an array of {returns.shape} finite numbers."
        ) from error
    if values.shape != returns.shape:
        raise ValueError(f"The callable `baseline` returned an array of shape {values.shape}, expected {returns.shape}.")
    finite = np.isfinite(values)
    if not finite.all():
        first = int(np.argmin(finite))
        raise ValueError(
            f"The callable `baseline` returned {values[first]} at timestep {int(timesteps[first])} of "
            f"episode {int(episode_ids[first])}, expected finite numbers."
        )
    return values
