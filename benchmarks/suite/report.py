"""The tables: what one line learns, and what each change of the defaults does."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.common import markdown, number, spread
from benchmarks.learning.aggregates import estimate
from benchmarks.suite.one_run import COLUMNS, RANDOM, Run
from benchmarks.suite.plan import (
    CHANGES,
    N_ENVS,
    N_MORE_STEPS,
    N_STEPS,
    OTHERS,
    OURS,
    REFERENCE,
    RESULTS,
    ZOO,
    changed,
    reported,
)
from benchmarks.suite.tasks import CHOOSE, TASKS, UNTOUCHED

NAMES = {OURS: "REINFORCE", ZOO: "REINFORCE, zoo's default entry", "ppo": "PPO", "a2c": "A2C", "trpo": "TRPO"}
ALGOS = (OURS, ZOO, *OTHERS)


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


def read(runs: Iterable[Run]) -> pd.DataFrame:
    """
    :param runs: Runs
    :return: One row for each that is finished
    """
    names = ("algo", "task", "n_steps", "n_envs", "seed", "label")
    rows = [{**{name: getattr(run, name) for name in names}, **last_row(run.path)} for run in runs if run.path.exists()]
    return pd.DataFrame(rows, columns=[*names, *COLUMNS])


def scores(runs: pd.DataFrame, scale: pd.DataFrame, tasks: Iterable[str]) -> tuple[np.ndarray, list[str]]:
    """
    :param runs: The runs of one algorithm
    :param scale: The runs that say what 0 (random actions) and 1 (the mean of PPO) are
    :param tasks: Tasks
    :return: Scores of shape ``(n_seeds, n_tasks)``, as many seeds as each task has; and the tasks that have a scale
    """
    columns, kept = [], []
    for task in tasks:
        zero = scale[(scale["task"] == task) & (scale["algo"] == RANDOM)]["eval_mean"].mean()
        one = scale[(scale["task"] == task) & (scale["algo"] == REFERENCE)]["eval_mean"].mean()
        found = runs[runs["task"] == task].sort_values("seed")["eval_mean"].to_numpy()
        if one > zero and len(found):  # where PPO learns nothing there is no scale
            columns.append((found - zero) / (one - zero))
            kept.append(task)
    n_seeds = min(map(len, columns), default=0)
    return np.stack([column[:n_seeds] for column in columns], axis=1) if columns else np.zeros((0, 0)), kept


def iqm(data: dict[str, np.ndarray]) -> dict[str, str]:
    """
    :param data: Scores by name
    :return: Their interquartile means, with 95 % stratified bootstrap intervals
    """
    from rliable import metrics

    return estimate({name: matrix for name, matrix in data.items() if matrix.size}, metrics.aggregate_iqm)


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
    data, kept = {}, set()
    for name, group in groups.items():
        data[name], found = scores(group, single, tasks)
        kept |= set(found)
    means = iqm(data)
    rows = [[name, str(len(data[name])), means[name]] for name in data if name in means]
    return f"Over {len(kept)} of {len(tasks)} tasks.\n\n" + markdown(["", "seeds", "IQM (PPO = 1, random = 0)"], rows)


def changes_table(folder: Path) -> str:
    """
    :param folder: Where the results lie
    :return: What each change of the defaults does on the tasks that they were chosen on
    """
    scale = read(reported(folder))
    scale = scale[((scale["n_steps"] == N_STEPS) & (scale["n_envs"] == 1)) | (scale["algo"] == RANDOM)]
    runs = read(changed(list(CHANGES), folder=folder))
    groups = {label: runs[runs["label"] == label] for label in CHANGES if (runs["label"] == label).any()}
    means = iqm({label: scores(group, scale, CHOOSE)[0] for label, group in groups.items()})
    rows = [
        [f"`{label}`", means.get(label, "-"), *(number(group[group["task"] == task]["eval_mean"].mean()) for task in CHOOSE)]
        for label, group in groups.items()
    ]
    return markdown(["change", "IQM", *CHOOSE], rows)


def report(folder: Path = RESULTS) -> str:
    """
    :param folder: Where the results lie
    :return: All tables
    :raises ValueError: If a result is damaged
    """
    runs = read(reported(folder))
    parts = [
        f"After {N_STEPS:,} timesteps:",
        table(runs, TASKS, N_STEPS),
        summary(runs, TASKS, N_STEPS),
        f"After {N_MORE_STEPS:,} timesteps:",
        table(runs, UNTOUCHED, N_MORE_STEPS),
        summary(runs, UNTOUCHED, N_MORE_STEPS),
        "One change of the defaults at a time:",
        changes_table(folder),
    ]
    return "\n\n".join(parts)
