"""
Job-shop scheduling as an environment: which job goes on next?

Each job visits every machine once, in an order of its own, and a machine works on one operation at a time. An action picks the
job whose next operation is scheduled, as early as the job and its machine allow. When all operations have their times, the
reward is minus the makespan (the time at which the last one ends), in units of a lower bound; before, it is zero.
"""

from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Instance(NamedTuple):
    """
    A problem.

    :param machines: The machine of each operation, shape ``(n_jobs, n_machines)``
    :param durations: How long it takes there, of the same shape
    """

    machines: np.ndarray
    durations: np.ndarray

    @property
    def lower_bound(self) -> int:
        """No schedule is shorter than the longest job, nor than the work of the busiest machine."""
        loads = np.bincount(self.machines.ravel(), weights=self.durations.ravel())
        return int(max(self.durations.sum(axis=1).max(), loads.max()))


def random_instance(rng: np.random.Generator, n_jobs: int, n_machines: int, longest: int = 99) -> Instance:
    """
    :param rng: Source of randomness
    :param n_jobs: Number of jobs
    :param n_machines: Number of machines
    :param longest: The longest duration; all from 1 on are equally likely (Taillard, 1993)
    :return: A problem
    """
    machines = rng.permuted(np.tile(np.arange(n_machines), (n_jobs, 1)), axis=1)
    return Instance(machines, rng.integers(1, longest + 1, (n_jobs, n_machines)))


class JobShop(gym.Env[np.ndarray, int]):
    """
    A new instance for each episode, or always the same.

    For each job the observation has: the share of its operations that are scheduled, when it and its next machine are free,
    when its next operation can start, and end, its duration, and the work that is left of the job and of that machine; all
    but the first in units of the lower bound. Jobs that are done have ones.

    :param n_jobs: Number of jobs
    :param n_machines: Number of machines
    :param instance: The problem of every episode; ``None``: a random one, drawn at each reset
    """

    N_FEATURES = 8

    def __init__(self, n_jobs: int = 6, n_machines: int = 6, instance: Instance | None = None):
        self.fixed = instance
        self.n_jobs, self.n_machines = (n_jobs, n_machines) if instance is None else instance.machines.shape
        self.observation_space = spaces.Box(0.0, np.inf, (self.n_jobs * self.N_FEATURES,), np.float32)
        self.action_space = spaces.Discrete(self.n_jobs)
        self.instance = (
            random_instance(np.random.default_rng(0), self.n_jobs, self.n_machines) if instance is None else instance
        )
        self._begin()

    def _begin(self) -> None:
        self.next_operation = np.zeros(self.n_jobs, int)
        self.job_free = np.zeros(self.n_jobs)
        self.machine_free = np.zeros(self.n_machines)
        self.starts = np.full((self.n_jobs, self.n_machines), -1.0)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        if self.fixed is None:
            self.instance = random_instance(self.np_random, self.n_jobs, self.n_machines)
        self._begin()
        return self._observe(), {}

    def action_masks(self) -> np.ndarray:
        """
        :return: Which jobs have an operation left, shape ``(n_jobs,)``, bool
        """
        return self.next_operation < self.n_machines

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if not self.action_masks()[action]:
            raise ValueError(f"The job must have an operation left, got {action}.")
        operation = self.next_operation[action]
        machine = self.instance.machines[action, operation]
        start = max(self.job_free[action], self.machine_free[machine])
        self.starts[action, operation] = start
        self.job_free[action] = self.machine_free[machine] = start + self.instance.durations[action, operation]
        self.next_operation[action] += 1
        terminated = not self.action_masks().any()
        reward = -self.makespan / self.instance.lower_bound if terminated else 0.0
        return self._observe(), float(reward), terminated, False, {"makespan": self.makespan}

    @property
    def makespan(self) -> float:
        """The time at which the last operation that is scheduled ends."""
        return float(self.job_free.max())

    def _observe(self) -> np.ndarray:
        jobs, last = np.arange(self.n_jobs), self.n_machines - 1
        operation = np.minimum(self.next_operation, last)
        machine, duration = self.instance.machines[jobs, operation], self.instance.durations[jobs, operation]
        is_left = np.arange(self.n_machines) >= self.next_operation[:, None]
        work = self.instance.durations * is_left
        of_machine = np.bincount(self.instance.machines.ravel(), weights=work.ravel(), minlength=self.n_machines)
        start = np.maximum(self.job_free, self.machine_free[machine])
        times = [
            self.job_free,
            self.machine_free[machine],
            start,
            start + duration,
            duration,
            work.sum(1),
            of_machine[machine],
        ]
        features = np.stack([self.next_operation / self.n_machines, *(time / self.instance.lower_bound for time in times)], 1)
        features[self.next_operation > last] = 1.0
        return features.astype(np.float32).ravel()
