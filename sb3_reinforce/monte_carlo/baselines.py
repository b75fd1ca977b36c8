"""
Baselines, which are subtracted from the returns to lower the variance of the gradient estimate.

A baseline may depend on anything except the actions of its own episode from its own timestep on; then it leaves the
expectation of the estimate unchanged (Williams, 1992; Sutton and Barto, 2018, sec. 13.4).
To add one, write a subclass of :class:`Baseline` and pass an instance as the argument ``baseline`` of REINFORCE.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from sb3_reinforce.monte_carlo.episodes import Episodes
from sb3_reinforce.monte_carlo.linear import linear, linear_features

#: A user's own baseline as a function: ``baseline(returns, timesteps, episode_ids)``, all of shape ``(n_timesteps,)``
BaselineFunction = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
#: The linear baseline solves, for each episode, as many equations as it has features: two for each number
MAX_LINEAR_NUMBERS = 1024


@dataclass(frozen=True)
class EpisodeReturns:
    """
    The returns of a batch of episodes, and the other inputs of a baseline.

    :param returns: Returns-to-go, or at each timestep the return of its whole episode, shape ``(n_timesteps,)``, float64
    :param reward_to_go: Whether they are returns-to-go
    :param episodes: How the timesteps divide into episodes
    :param values: Values of the observations, 0 without a critic, shape ``(n_timesteps,)``
    :param features: The features that the baseline has computed, see :meth:`Baseline.features`; the first axis is that of
        the timesteps
    :param only_earlier_episodes: Whether an episode's baseline must not contain the later episodes of the same environment,
        because the length of this episode decides whether they are played
    :param group_size: This many environments at a time have started from the same seed
    """

    returns: np.ndarray
    reward_to_go: bool
    episodes: Episodes
    values: np.ndarray
    features: np.ndarray | None = None
    only_earlier_episodes: bool = False
    group_size: int = 1

    def samples(self, array: np.ndarray) -> np.ndarray:
        """
        :param array: Numbers of all timesteps, shape ``(n_timesteps,)``
        :return: The numbers of the timesteps whose returns are different samples: all timesteps with returns-to-go, else the
            first of each episode
        """
        return array if self.reward_to_go else array[self.episodes.starts]

    def at_timesteps(self, of_samples: np.ndarray) -> np.ndarray:
        """
        :param of_samples: Numbers in the form of :meth:`samples`
        :return: The number of each timestep, shape ``(n_timesteps,)``
        """
        return of_samples if self.reward_to_go else np.repeat(of_samples, self.episodes.lengths)

    def groups(self) -> Iterator[tuple[slice, "EpisodeReturns"]]:
        """
        :return: For each group of environments its timesteps, and the returns of its episodes alone
        """
        group_ids = self.episodes.env_ids // self.group_size
        bounds = np.append(0, np.cumsum(self.episodes.lengths))[np.searchsorted(group_ids, [*np.unique(group_ids), np.inf])]
        for first, stop in pairwise(bounds.tolist()):
            rows = slice(first, stop)
            episodes = self.episodes.within(rows)
            assert episodes is not None
            features = None if self.features is None else self.features[rows]
            own = replace(
                self, returns=self.returns[rows], episodes=episodes, values=self.values[rows], features=features, group_size=1
            )
            yield rows, own


class Baseline:
    """
    A baseline, which is subtracted from the returns. To define one of your own, override :meth:`__call__`, and
    :meth:`features` if it uses more than returns and times; then pass an instance as the argument ``baseline``.
    """

    #: Whether it consists of the values of the policy's critic, which is then trained
    uses_critic = False
    #: Whether it is computed over the episodes of all workers together
    over_batch = True
    #: Whether it is computed from the other episodes, so that an update must be able to hold two episodes
    of_others = False
    #: Whether it is computed within each group of environments that have started from the same seed
    within_groups = False

    def check(self, env: Any, observation_size: int) -> None:
        """
        Called when the model gets its environments, and when learning begins.

        :param env: The vectorized environment
        :param observation_size: How many numbers an observation has; a discrete one has a number for each of its values
        :raises ValueError: If the baseline cannot be used with them
        """

    def features(self, rollout: Any) -> np.ndarray | None:
        """
        What it uses besides the returns, as one array. With several workers their arrays are joined.

        :param rollout: The finished :class:`sb3_reinforce.buffers.EpisodeRolloutBuffer`, with ``observations``,
            ``timesteps`` and so on
        :return: An array whose first axis is that of the timesteps; ``None``: nothing
        """
        return None

    def __call__(self, episodes: EpisodeReturns) -> np.ndarray:
        """
        :param episodes: The returns of the batch
        :return: The baseline of each timestep, shape ``(n_timesteps,)``
        """
        raise NotImplementedError(f"{type(self).__name__} must define `__call__`.")


class NoBaseline(Baseline):
    """``baseline=None``: nothing is subtracted."""

    over_batch = False

    def __call__(self, episodes: EpisodeReturns) -> np.ndarray:
        return np.zeros(len(episodes.returns))


class Mean(Baseline):
    """``baseline="mean"``, see :func:`mean`: over the timesteps, or over the episodes if each has one return."""

    within_groups = True

    def __call__(self, episodes: EpisodeReturns) -> np.ndarray:
        return episodes.at_timesteps(mean(episodes.samples(episodes.returns)))


class LeaveOneOut(Baseline):
    """``baseline="leave_one_out"``, see :func:`leave_one_out`."""

    of_others = True
    within_groups = True

    def __call__(self, episodes: EpisodeReturns) -> np.ndarray:
        returns = episodes.samples(episodes.returns)
        env_ids = episodes.samples(episodes.episodes.env_ids[episodes.episodes.episode_ids])
        timesteps = episodes.episodes.timesteps if episodes.reward_to_go else np.zeros(len(returns), dtype=int)
        return episodes.at_timesteps(leave_one_out(returns, timesteps, env_ids if episodes.only_earlier_episodes else None))


class Linear(Baseline):
    """``baseline="linear"``, see :func:`sb3_reinforce.monte_carlo.linear.linear`."""

    of_others = True
    within_groups = True

    def check(self, env: Any, observation_size: int) -> None:
        if observation_size > MAX_LINEAR_NUMBERS:
            raise ValueError(
                f"`baseline='linear'` takes observations of at most {MAX_LINEAR_NUMBERS} numbers (use 'value' or "
                f"'leave_one_out' for images), got {observation_size}."
            )

    def features(self, rollout: Any) -> np.ndarray:
        return linear_features(rollout.flat_observations(), rollout.timesteps)

    def __call__(self, episodes: EpisodeReturns) -> np.ndarray:
        # Even with the returns of whole episodes it differs between timesteps
        assert episodes.features is not None
        return linear(episodes.features, episodes.returns, episodes.episodes, episodes.only_earlier_episodes)


class Value(Baseline):
    """``baseline="value"``: the policy's critic before this batch; with whole-episode returns, its value of the start."""

    uses_critic = True
    over_batch = False

    def __call__(self, episodes: EpisodeReturns) -> np.ndarray:
        return episodes.at_timesteps(np.asarray(episodes.samples(episodes.values), dtype=np.float64))


