"""Mean and deviation of numbers that are spread over several workers."""

from typing import NamedTuple

import numpy as np


class Moments(NamedTuple):
    """
    Number, mean and sum of squared deviations of a set of numbers.

    :param n: Number of numbers
    :param mean: Their mean
    :param deviation: Sum of the squared deviations from it
    """

    n: float
    mean: np.ndarray
    deviation: np.ndarray

    @property
    def variance(self) -> np.ndarray:
        """Mean of their squared deviations."""
        return self.deviation / max(self.n, 1.0)

    @property
    def root_mean_square(self) -> float:
        """Root of the mean of their squares."""
        return float(np.sqrt(np.square(self.mean) + self.variance))

    def __or__(self, other: "Moments") -> "Moments":
        """The moments of both sets together (Chan, Golub and LeVeque, 1983)."""
        count = self.n + other.n
        if count == 0:
            return self
        delta = other.mean - self.mean
        share = other.n / count
        return Moments(count, self.mean + delta * share, self.deviation + other.deviation + np.square(delta) * self.n * share)

    def since(self, before: "Moments") -> "Moments":
        """
        :param before: The moments of a part of the set
        :return: The moments of the rest
        """
        count = self.n - before.n
        if count <= 0:
            return Moments(0.0, np.zeros_like(self.mean), np.zeros_like(self.deviation))
        delta = (self.mean - before.mean) * self.n / count
        rest = self.deviation - before.deviation - np.square(delta) * before.n * count / self.n
        return Moments(count, before.mean + delta, np.maximum(rest, 0.0))
