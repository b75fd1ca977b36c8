"""The tables: what one line learns, and what each change of the defaults does."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.common import markdown, number, spread
from benchmarks.learning.aggregates import estimate, interquartile_mean
from benchmarks.suite.one_run import ADVICE, COLUMNS, RANDOM, Run
from benchmarks.suite.plan import (
    CHANGES,
    N_ENVS,
    N_MORE_STEPS,
    N_STEPS,
    NEVER_FAILED,
    OTHERS,
    OURS,
    REFERENCE,
    RESULTS,
    ZOO,
    changed,
    reported,
)
from benchmarks.suite.tasks import TASKS, UNTOUCHED

NAMES = {OURS: "REINFORCE", ZOO: "REINFORCE, zoo's default entry", "ppo": "PPO", "a2c": "A2C", "trpo": "TRPO"}
ALGOS = (OURS, ZOO, *OTHERS)
#: A run is healthy if its score is at least this
HEALTHY = 0.5
#: The label of the defaults themselves, and the change of a score that is told
UNCHANGED, NOTABLE = "none", 0.05
#: The tasks of the front page: some of each kind, those where it loses among them. All are in the mean below them
FRONT = (
    "CartPole-v1",
    "Acrobot-v1",
    "Pendulum-v1",
    "LunarLander-v3",
    "LunarLanderContinuous-v3",
    "InvertedDoublePendulum-v5",
    "Reacher-v5",
    "Hopper-v5",
    "FrozenLake-v1",
    "Knapsack",
)


def last_row(path: Path) -> dict[str, float]:
    """
    :param path: The file of a finished run
    :return: Its last row
    :raises ValueError: If it is damaged
    """
    lines = path.read_text().splitlines()
    cells = lines[-1].split(",") if len(lines) > 2 else []
    if len(cells) != len(COLUMNS) or not cells[-1]:
        raise ValueError(f"{path} must end with an evaluation, got {lines[-1:]}: remove it to repeat the run.")
    return {name: float(cell) if cell else np.nan for name, cell in zip(COLUMNS, cells, strict=True)}


def advice(path: Path) -> list[str]:
    """
    :param path: The file of a finished run
    :return: The names of the warnings of a run in which nothing is learned
    """
    lines = [line for line in path.read_text().splitlines() if line.startswith(ADVICE)]
    return json.loads(lines[-1].removeprefix(ADVICE)) if lines else []


def read(runs: Iterable[Run]) -> pd.DataFrame:
    """
    :param runs: Runs
    :return: One row for each that is finished
    """
    names = ("algo", "task", "n_steps", "n_envs", "seed", "label")
    rows = [
        {**{name: getattr(run, name) for name in names}, **last_row(run.path), "advice": advice(run.path)}
        for run in runs
        if run.path.exists()
    ]
    return pd.DataFrame(rows, columns=[*names, *COLUMNS, "advice"])


def scale_of(scale: pd.DataFrame, task: str) -> tuple[float, float]:
    """
    :param scale: The runs that say what 0 (random actions) and 1 (the mean of PPO) are
    :param task: A task
    :return: The return of random actions, and by how much PPO is better; NaN where that is not known
    """
    of_task = scale[scale["task"] == task]
    zero = of_task[of_task["algo"] == RANDOM]["eval_mean"].mean()
    return zero, of_task[of_task["algo"] == REFERENCE]["eval_mean"].mean() - zero


def of_one_environment(runs: pd.DataFrame) -> pd.DataFrame:
    """
    :param runs: The runs of the report
    :return: Those of 100,000 steps in one environment, and of random actions: what a scale is made of
    """
    return runs[((runs["n_steps"] == N_STEPS) & (runs["n_envs"] == 1)) | (runs["algo"] == RANDOM)]


def scored(runs: pd.DataFrame, scale: pd.DataFrame) -> pd.DataFrame:
    """
    :param runs: Runs
    :param scale: See :func:`scale_of`
    :return: Those on tasks that have a scale, with their scores
    """
    scales = {task: scale_of(scale, task) for task in runs["task"].unique()}
    zero, size = (runs["task"].map({task: pair[i] for task, pair in scales.items()}) for i in (0, 1))
    return runs.assign(score=(runs["eval_mean"] - zero) / size)[size > 0]


def scores(runs: pd.DataFrame, scale: pd.DataFrame, tasks: Iterable[str]) -> tuple[np.ndarray, list[str]]:
    """
    :param runs: The runs of one algorithm
    :param scale: The runs that say what 0 (random actions) and 1 (the mean of PPO) are
    :param tasks: Tasks
    :return: Scores of shape ``(n_seeds, n_tasks)``, as many seeds as each task has; and the tasks that have a scale
    """
    columns, kept = [], []
    for task in tasks:
        zero, size = scale_of(scale, task)
        found = runs[runs["task"] == task].sort_values("seed")["eval_mean"].to_numpy()
        if size > 0 and len(found):  # where PPO learns nothing there is no scale
            columns.append((found - zero) / size)
            kept.append(task)
    n_seeds = min(map(len, columns), default=0)
    return np.stack([column[:n_seeds] for column in columns], axis=1) if columns else np.zeros((0, 0)), kept


def iqm(data: dict[str, np.ndarray]) -> dict[str, str]:
    """
    :param data: Scores by name
    :return: Their interquartile means, with 95 % stratified bootstrap intervals
    """
    return estimate({name: matrix for name, matrix in data.items() if matrix.size}, interquartile_mean)


def table(runs: pd.DataFrame, tasks: Iterable[str], n_steps: int) -> str:
    """
    :param runs: The runs of the report
    :param tasks: Tasks
    :param n_steps: Timesteps of the training
    :return: The final evaluations, mean and deviation over the seeds, and the median CPU time
    """
    random = runs[runs["algo"] == RANDOM]
    rows = []
    for task in tasks:
        of_task = runs[(runs["task"] == task) & (runs["n_steps"] == n_steps)]
        groups = [of_task[(of_task["algo"] == algo) & (of_task["n_envs"] == 1)] for algo in ALGOS]
        many = of_task[(of_task["algo"] == OURS) & (of_task["n_envs"] == N_ENVS)]
        seconds = " / ".join(number(group["cpu_seconds"].median()) for group in (groups[0], *groups[2:]))
        zero = number(random[random["task"] == task]["eval_mean"].mean())
        rows.append([task, zero, *(spread(group["eval_mean"]) for group in [*groups, many]), seconds])
    header = ["task", "random", *(NAMES[algo] for algo in ALGOS), f"REINFORCE, {N_ENVS} environments"]
    return markdown([*header, "CPU seconds: REINFORCE / PPO / A2C / TRPO"], rows)


def summary(runs: pd.DataFrame, tasks: Iterable[str], n_steps: int) -> str:
    """
    :param runs: The runs of the report
    :param tasks: Tasks
    :param n_steps: Timesteps of the training
    :return: The interquartile means
    """
    tasks = list(tasks)
    of_steps = runs[(runs["n_steps"] == n_steps) | (runs["algo"] == RANDOM)]
    single, many = (of_steps[of_steps["n_envs"] == n_envs] for n_envs in (1, N_ENVS))
    groups = {NAMES[algo]: single[single["algo"] == algo] for algo in ALGOS}
    groups[f"REINFORCE, {N_ENVS} environments"] = many[many["algo"] == OURS]
    found = {name: scores(group, single, tasks) for name, group in groups.items()}
    means = iqm({name: matrix for name, (matrix, _) in found.items()})
    rows = [
        [name, f"{len(kept)} of {len(tasks)}", str(len(found[name][0])), means[name]]
        for name, (_, kept) in found.items()
        if name in means
    ]
    return markdown(["", "tasks", "seeds", "IQM (PPO = 1, random = 0)"], rows)


def front(folder: Path = RESULTS) -> str:
    """
    :param folder: Where the results lie
    :return: The table of the front page: one line of each algorithm, side by side, on some tasks, and the mean of all
    """
    runs = of_one_environment(read(reported(folder)))
    algos = (OURS, *OTHERS)
    groups = {algo: runs[runs["algo"] == algo] for algo in algos}
    rows = []
    for task in FRONT:
        of_task = {algo: group[group["task"] == task] for algo, group in groups.items()}
        seconds = " / ".join(number(group["cpu_seconds"].median()) for group in of_task.values())
        rows.append([task, *(spread(group["eval_mean"]) for group in of_task.values()), seconds])
    found = {algo: scores(group, runs, TASKS) for algo, group in groups.items()}
    means = iqm({algo: matrix for algo, (matrix, _) in found.items()})
    cells = (f"{means[algo]} ({len(found[algo][1])} tasks)" if algo in means else "-" for algo in algos)
    rows.append(["**IQM over all tasks, PPO = 1, random = 0**", *cells, ""])
    return markdown(["task", *(NAMES[algo] for algo in algos), "CPU seconds"], rows)


def worst(runs: pd.DataFrame) -> str:
    """
    :param runs: The runs of the report
    :return: The worst seed of the tasks on which none may fail
    """
    ours = runs[(runs["algo"] == OURS) & (runs["n_steps"] == N_STEPS) & (runs["n_envs"] == 1)]
    rows = []
    for task in NEVER_FAILED:
        ends = ours[ours["task"] == task]["eval_mean"]
        rows.append([task, str(len(ends)), number(ends.min()), number(ends.mean())])
    return markdown(["task", "seeds", "worst", "mean"], rows)


def advice_table(runs: pd.DataFrame) -> str:
    """
    :param runs: The runs of the report
    :return: How many runs were warned, of those that have learned and of those that have not
    """
    ours = scored(runs[(runs["algo"] == OURS) & (runs["n_steps"] == N_STEPS)], of_one_environment(runs))
    groups = [ours[ours["score"] >= HEALTHY], ours[ours["score"] < HEALTHY]]
    rows = []
    for name in sorted({name for names in ours["advice"] for name in names}):
        warned = [group[[name in names for names in group["advice"]]] for group in groups]
        where = (f"{task} ({n})" for task, n in pd.concat(warned)["task"].value_counts(sort=False).items())
        rows.append(
            [name, *(f"{len(some)} of {len(group)}" for some, group in zip(warned, groups, strict=True)), ", ".join(where)]
        )
    return markdown(["warning", "healthy runs", "other runs", "on"], rows) if rows else f"None in {len(ours)} runs."


def changes(folder: Path = RESULTS) -> str:
    """
    :param folder: Where the results lie
    :return: What each change of the defaults does on the tasks that they were chosen on
    """
    runs = scored(read(changed(list(CHANGES), folder=folder)), of_one_environment(read(reported(folder))))
    of_defaults = runs[runs["label"] == UNCHANGED]
    rows = []
    for label in CHANGES:
        # Side by side: the tasks and seeds that both have
        both = runs[runs["label"] == label].merge(of_defaults, on=["task", "seed"], suffixes=("", "_before"))
        if label == UNCHANGED or both.empty:
            continue
        gain = (both["score"] - both["score_before"]).groupby(both["task"]).mean().sort_values()
        means = [interquartile_mean(both[name]) for name in ("score_before", "score")]
        time = (both["cpu_seconds"] / both["cpu_seconds_before"]).median()
        helped, hurt = gain[gain > NOTABLE][::-1], gain[gain < -NOTABLE]
        told = (", ".join(f"{task} {value:+.2f}" for task, value in part.head(3).items()) or "-" for part in (helped, hurt))
        counts = [str(both["task"].nunique()), str(len(both))]
        rows.append([f"`{label}`", *counts, f"{means[0]:.2f}", f"{means[1]:.2f}", f"{time:.2f}", *told])
    header = ["change", "tasks", "runs", "IQM before", "IQM with it", "CPU time", "helps most", "hurts most"]
    return markdown(header, rows)


def report(folder: Path = RESULTS) -> str:
    """
    :param folder: Where the results lie
    :return: All tables
    :raises ValueError: If a result is damaged
    """
    runs = read(reported(folder))
    parts = [f"After {N_STEPS:,} timesteps:", table(runs, TASKS, N_STEPS), summary(runs, TASKS, N_STEPS)]
    parts += [f"REINFORCE's worst seed after {N_STEPS:,} timesteps:", worst(runs)]
    if (runs["n_steps"] == N_MORE_STEPS).any():
        parts += [
            f"After {N_MORE_STEPS:,} timesteps:",
            table(runs, UNTOUCHED, N_MORE_STEPS),
            summary(runs, UNTOUCHED, N_MORE_STEPS),
        ]
    parts += [
        f"Warnings in REINFORCE's runs of {N_STEPS:,} timesteps (healthy: a score of at least {HEALTHY}):",
        advice_table(runs),
    ]
    return "\n\n".join(parts)