class FromFunction(Baseline):
    """
    A callable ``baseline``.

    :param function: Called with returns, timesteps and indices of the episodes, as float arrays of shape ``(n_timesteps,)``;
        returns an array of that shape
    """

    def __init__(self, function: BaselineFunction):
        self.function = function

    def __call__(self, episodes: EpisodeReturns) -> np.ndarray:
        where = episodes.episodes
        times = (array.astype(np.float64) for array in (where.timesteps, where.episode_ids))
        return self.function(episodes.returns, *times)


NAMED: dict[str | None, type[Baseline]] = {
    None: NoBaseline,
    "mean": Mean,
    "leave_one_out": LeaveOneOut,
    "linear": Linear,
    "value": Value,
}


def make_baseline(baseline: str | Baseline | BaselineFunction | None) -> Baseline:
    """
    :param baseline: The argument of REINFORCE
    :return: The baseline that it names or is
    :raises ValueError: If it is not a baseline
    """
    if isinstance(baseline, Baseline):
        return baseline
    if isinstance(baseline, str | None) and baseline in NAMED:
        return NAMED[baseline]()
    if callable(baseline) and not (isinstance(baseline, type) and issubclass(baseline, Baseline)):
        return FromFunction(baseline)  # type: ignore[arg-type]
    raise ValueError(
        f"`baseline` must be one of {', '.join(map(repr, NAMED))} or a callable `baseline(returns, timesteps, episode_ids)` "
        f"(or an instance of a `Baseline`), got {baseline!r}."
    )


