"""
Masks and memory: MaskableREINFORCE beside MaskablePPO, RecurrentREINFORCE beside RecurrentPPO.

    python -m benchmarks.variants run [--workers 2] [--tasks ...] [--algos ...] [--seeds ...]   # goes on where it stopped
    python -m benchmarks.variants speed [--rounds 5]
    python -m benchmarks.variants report [--page BENCHMARKS.md]

Masked tasks: all with their defaults, and ours also with its entry where there is one. Recurrent tasks: each with its entry,
ours in ``zoo_configs/reinforce_lstm.yml``, RL Zoo's own for RecurrentPPO. The environments and the number of steps are the
same. Each run is a CSV of its own, whose last row is the final evaluation of 20 deterministic episodes.
"""

import argparse
import json
import signal
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any, NamedTuple

from benchmarks.common import ROOT, around_marks, made_once, markdown, number, positive, put_between, spread, stop

RESULTS = ROOT / "benchmarks" / "results" / "variants"
MARKS = "<!-- Written by `benchmarks.variants report`: begin -->", "<!-- Written by `benchmarks.variants report`: end -->"
N_ENVS, N_EVAL_EPISODES = 8, 20
COLUMNS = "timesteps,cpu_seconds,eval_mean,eval_std"


class Task(NamedTuple):
    """
    :param n_steps: Timesteps of the training
    :param entry: The name of the entries in RL Zoo; ``None``: all have their defaults
    """

    n_steps: int
    entry: str | None = None


TASKS = {
    "InvalidActions": Task(100_000),
    "WalledGrid": Task(100_000),
    "JobShop": Task(100_000),
    "InvalidActions, entry": Task(100_000, "InvalidActions-v0"),
    "Taxi, entry": Task(300_000, "Taxi-v4"),
    "CartPoleNoVel": Task(100_000, "CartPoleNoVel-v1"),
    "PendulumNoVel": Task(100_000, "PendulumNoVel-v1"),
    "MountainCarContinuousNoVel": Task(300_000, "MountainCarContinuousNoVel-v0"),
}
MASKED, RECURRENT = ("MaskableREINFORCE", "MaskablePPO"), ("RecurrentREINFORCE", "RecurrentPPO")
ALGOS = (*MASKED, *RECURRENT)


class Run(NamedTuple):
    """
    :param algo: A name of :data:`ALGOS`
    :param task: A name of :data:`TASKS`
    :param seed: The seed
    :param folder: Where the results lie
    """

    algo: str
    task: str
    seed: int
    folder: Path

    @property
    def path(self) -> Path:
        """The file of its results."""
        return self.folder / self.task.replace(", ", "_") / f"{self.algo}-{self.seed}.csv"


def algos_of(task: str) -> tuple[str, ...]:
    """
    :param task: A name of :data:`TASKS`
    :return: Ours, and the other, if it has an entry as well or both have none
    """
    if is_recurrent(task):
        return RECURRENT
    return MASKED if TASKS[task].entry is None else MASKED[:1]


def is_recurrent(task: str) -> bool:
    """
    :param task: A name of :data:`TASKS`
    :return: Whether it needs a memory
    """
    return task.endswith("NoVel")


def make_env(task: str) -> Any:
    """
    :param task: A name of :data:`TASKS`
    :return: An environment
    """
    import gymnasium as gym
    from gymnasium.wrappers import TimeLimit
    from rl_zoo3.wrappers import MaskVelocityWrapper

    from examples.scheduling.job_shop import JobShop
    from sb3_reinforce.zoo.masked_environments import InfoMasks, WalledGrid, register_environments

    register_environments()
    if is_recurrent(task):
        name, version = TASKS[task].entry.replace("NoVel", "").rsplit("-v", 1)  # type: ignore[union-attr]
        return MaskVelocityWrapper(gym.make(f"{name}-v{version}"))
    makers: dict[str, Callable[[], Any]] = {
        "InvalidActions": lambda: gym.make("InvalidActions-v0").unwrapped,
        "WalledGrid": lambda: TimeLimit(WalledGrid(), WalledGrid.MAX_STEPS),
        "JobShop": JobShop,
        "Taxi": lambda: InfoMasks(gym.make("Taxi-v4")),
    }
    return makers[task.removesuffix(", entry")]()


