"""
The travelling salesman as an environment: which city is next?

The cities lie anywhere in a square. The tour begins in one of them, goes on to one of the nearest that are left, and closes at
the end. Then the reward is minus its length, divided by that of a good tour of this many random cities. Until then it is zero.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Tour(gym.Env[np.ndarray, int]):
    """
    New cities for each episode, or always the same.

    Only the nearest cities can be next, so that one policy fits any number of cities. For each of them the observation has
    eleven numbers, with distances in units of the typical distance between neighbours:

    - where it lies, seen from here (two numbers);
    - how far that is, and how much farther than the nearest one;
    - how much farther than here it is from the first city, and from the middle of those that are left;
    - how far the nearest and the second nearest of the other cities are from it;
    - whether the tour would go straight on;
    - the share of the cities that are left;
    - whether there is such a city at all.

    :param n_cities: Number of cities
    :param n_nearest: Number of cities to choose among
    :param cities: Where they lie in every episode, shape ``(n_cities, 2)``; ``None``: drawn at each reset
    """

    N_FEATURES = 11

    def __init__(self, n_cities: int = 20, n_nearest: int = 8, cities: np.ndarray | None = None):
        self.fixed = cities
        self.n_cities, self.n_nearest = (n_cities if cities is None else len(cities)), n_nearest
        self.observation_space = spaces.Box(-np.inf, np.inf, (n_nearest * self.N_FEATURES,), np.float32)
        self.action_space = spaces.Discrete(n_nearest)
        self._begin(np.random.default_rng(0).random((self.n_cities, 2)) if cities is None else cities)

    def _begin(self, cities: np.ndarray) -> None:
        self.cities = cities
        self.distances = np.linalg.norm(cities[:, None] - cities, axis=2)
        self.tour = [0]
        self.is_left = np.ones(self.n_cities, bool)
        self.is_left[0] = False
        self._find_nearest()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._begin(self.np_random.random((self.n_cities, 2)) if self.fixed is None else self.fixed)
        return self._observe(), {}

    def _find_nearest(self) -> None:
        left = np.flatnonzero(self.is_left)
        self.nearest = left[self.distances[self.tour[-1], left].argsort(kind="stable")[: self.n_nearest]]

    def action_masks(self) -> np.ndarray:
        """
        :return: Which of the choices are cities, as fewer than ``n_nearest`` may be left, shape ``(n_nearest,)``, bool
        """
        return np.arange(self.n_nearest) < len(self.nearest)

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if not self.action_masks()[action]:
            raise ValueError(f"The action must be one that `action_masks()` allows, got {action}.")
        self.tour.append(int(self.nearest[action]))
        self.is_left[self.tour[-1]] = False
        self._find_nearest()
        terminated = len(self.nearest) == 0
        reward = -self.length / np.sqrt(0.5 * self.n_cities) if terminated else 0.0  # Beardwood et al. (1959): 0.71 sqrt(n)
        return self._observe(), float(reward), terminated, False, {"length": self.length}

    @property
    def length(self) -> float:
        """The length of the tour, from the last city back to the first one too."""
        return float(self.distances[self.tour, np.roll(self.tour, -1)].sum())

    def _observe(self) -> np.ndarray:
        features = np.zeros((self.n_nearest, self.N_FEATURES), np.float32)
        nearest, here = self.nearest, self.tour[-1]
        if len(nearest):
            before = self.cities[self.tour[-2]] if len(self.tour) > 1 else self.cities[here]
            heading, offset = self.cities[here] - before, self.cities[nearest] - self.cities[here]
            distance = self.distances[here, nearest]
            lengths = np.maximum(distance * np.linalg.norm(heading), 1e-9)
            others = self.distances[np.ix_(nearest, np.flatnonzero(self.is_left))]
            others = np.partition(np.pad(others, ((0, 0), (0, 2)), constant_values=1.5), 2, axis=1)  # 0 is the city itself
            middle = self.cities[self.is_left].mean(axis=0)
            times = [
                *offset.T,
                distance,
                distance - distance[0],
                self.distances[0, nearest] - self.distances[0, here],
                np.linalg.norm(self.cities[nearest] - middle, axis=1) - np.linalg.norm(self.cities[here] - middle),
                others[:, 1],
                others[:, 2],
            ]
            features[: len(nearest), :8] = np.stack(times, axis=1) * np.sqrt(self.n_cities)
            features[: len(nearest), 8] = offset @ heading / lengths
            features[: len(nearest), 9] = self.is_left.mean()
            features[: len(nearest), 10] = 1.0
        return features.ravel()


def nearest_neighbour(cities: np.ndarray) -> list[int]:
    """
    :param cities: Where they lie
    :return: The tour that always goes on to the nearest city
    """
    env, done = Tour(cities=cities, n_nearest=1), False
    env.reset()
    while not done:
        done = env.step(0)[2]
    return env.tour


def two_opt(cities: np.ndarray, tour: list[int]) -> list[int]:
    """
    Turn pieces of a tour around for as long as that makes it shorter (Croes, 1958).

    :param cities: Where they lie
    :param tour: A tour
    :return: A tour that no single turn makes shorter
    """
    distances, path = np.linalg.norm(cities[:, None] - cities, axis=2), np.array(tour)
    while True:
        following = np.roll(path, -1)
        before = distances[path, following]
        gain = before[:, None] + before - distances[np.ix_(path, path)] - distances[np.ix_(following, following)]
        first, last = np.unravel_index(np.triu(gain, 1).argmax(), gain.shape)
        if gain[first, last] <= 1e-9:
            return [int(city) for city in path]
        path[first + 1 : last + 1] = path[first + 1 : last + 1][::-1].copy()


def length_of(cities: np.ndarray, tour: list[int]) -> float:
    """
    :param cities: Where they lie
    :param tour: A tour
    :return: Its length
    """
    return float(np.linalg.norm(cities[tour] - cities[np.roll(tour, -1)], axis=1).sum())