def evaluate(baseline: Baseline, episodes: EpisodeReturns) -> np.ndarray:
    """
    :param baseline: A baseline
    :param episodes: The returns of a batch
    :return: Its value at each timestep, shape ``(n_timesteps,)``, float64
    :raises ValueError: If a user's own baseline does not return finite numbers of that shape
    """
    if baseline.within_groups and episodes.group_size > 1:
        result = np.empty(len(episodes.returns))
        for rows, own in episodes.groups():
            result[rows] = evaluate(baseline, own)
        return result
    if type(baseline) in NAMED.values():
        return baseline(episodes)
    returns, values = (np.array(array, dtype=np.float64) for array in (episodes.returns, episodes.values))
    name = "callable `baseline`" if isinstance(baseline, FromFunction) else f"`baseline` {type(baseline).__name__}"
    return as_baseline(baseline(replace(episodes, returns=returns, values=values)), episodes.episodes, name)


def mean(returns: np.ndarray) -> np.ndarray:
    """
    The mean of all returns, for each return. It contains the sample itself, which shrinks the expected gradient
    by about the sample's share in the mean: a slight bias.

    :param returns: Shape ``(n,)``
    :return: Shape ``(n,)``
    """
    return np.full(len(returns), np.mean(returns, dtype=np.float64))


def leave_one_out(returns: np.ndarray, timesteps: np.ndarray, env_ids: np.ndarray | None = None) -> np.ndarray:
    """
    For each return the mean of the other episodes' returns from the same timestep on
    (Kool et al., 2019, with one mean per timestep); 0 where there is no other episode. Unbiased, as long as the
    existence of the other episodes does not depend on this one.

    :param returns: Returns, shape ``(n,)``
    :param timesteps: Timestep of each return within its episode, shape ``(n,)``; an
        episode may have at most one return at a timestep
    :param env_ids: The environment of each return, shape ``(n,)``, the episodes of one environment in the order in which
        they were played. If given, the later episodes of the same environment are left out: when a rollout ends
        after a number of steps, the length of this one decides whether they are played. ``None``: all others count
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
    Sum and number of the returns at the same timestep, over this episode and the later ones of its environment.

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


def as_baseline(result: Any, episodes: Episodes, name: str) -> np.ndarray:
    """
    :param result: What a user's own baseline has returned
    :param episodes: How the timesteps of the returns divide into episodes
    :param name: The name of the baseline in errors
    :return: The same, shape ``(n_timesteps,)``, float64
    :raises ValueError: If it does not consist of finite numbers of that shape
    """
    shape = (episodes.n_timesteps,)
    try:
        values = np.asarray(result)
        if values.dtype.kind == "c":
            raise TypeError("complex numbers would lose their imaginary parts")
        values = values.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"The {name} returned {type(result).__name__}, expected an array of {shape} finite numbers."
        ) from error
    if values.shape != shape:
        raise ValueError(f"The {name} returned an array of shape {values.shape}, expected {shape}.")
    finite = np.isfinite(values)
    if not finite.all():
        first = int(np.argmin(finite))
        raise ValueError(
            f"The {name} returned {values[first]} at timestep {episodes.timesteps[first]} of "
            f"episode {episodes.episode_ids[first]}, expected finite numbers."
        )
    return values
