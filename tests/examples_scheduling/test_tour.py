"""Tours: their lengths, what is allowed, and the classical ones."""

from itertools import pairwise, permutations
from math import dist, sqrt

import numpy as np
import pytest
from stable_baselines3.common.env_checker import check_env

from examples.scheduling.tour import Tour, length_of, nearest_neighbour, two_opt


def at_random(env: Tour, seed: int) -> float:
    """Play an episode with any actions that are allowed."""
    rng, done = np.random.default_rng(seed), False
    env.reset(seed=seed)
    while not done:
        _, reward, done, _, _ = env.step(int(rng.choice(np.flatnonzero(env.action_masks()))))
    return reward


def directly(cities: np.ndarray, tour: list[int]) -> float:
    return sum(dist(cities[a], cities[b]) for a, b in pairwise([*tour, tour[0]]))


def test_the_environment_is_as_sb3_wants_it() -> None:
    class AnyAction(Tour):
        """The checker knows no masks."""

        def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, float]]:
            return super().step(action % len(self.nearest))

    check_env(AnyAction(6, 4), skip_render_check=True)


@pytest.mark.parametrize("seed", range(5))
def test_every_city_is_visited_and_the_length_is_that_of_the_tour(seed: int) -> None:
    env = Tour(12, 5)
    reward = at_random(env, seed)
    assert sorted(env.tour) == list(range(12))
    assert env.length == pytest.approx(directly(env.cities, env.tour))
    assert length_of(env.cities, env.tour) == pytest.approx(env.length)
    assert reward == pytest.approx(-env.length / sqrt(6))


def test_the_choice_is_among_the_nearest_that_are_left() -> None:
    cities = np.array([[0.0, 0.0], [0.1, 0.0], [0.3, 0.0], [0.6, 0.0], [1.0, 0.0]])
    env = Tour(n_nearest=2, cities=cities)
    env.reset()
    env.step(1)  # the second nearest of city 0
    assert env.tour == [0, 2] and env.nearest.tolist() == [1, 3]
    env.step(1)
    env.step(1)
    assert env.action_masks().tolist() == [True, False]
    with pytest.raises(ValueError, match="`action_masks\\(\\)` allows, got 1"):
        env.step(1)
    _, reward, terminated, _, info = env.step(0)
    assert terminated and info["length"] == pytest.approx(0.3 + 0.3 + 0.5 + 0.9 + 1.0) and reward < 0


def test_the_same_seed_gives_the_same_cities() -> None:
    first, second = Tour(8), Tour(8)
    at_random(first, 1)
    assert np.array_equal(first.reset(seed=3)[0], second.reset(seed=3)[0])
    assert not np.array_equal(first.reset()[0], second.reset(seed=3)[0])


@pytest.mark.parametrize("seed", range(5))
def test_classical_tours(seed: int) -> None:
    cities = np.random.default_rng(seed).random((7, 2))
    first = nearest_neighbour(cities)
    here, left = 0, set(range(1, 7))
    for city in first[1:]:
        assert city == min(left, key=lambda other: dist(cities[here], cities[other]))
        left.remove(city)
        here = city
    better, best = two_opt(cities, first), min(directly(cities, [0, *rest]) for rest in permutations(range(1, 7)))
    assert sorted(better) == list(range(7)) and better[0] == 0
    assert best - 1e-9 <= directly(cities, better) <= directly(cities, first) + 1e-9
    assert all(
        directly(cities, better[:i] + better[i:j][::-1] + better[j:]) >= directly(cities, better) - 1e-9
        for i in range(1, 7)
        for j in range(i + 2, 8)
    )
