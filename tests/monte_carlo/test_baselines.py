"""The baselines against references that look at one timestep after the other."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sb3_reinforce.monte_carlo import baselines
from sb3_reinforce.monte_carlo.episodes import Episodes

NUMBERS = st.floats(-100, 100)


@st.composite
def rollouts(draw: st.DrawFn, from_the_start: bool = False) -> tuple[Episodes, np.ndarray, np.ndarray]:
    """Episodes in a few environments, with a return and a value at each timestep."""
    lengths = draw(st.lists(st.integers(1, 12), min_size=1, max_size=8))
    env_ids = sorted(draw(st.lists(st.integers(0, 3), min_size=len(lengths), max_size=len(lengths))))
    first = [0] * len(lengths)
    if not from_the_start:
        first = draw(st.lists(st.integers(0, 6), min_size=len(lengths), max_size=len(lengths)))
    n = sum(lengths)
    returns, values = (np.array(draw(st.lists(NUMBERS, min_size=n, max_size=n))) for _ in range(2))
    return Episodes(np.array(lengths), np.array(env_ids), np.array(first)), returns, values


def others(episodes: Episodes, i: int, only_earlier: bool) -> list[int]:
    """The episodes that the baseline of episode ``i`` may look at."""
    return [
        j
        for j in range(len(episodes.lengths))
        if j != i and not (only_earlier and episodes.env_ids[j] == episodes.env_ids[i] and j > i)
    ]


def naive_leave_one_out(episodes: Episodes, returns: np.ndarray, only_earlier: bool) -> list[float]:
    at = {
        (i, t): g for i, t, g in zip(episodes.episode_ids.tolist(), episodes.timesteps.tolist(), returns.tolist(), strict=True)
    }
    result = []
    for i, t in at:
        running = [at[j, t] for j in others(episodes, i, only_earlier) if (j, t) in at]
        result.append(math.fsum(running) / len(running) if running else 0.0)
    return result


def whole(episodes: Episodes, returns: np.ndarray) -> np.ndarray:
    """A return per episode, at each of its timesteps."""
    return np.array([returns[episodes.starts[i]] for i in episodes.episode_ids])


def evaluate(baseline: Any, rollout: Any, reward_to_go: bool = True, only_earlier: bool = False) -> np.ndarray:
    episodes, returns, values = rollout
    if not reward_to_go:
        returns = whole(episodes, returns)
    copies = returns.copy(), values.copy()
    rollout = baselines.EpisodeReturns(returns, reward_to_go, episodes, values, only_earlier_episodes=only_earlier)
    result = baselines.evaluate(baselines.make_baseline(baseline), rollout)
    assert (returns == copies[0]).all() and (values == copies[1]).all(), "the arguments were changed"
    assert result.shape == returns.shape and result.dtype == np.float64
    return result


# The named ones


@given(rollouts(), st.booleans())
def test_without_a_baseline_nothing_is_subtracted(rollout, reward_to_go):
    assert not evaluate(None, rollout, reward_to_go).any()


@given(rollouts())
def test_the_mean_is_over_all_timesteps(rollout):
    _, returns, _ = rollout
    assert np.allclose(evaluate("mean", rollout), sum(returns.tolist()) / len(returns), atol=1e-9)


@given(rollouts())
def test_the_mean_of_whole_episodes_counts_each_episode_once(rollout):
    episodes, returns, _ = rollout
    first = [returns[start] for start in episodes.starts]
    assert np.allclose(evaluate("mean", rollout, reward_to_go=False), sum(first) / len(first), atol=1e-9)


@given(rollouts(), st.booleans())
def test_leave_one_out_is_the_mean_of_the_others_that_still_run(rollout, only_earlier):
    episodes, returns, _ = rollout
    expected = naive_leave_one_out(episodes, returns, only_earlier)
    assert np.allclose(evaluate("leave_one_out", rollout, True, only_earlier), expected, atol=1e-8)


@given(rollouts(), st.booleans())
def test_leave_one_out_of_whole_episodes_is_the_mean_of_the_other_episodes(rollout, only_earlier):
    episodes, returns, _ = rollout
    expected = []
    for i in episodes.episode_ids:
        counted = [returns[episodes.starts[j]] for j in others(episodes, i, only_earlier)]
        expected.append(math.fsum(counted) / len(counted) if counted else 0.0)
    assert np.allclose(evaluate("leave_one_out", rollout, False, only_earlier), expected, atol=1e-8)


@given(rollouts(), st.booleans(), st.booleans(), st.data())
def test_leave_one_out_depends_on_no_return_of_its_own_episode(rollout, reward_to_go, only_earlier, data):
    episodes, returns, values = rollout
    own = episodes.episode_ids == data.draw(st.integers(0, len(episodes.lengths) - 1))
    changed = episodes, np.where(own, returns + 50.0, returns), values
    before, after = (evaluate("leave_one_out", r, reward_to_go, only_earlier) for r in (rollout, changed))
    assert np.allclose(before[own], after[own], atol=1e-8)


@given(rollouts(), st.booleans(), st.data())
def test_leave_one_out_of_earlier_episodes_depends_on_no_later_one_of_the_environment(rollout, reward_to_go, data):
    episodes, returns, values = rollout
    i = data.draw(st.integers(0, len(episodes.lengths) - 1))
    own, ids = episodes.episode_ids == i, episodes.episode_ids
    later = (ids > i) & (episodes.env_ids[ids] == episodes.env_ids[i])
    changed = episodes, np.where(later, returns + 50.0, returns), values
    before, after = (evaluate("leave_one_out", r, reward_to_go, True) for r in (rollout, changed))
    assert np.allclose(before[own], after[own], atol=1e-8)


def test_leave_one_out_keeps_its_digits_beside_a_large_offset():
    returns, timesteps = 1e9 + np.arange(6.0), np.array([0, 0, 0, 0, 0, 0])
    assert baselines.leave_one_out(returns, timesteps) - 1e9 == pytest.approx([3.0, 2.8, 2.6, 2.4, 2.2, 2.0], abs=1e-5)


def test_leave_one_out_of_a_single_episode_is_zero():
    assert not baselines.leave_one_out(np.array([5.0, 3.0]), np.array([0, 1])).any()
    assert not baselines.leave_one_out(np.array([5.0, 3.0]), np.array([0, 1]), np.array([2, 2])).any()


def test_leave_one_out_of_nothing_is_nothing():
    empty = np.zeros(0, dtype=int)
    assert baselines.leave_one_out(empty, empty).shape == (0,)


@given(rollouts())
def test_the_value_baseline_is_the_critics(rollout):
    assert (evaluate("value", rollout) == rollout[2]).all()


@given(rollouts())
def test_the_value_baseline_of_whole_episodes_is_the_critics_at_their_start(rollout):
    episodes, _, values = rollout
    assert (evaluate("value", rollout, reward_to_go=False) == whole(episodes, values)).all()


# The user's own


@given(rollouts(), st.booleans())
def test_a_callable_gets_the_rollout_as_flat_float_arrays(rollout, reward_to_go):
    episodes, returns, _ = rollout
    seen: list[np.ndarray] = []

    def baseline(*arguments: np.ndarray) -> np.ndarray:
        seen.extend(arguments)
        return arguments[1] + 10 * arguments[2]

    result = evaluate(baseline, rollout, reward_to_go)
    assert [array.dtype for array in seen] == [np.float64] * 3
    assert (seen[0] == (returns if reward_to_go else whole(episodes, returns))).all()
    assert seen[1].tolist() == episodes.timesteps.tolist()
    assert seen[2].tolist() == episodes.episode_ids.tolist()
    assert (result == episodes.timesteps + 10 * episodes.episode_ids).all()


@given(rollouts())
def test_a_callable_that_writes_into_its_arguments_changes_nothing(rollout):
    def baseline(returns: np.ndarray, timesteps: np.ndarray, episode_ids: np.ndarray) -> np.ndarray:
        result = returns.copy()
        for array in (returns, timesteps, episode_ids):
            array[:] = -1.0
        return result

    assert (evaluate(baseline, rollout) == rollout[1]).all()


def of_function(function: Any, *lengths: int) -> np.ndarray:
    """The baseline of episodes of these lengths with returns of zero."""
    zeros = np.zeros(len(lengths), dtype=int)
    episodes, n = Episodes(np.array(lengths), zeros, zeros), sum(lengths)
    rollout = baselines.EpisodeReturns(np.zeros(n), True, episodes, np.zeros(n))
    return baselines.evaluate(baselines.make_baseline(function), rollout)


@pytest.mark.parametrize("to", [list, tuple, np.float32, lambda x: x.astype(object), lambda x: x.astype(int)])
def test_a_callable_may_return_anything_that_is_such_an_array(to):
    result = of_function(lambda g, t, i: to(t), 3)
    assert result.tolist() == [0.0, 1.0, 2.0] and result.dtype == np.float64


@pytest.mark.parametrize(
    "result",
    [
        None,
        0.0,
        "mean",
        np.zeros(2),
        np.zeros(4),
        np.zeros((3, 1)),
        np.zeros((1, 3)),
        np.zeros(0),
        ["a", "b", "c"],
        np.array(["a", "b", "c"]),
        [[1.0], [1.0, 2.0], [3.0]],
        [object(), object(), object()],
        object(),
        {"a": 1.0},
        np.array([1.0, 2.0, 3.0]) + 1j,
        [None, 1.0, 2.0],
    ],
    ids=lambda result: type(result).__name__,
)
def test_a_callable_that_returns_no_array_of_that_shape_is_refused(result):
    with pytest.raises(ValueError, match="callable `baseline` returned"):
        of_function(lambda g, t, i: result, 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_callable_that_returns_a_number_that_is_not_finite_is_refused_with_its_place(bad):
    def baseline(returns: np.ndarray, timesteps: np.ndarray, episode_ids: np.ndarray) -> np.ndarray:
        return np.where((timesteps == 1) & (episode_ids == 1), bad, 0.0)

    with pytest.raises(ValueError, match=f"returned {bad} at timestep 1 of episode 1, expected finite"):
        of_function(baseline, 3, 2)


def test_an_exception_in_the_callable_reaches_the_user_as_it_is():
    def baseline(returns: np.ndarray, timesteps: np.ndarray, episode_ids: np.ndarray) -> np.ndarray:
        raise ValueError("the user's own words")

    with pytest.raises(ValueError, match=r"^the user's own words$"):
        of_function(baseline, 3)
