"""
Job-shop scheduling as an environment: which job goes on next?

Each job visits every machine once, in an order of its own, and a machine works on one operation at a time. An action picks the
job whose next operation is scheduled, as early as the job and its machine allow. When all operations are scheduled, the reward
is minus the makespan (the time at which the last one ends), in units of a lower bound. Before that it is zero.
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

    For each job the observation has eight numbers, all except the first in units of the lower bound. A job that is done has
    ones.

    - the share of its operations that are scheduled;
    - when the job is free, and when its next machine is;
    - when its next operation can start, when that would end, and how long it takes;
    - the work that is left of the job, and that of its next machine.

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
        if self.next_operation[action] == self.n_machines:
            raise ValueError(f"The job must have an operation left, got {action}.")
        self._place(action)
        terminated = not (self.next_operation < self.n_machines).any()
        reward = -self.makespan / self.instance.lower_bound if terminated else 0.0
        return self._observe(), float(reward), terminated, False, {"makespan": self.makespan}

    def _place(self, action: int) -> None:
        operation = self.next_operation[action]
        machine = self.instance.machines[action, operation]
        start = max(self.job_free[action], self.machine_free[machine])
        self.starts[action, operation] = start
        self.job_free[action] = self.machine_free[machine] = start + self.instance.durations[action, operation]
        self.next_operation[action] += 1

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


class ActiveJobShop(JobShop):
    """
    The same problem, with fewer choices and more to see, from which a policy learns faster.

    Only jobs that lead to an *active* schedule are allowed (Giffler and Thompson, 1960). Of all operations that could be next,
    find the one that would end first. The choice is among those that need its machine and could start before that end. At
    least one of the best schedules is active, and most of the bad ones are not.

    Times count from the earliest possible start, in units of the mean duration. So the observation does not depend on how much
    time has passed, nor on the unit of time.
    """

    N_FEATURES = 15

    def __init__(self, n_jobs: int = 6, n_machines: int = 6, instance: Instance | None = None):
        super().__init__(n_jobs, n_machines, instance)
        self.observation_space = spaces.Box(-np.inf, np.inf, (self.n_jobs * self.N_FEATURES,), np.float32)

    def _begin(self) -> None:
        super()._begin()
        machines, durations = self.instance
        self.mean_duration = durations.mean()
        self.work_left = durations.sum(axis=1).astype(float)
        self.load_left = np.bincount(machines.ravel(), durations.ravel(), self.n_machines)
        self._look()

    def _look(self) -> None:
        """What would happen to each job if it were next."""
        jobs, operation = np.arange(self.n_jobs), np.minimum(self.next_operation, self.n_machines - 1)
        self.is_open = self.next_operation < self.n_machines
        self.machine, self.duration = self.instance.machines[jobs, operation], self.instance.durations[jobs, operation]
        self.start = np.maximum(self.job_free, self.machine_free[self.machine])
        self.end = self.start + self.duration
        first = np.where(self.is_open, self.end, np.inf).argmin()
        self.allowed = self.is_open & (self.machine == self.machine[first]) & (self.start < self.end[first])

    def action_masks(self) -> np.ndarray:
        """
        :return: Which jobs can be next in an active schedule, shape ``(n_jobs,)``, bool
        """
        return self.allowed.copy()

    def _place(self, action: int) -> None:
        self.work_left[action] -= self.duration[action]
        self.load_left[self.machine[action]] -= self.duration[action]
        super()._place(action)
        self._look()

    def _observe(self) -> np.ndarray:
        machine, duration, start, end, work = self.machine, self.duration, self.start, self.end, self.work_left
        after = np.minimum(self.next_operation + 1, self.n_machines - 1)
        next_machine = self.instance.machines[np.arange(self.n_jobs), after]
        has_next = self.next_operation < self.n_machines - 1
        clock = start[self.is_open].min() if self.is_open.any() else 0.0
        ends_of_machines = self.machine_free + self.load_left
        bound = max((start + work).max(), ends_of_machines.max())  # no schedule from here on is shorter
        waiting = np.bincount(machine[self.is_open], minlength=self.n_machines)
        times = [
            duration,
            self.job_free - clock,
            start - clock,
            end - clock,
            bound - start - work,  # how long the job could wait without harm, if it met no other
            bound - ends_of_machines[machine],
            (self.machine_free[next_machine] - end) * has_next,
            (bound - ends_of_machines[next_machine]) * has_next,
            work / self.n_machines,
            (work - duration) / self.n_machines,
            self.load_left[machine] / self.n_jobs,
        ]
        shares = [self.allowed, self.next_operation / self.n_machines, waiting[machine] / self.n_jobs, self.is_open]
        features = np.stack([*shares, *(time / self.mean_duration for time in times)], axis=1)
        features[~self.is_open] = 0.0
        return features.astype(np.float32).ravel()
