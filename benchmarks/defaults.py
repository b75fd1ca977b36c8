"""
What are the constructor's defaults worth? Each is changed separately, on small tasks.

    python -m benchmarks.defaults run [--workers 2] [--tasks ...] [--changes ...]     # goes on where it was stopped
    python -m benchmarks.defaults report [--page BENCHMARKS.md]                       # the table

A run leaves one row in ``results/defaults.csv``: the mean return of the last 100 episodes, averaged over the training (how
fast it learns), and that of 20 deterministic episodes at the end. Seeds from 200 on are in no other benchmark.
"""

import argparse
import signal
import sys
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pandas as pd
import torch as th
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.utils import LinearSchedule

from benchmarks.common import ROOT, around_marks, markdown, number, positive, put_between, spread, stop  # first: one thread
from benchmarks.learning.one_run import EVAL_SEED_OFFSET, N_EVAL_EPISODES, as_callback
from sb3_reinforce import REINFORCE

RESULTS = ROOT / "benchmarks" / "results" / "defaults.csv"
COLUMNS = ("task", "change", "seed", "timesteps", "training_return", "eval_mean")
FIRST_SEED = 200
N_POINTS = 50
MARKS = "<!-- Written by `benchmarks.defaults report`: begin -->", "<!-- Written by `benchmarks.defaults report`: end -->"
#: Timesteps and number of seeds
TASKS = {"CartPole-v1": (50_000, 5), "Acrobot-v1": (100_000, 5), "InvertedPendulum-v5": (50_000, 3)}


def shown(value: Any) -> str:
    """
    :param value: The value of an argument
    :return: It as the table has it
    """
    if isinstance(value, LinearSchedule):
        return f"{shown(value.start)} → {shown(value.end)}"
    return np.format_float_positional(value, trim="-") if isinstance(value, float) else str(value)


def label(change: dict[str, Any]) -> str:
    """
    :param change: Arguments of the constructor
    :return: What the change is called
    """
    return ", ".join(f"`{name}` {shown(value)}" for name, value in change.items()) or "none"


#: What the runs have in common besides the constructor's defaults: they were made when this was its learning rate
BASE: dict[str, Any] = {"learning_rate": LinearSchedule(1e-2, 1e-4, 1.0)}
ALTERNATIVES: dict[str, tuple[Any, ...]] = {
    "learning_rate": (LinearSchedule(3e-2, 3e-4, 1.0), LinearSchedule(3e-3, 3e-5, 1.0), 1e-2, 1e-3),
    "critic_learning_rate": (1e-3,),
    "n_steps": (128, 256, 1024, 2048),
    "n_episodes": (4, 16),
    "batch_size": (64, 1024),
    "gamma": (0.98, 0.999),
    "gae_lambda": (0.95,),
    "complete_episodes": (False,),
    "bootstrap_on_truncation": (False,),
    "reward_to_go": (False,),
    "baseline": (None, "mean", "leave_one_out", "linear"),
    "discount_state_distribution": (True,),
    "average_over": ("episodes",),
    "normalize_advantage": (False,),
    "ent_coef": (0.01,),
    "vf_coef": (0.0,),
    "max_grad_norm": (0.1, 10.0),
    "n_critic_updates": (0, 1, 20),
    "natural_gradient": (True,),
}
#: Together with the natural gradient
NATURAL_ALTERNATIVES = {
    "target_kl": (0.003, 0.03),
    "cg_damping": (1.0, 0.01),
    "cg_max_steps": (5,),
    "sub_sampling_factor": (5,),
}
CHANGES: dict[str, dict[str, Any]] = {
    label(change): change
    for change in (
        {},
        *({name: value} for name, values in ALTERNATIVES.items() for value in values),
        *({"natural_gradient": True, name: value} for name, values in NATURAL_ALTERNATIVES.items() for value in values),
    )
}


class Average:
    """
    The mean return of the last 100 episodes, averaged over the training: the work of a callback.

    :param n_steps: Timesteps of the training
    """

    def __init__(self, n_steps: int):
        self.every = self.next = n_steps // N_POINTS
        self.returns: list[float] = []

    def __call__(self, local_variables: dict[str, Any], _: dict[str, Any]) -> bool:
        model = local_variables["self"]
        if model.num_timesteps >= self.next and model.ep_info_buffer:
            self.next += self.every
            self.returns.append(float(np.mean([info["r"] for info in model.ep_info_buffer])))
        return True