def entry_of(algo: str, task: str) -> dict[str, Any]:
    """
    :param algo: A name of :data:`ALGOS`
    :param task: A name of :data:`TASKS`
    :return: The hyperparameters; none for the masked tasks without an entry
    """
    import rl_zoo3
    import yaml

    from sb3_reinforce.zoo import default_config

    if TASKS[task].entry is None:
        return {}
    file = (
        default_config("reinforce_lstm" if is_recurrent(task) else "reinforce_mask")
        if algo in (RECURRENT[0], MASKED[0])
        else Path(rl_zoo3.__file__).parent / "hyperparams/ppo_lstm.yml"
    )
    return yaml.safe_load(file.read_text())[TASKS[task].entry]


def build(algo: str, task: str, seed: int, **change: Any) -> tuple[Any, Any]:
    """
    :param algo: A name of :data:`ALGOS`
    :param task: A name of :data:`TASKS`
    :param seed: The seed
    :param change: Arguments of the constructor that differ
    :return: A model and an environment to evaluate it in
    """
    import sb3_contrib
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize
    from torch import nn

    import sb3_reinforce

    entry = entry_of(algo, task)
    n_envs, normalize = entry.pop("n_envs", N_ENVS), entry.pop("normalize", False)
    policy = entry.pop("policy", "MlpPolicy" if algo in MASKED else "MlpLstmPolicy")
    for name in ("n_timesteps", "env_wrapper"):  # the wrapper is part of the task
        entry.pop(name, None)
    if "policy_kwargs" in entry:
        entry["policy_kwargs"] = eval(entry["policy_kwargs"], {"nn": nn})
    for name in ("learning_rate", "clip_range"):
        if isinstance(entry.get(name), str):  # as RL Zoo reads it
            first, last = (*map(float, entry[name].removeprefix("lin_").split("_")), 0.0)[:2]
            entry[name] = partial(_between, last, first)
    env = make_vec_env(make_env, n_envs, seed, env_kwargs={"task": task})
    test_env = make_vec_env(make_env, 1, seed + 10_000, env_kwargs={"task": task})
    if normalize:
        gamma = entry.get("gamma", 0.99)
        env, test_env = VecNormalize(env, gamma=gamma), VecNormalize(test_env, training=False, norm_reward=False)
    algorithm = getattr(sb3_reinforce if "REINFORCE" in algo else sb3_contrib, algo)
    return algorithm(policy, env, seed=seed, device="cpu", **{**entry, **change}), test_env


def _between(last: float, first: float, progress_remaining: float) -> float:
    return last + (first - last) * progress_remaining


def train(run: Run) -> str:
    """
    :param run: What to run, if its results are not there
    :return: What it came to
    """
    import torch as th

    from benchmarks.learning.one_run import commit, machine, versions

    def make(file: IO[str]) -> str:
        about = {"entry": entry_of(run.algo, run.task), "versions": versions(), "commit": commit(), "machine": machine()}
        model, test_env = build(run.algo, run.task, run.seed)
        start = time.process_time()
        model.learn(TASKS[run.task].n_steps)
        seconds = time.process_time() - start
        mean, std = evaluate(model, test_env)
        file.write(f"# {json.dumps(about, default=str)}\n{COLUMNS}\n")
        file.write(f"{model.num_timesteps},{seconds:.2f},{mean:.6g},{std:.6g}\n")
        return f"{mean:.4g}"

    th.set_num_threads(1)
    return made_once(run.path, make)


def evaluate(model: Any, test_env: Any) -> tuple[float, float]:
    """
    :param model: A model
    :param test_env: An environment
    :return: Mean and standard deviation of the returns of deterministic episodes
    """
    from sb3_contrib.common.maskable.evaluation import evaluate_policy as evaluate_masked
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.vec_env import sync_envs_normalization

    sync_envs_normalization(model.get_env(), test_env)
    return (evaluate_masked if type(model).__name__.startswith("Maskable") else evaluate_policy)(
        model, test_env, N_EVAL_EPISODES
    )


# Speed


