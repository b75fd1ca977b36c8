"""Advantages in units of the group."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sb3_reinforce.monte_carlo.episodes import Episodes
from sb3_reinforce.monte_carlo.groups import normalized_within_groups


@st.composite
def rollouts(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, Episodes, int]:
    group_size = draw(st.integers(2, 4))
    env_ids = np.arange(group_size * draw(st.integers(1, 4)))
    lengths = np.array(draw(st.lists(st.integers(1, 6), min_size=len(env_ids), max_size=len(env_ids))))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    advantages, returns = rng.normal(rng.normal(), draw(st.sampled_from([0.1, 1.0, 100.0])), (2, lengths.sum())).astype(
        np.float32
    )
    return advantages, returns, Episodes(lengths, env_ids, np.zeros_like(env_ids)), group_size


@given(rollouts())
@settings(max_examples=60, deadline=None)
def test_each_group_has_a_mean_of_0_and_a_deviation_of_1(rollout: tuple[np.ndarray, np.ndarray, Episodes, int]) -> None:
    advantages, returns, episodes, group_size = rollout
    found = normalized_within_groups(advantages, returns, episodes, group_size)
    for group in range(len(episodes) // group_size):
        rows = np.isin(np.repeat(episodes.env_ids, episodes.lengths), np.arange(group_size) + group * group_size)
        mine = advantages[rows].astype(np.float64)
        np.testing.assert_allclose(found[rows], (mine - mine.mean()) / mine.std(ddof=1), rtol=1e-4, atol=1e-4)


@given(rollouts(), st.integers(-20, 20))
@settings(max_examples=60, deadline=None)
def test_the_scale_of_a_group_changes_no_digit(rollout: tuple[np.ndarray, np.ndarray, Episodes, int], power: int) -> None:
    advantages, returns, episodes, group_size = rollout
    of_first = np.repeat(episodes.env_ids < group_size, episodes.lengths)
    scale = np.where(of_first, np.float32(2.0**power), np.float32(1.0))
    found = normalized_within_groups(scale * advantages, scale * returns, episodes, group_size)
    np.testing.assert_array_equal(found, normalized_within_groups(advantages, returns, episodes, group_size))


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_advantages_that_differ_by_rounding_errors_alone_are_zero(size: float) -> None:
    episodes = Episodes(np.full(4, 3), np.arange(4), np.zeros(4, int))
    returns = np.repeat(np.float32(size) * np.array([1.0, 1.0 + 1e-7, 2.0, 3.0], np.float32), 3)
    advantages = returns - np.repeat([size, 2.5 * size], 6).astype(np.float32)
    found = normalized_within_groups(advantages, returns, episodes, 2)
    assert not found[:6].any() and found[6:].all()


@pytest.mark.parametrize("reward_to_go", [True, False])
def test_attempts_with_the_same_return_teach_nothing_whatever_the_critic_and_the_timesteps_say(reward_to_go: bool) -> None:
    episodes = Episodes(np.full(4, 3), np.arange(4), np.zeros(4, int))
    returns = np.array([3, 2, 1] * 3 + [4, 2, 1], np.float32)  # the last episode of the second group alone is another one
    if not reward_to_go:
        returns = np.repeat(returns[::3], 3)
    errors_of_the_critic = np.random.default_rng(0).normal(size=12).astype(np.float32)
    found = normalized_within_groups(returns - errors_of_the_critic, returns, episodes, 2)
    assert not found[:6].any() and found[6:].all()