def train(task: str, change: str, seed: int) -> str:
    """
    :param task: An environment
    :param change: What is changed
    :param seed: The seed
    :return: The row of this run
    """
    th.set_num_threads(1)
    n_steps, _ = TASKS[task]
    average = Average(n_steps)
    model = REINFORCE("MlpPolicy", task, seed=seed, device="cpu", **{**BASE, **CHANGES[change]})
    model.learn(n_steps, callback=as_callback(average))
    env = Monitor(gym.make(task))
    env.reset(seed=seed + EVAL_SEED_OFFSET)
    mean, _ = evaluate_policy(model, env, N_EVAL_EPISODES)
    return f'{task},"{change}",{seed},{n_steps},{np.mean(average.returns):.6g},{mean:.6g}'


def try_to_train(arguments: tuple[str, str, int]) -> tuple[str, bool]:
    """
    :param arguments: Those of :func:`train`
    :return: The row, or what went wrong; and which of the two it is
    """
    try:
        return train(*arguments), True
    except Exception as error:
        return f"{arguments} FAILED: {error!r}", False


def read_results() -> pd.DataFrame:
    """
    :return: The rows of the runs that have finished
    :raises ValueError: If the last one is cut
    """
    if not RESULTS.exists():
        return pd.DataFrame(columns=COLUMNS)
    text = RESULTS.read_text()
    if not text.endswith("\n"):
        last = text.rpartition("\n")[2]
        raise ValueError(f"{RESULTS} must end with a whole row, got {last!r}: remove it to repeat the run.")
    return pd.read_csv(RESULTS)


def run(tasks: list[str], changes: list[str], n_workers: int) -> bool:
    """
    :param tasks: Environments
    :param changes: What is changed
    :param n_workers: Number of runs at a time
    :return: Whether all runs have succeeded
    """
    done = set(read_results()[["task", "change", "seed"]].itertuples(index=False, name=None))
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    if not RESULTS.exists():
        RESULTS.write_text(",".join(COLUMNS) + "\n")
    todo = [(task, change, FIRST_SEED + i) for task in tasks for change in changes for i in range(TASKS[task][1])]
    todo = [arguments for arguments in todo if arguments not in done]
    print(f"{len(todo)} runs, {len(done)} of this and other tasks finished before", flush=True)
    all_succeeded = True
    with Pool(n_workers) as pool:  # ends them, however this is left
        for i, (row, succeeded) in enumerate(pool.imap_unordered(try_to_train, todo), start=1):
            if succeeded:
                with RESULTS.open("a") as file:
                    file.write(row + "\n")
            all_succeeded = all_succeeded and succeeded
            print(f"{i} of {len(todo)}: {row}", flush=True)
    return all_succeeded


def table() -> str:
    """
    :return: What the runs came to: mean and standard deviation over the seeds of the average return, and the mean evaluation
    :raises ValueError: If there are none
    """
    runs = read_results()
    if runs.empty:
        raise ValueError(f"{RESULTS} must hold finished runs: `python -m benchmarks.defaults run` makes them.")
    groups = {key: group for key, group in runs.groupby(["task", "change"])}
    tasks = [task for task in TASKS if (runs["task"] == task).any()]
    rows = []
    for change in CHANGES:
        found = [groups.get((task, change)) for task in tasks]
        cells = [
            ("-", "-") if group is None else (spread(group["training_return"]), number(group["eval_mean"].mean()))
            for group in found
        ]
        rows.append([change, *(cell for pair in cells for cell in pair)])
    return markdown(["change", *(column for task in tasks for column in (task, "evaluation"))], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run", help="train")
    runs.add_argument("--workers", type=positive, default=2, help="number of runs at a time")
    runs.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="ENV", help=", ".join(TASKS))
    runs.add_argument("--changes", nargs="+", choices=CHANGES, default=list(CHANGES), metavar="CHANGE", help="as in the table")
    report = commands.add_parser("report", help="the table")
    report.add_argument("--page", type=Path, help="page to put the table into (BENCHMARKS.md)")
    args = parser.parse_args()
    if args.command == "run":
        signal.signal(signal.SIGTERM, stop)
        sys.exit(not run(args.tasks, args.changes, args.workers))
    else:
        if args.page is not None:
            around_marks(args.page, MARKS)
        text = table()
        print(text)
        if args.page is not None:
            put_between(args.page, text, MARKS)


if __name__ == "__main__":
    main()