def speed(n_rounds: int) -> str:
    """
    :param n_rounds: Number of rounds, in each of which the algorithms take turns
    :return: A table of steps per second of whole calls of ``learn``, by CPU time, 8 environments, all with their defaults
    """
    import torch as th

    th.set_num_threads(1)
    rows = []
    for task, (ours, other), kwargs in (
        ("WalledGrid", MASKED, {}),
        ("CartPoleNoVel", RECURRENT, {}),
        ("CartPoleNoVel", RECURRENT, {"policy_kwargs": {"lstm_hidden_size": 64}}),
    ):
        found: dict[str, list[float]] = {ours: [], other: []}
        for seed in range(n_rounds):
            for algo in (ours, other):
                found[algo].append(_steps_per_second(algo, task, seed, kwargs))
        ratios = [a / b for a, b in zip(found[ours], found[other], strict=True)]
        setting = f"{task}{', LSTM of 64 units' if kwargs else ', LSTM of 256 units' if ours in RECURRENT else ''}"
        rows.append(
            [
                setting,
                ours,
                *(number(statistics.median(found[algo])) for algo in (ours, other)),
                number(statistics.median(ratios)),
            ]
        )
    return markdown(["task", "algorithm", "steps/s", "PPO's", "ratio"], rows)


def _steps_per_second(algo: str, task: str, seed: int, kwargs: dict[str, Any]) -> float:
    from stable_baselines3.common.env_util import make_vec_env

    import sb3_contrib
    import sb3_reinforce

    env = make_vec_env(make_env, N_ENVS, seed, env_kwargs={"task": task})
    algorithm = getattr(sb3_reinforce if "REINFORCE" in algo else sb3_contrib, algo)
    policy = "MlpPolicy" if algo in MASKED else "MlpLstmPolicy"
    model = algorithm(policy, env, seed=seed, device="cpu", **kwargs)
    n_steps = {"MaskableREINFORCE": 40_000, "MaskablePPO": 16_384, "RecurrentREINFORCE": 20_000, "RecurrentPPO": 4_096}[algo]
    start = time.process_time()
    model.learn(n_steps)
    return model.num_timesteps / (time.process_time() - start)


# Report


def read(path: Path) -> dict[str, float]:
    """
    :param path: The file of a finished run
    :return: Its row
    """
    lines = path.read_text().splitlines()
    return dict(zip(COLUMNS.split(","), map(float, lines[-1].split(",")), strict=True))


def report(folder: Path) -> str:
    """
    :param folder: Where the results lie
    :return: The table
    """
    import pandas as pd

    rows = []
    for task, (n_steps, _) in TASKS.items():
        cells, seconds = [], []
        for algo in algos_of(task):
            paths = Run(algo, task, 0, folder).path.parent.glob(f"{algo}-*.csv")
            runs = [read(path) for path in sorted(paths)]
            cells.append(spread(pd.Series([run["eval_mean"] for run in runs], dtype=float)))
            seconds.append(number(statistics.mean(run["cpu_seconds"] for run in runs)) if runs else "-")
        cells, seconds = ([*some, "-"][:2] for some in (cells, seconds))
        rows.append([task, f"{n_steps:,}", *cells, " / ".join(seconds)])
    return markdown(["task", "steps", "ours", "PPO", "CPU seconds, ours / PPO"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs, tables = commands.add_parser("run", help="train"), commands.add_parser("report", help="the table")
    runs.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="tasks")
    runs.add_argument("--algos", nargs="+", choices=ALGOS, default=list(ALGOS), help="algorithms")
    runs.add_argument("--seeds", nargs="+", type=int, default=list(range(5)), help="seeds")
    runs.add_argument("--workers", type=positive, default=2, help="number of runs at a time")
    tables.add_argument("--page", type=Path, help="page to put the table into (BENCHMARKS.md)")
    commands.add_parser("speed", help="steps per second").add_argument("--rounds", type=positive, default=5)
    for command in (runs, tables):
        command.add_argument("--folder", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args()
    if args.command == "speed":
        print(speed(args.rounds))
    elif args.command == "report":
        if args.page is not None:
            around_marks(args.page, MARKS)
        print(report(args.folder))
        if args.page is not None:
            put_between(args.page, report(args.folder), MARKS)
    else:
        signal.signal(signal.SIGTERM, stop)
        todo = [
            Run(algo, task, seed, args.folder)
            for seed in args.seeds
            for task in args.tasks
            for algo in algos_of(task)
            if algo in args.algos and not Run(algo, task, seed, args.folder).path.exists()
        ]
        with get_context("spawn").Pool(args.workers) as pool:
            for run, outcome in zip(todo, pool.imap(train, todo), strict=True):
                print(f"{run.algo} on {run.task}, seed {run.seed}: {outcome}", flush=True)
    sys.exit(0)


if __name__ == "__main__":
    main()
