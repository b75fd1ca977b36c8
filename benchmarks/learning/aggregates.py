"""Scores over all MuJoCo tasks together."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from benchmarks.common import markdown
from benchmarks.learning.plan import MUJOCO, OURS, STAND_INS, counted
from benchmarks.learning.results import NAMES, REFERENCE

N_BOOTSTRAPS = 2000
#: A task with fewer seeds is left out, as there would be no more seeds of the others
MIN_SEEDS = 3


def score_matrices(
    runs: pd.DataFrame, column: str, random: dict[str, float], algos: list[str]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """
    Scores that are 0 for random actions and 1 for the mean of TRPO's seeds that are among them, on the tasks where both
    REINFORCE and TRPO have runs enough, of the algorithms that have runs on all of them. Where another entry of an algorithm
    is the opponent that counts, its runs are taken.

    :param runs: The runs
    :param column: What of them is the score
    :param random: The mean returns of random actions
    :param algos: Algorithms
    :return: By algorithm, scores of shape ``(n_seeds, n_tasks)``: as many seeds as each task has; and the tasks
    """
    found = {key: group[column].dropna().to_numpy() for key, group in runs.groupby(["env", "algo"])}
    algos = [algo for algo in algos if algo not in STAND_INS]
    scores = {
        (env_id, algo): found.get(counted(algo, env_id, found), np.empty(0))
        for env_id in MUJOCO
        for algo in (*algos, OURS, REFERENCE)
    }
    tasks = []
    for env_id in MUJOCO:
        n_seeds = min(len(scores[env_id, algo]) for algo in (OURS, REFERENCE))
        complete = env_id in random and n_seeds >= MIN_SEEDS
        # Where the reference learns nothing there is no scale
        if complete and scores[env_id, REFERENCE].mean() > random[env_id]:
            tasks.append(env_id)
    if not tasks:
        return {}, tasks
    matrices = {}
    for algo in algos:
        n_seeds = min(len(scores[env_id, algo]) for env_id in tasks)
        if n_seeds:
            matrices[algo] = np.stack([scores[env_id, algo][:n_seeds] - random[env_id] for env_id in tasks], axis=1)
    scale = matrices[REFERENCE].mean(axis=0)
    return {algo: matrix / scale for algo, matrix in matrices.items()}, tasks


def interquartile_mean(scores: np.ndarray) -> float:
    """
    :param scores: Scores
    :return: The mean of the middle half of them
    """
    return float(stats.trim_mean(scores, 0.25, axis=None))


def scaled_iqm(scores: np.ndarray, reference: np.ndarray) -> float:
    """
    :param scores: Scores of shape ``(n_seeds, n_tasks)``
    :param reference: TRPO's. In a bootstrap its seeds are drawn too, so that the interval has the chance in the scale
    :return: The interquartile mean, with the mean of TRPO as 1
    """
    return interquartile_mean(scores / reference.mean(axis=0))


def interval(point: np.ndarray, bounds: np.ndarray) -> str:
    """
    :param point: An estimate
    :param bounds: Those of its interval
    :return: Both
    """
    low, high = np.asarray(bounds).ravel()
    return f"{np.asarray(point).item():.2f} [{low:.2f}, {high:.2f}]"


def estimate(data: dict[str, Any], metric: Callable[..., float]) -> dict[str, str]:
    """
    :param data: Scores by name, or pairs of them
    :param metric: A function of them
    :return: Its values, with 95 % stratified bootstrap intervals over the seeds
    """
    from rliable import library

    if not data:
        return {}
    np.random.seed(0)  # rliable draws from NumPy's global generator, whatever random state it is given
    points, bounds = library.get_interval_estimates(data, lambda *scores: np.array([metric(*scores)]), reps=N_BOOTSTRAPS)
    groups = {name: scores if isinstance(scores, tuple) else (scores,) for name, scores in data.items()}
    single = {name for name, group in groups.items() if min(map(len, group)) == 1}
    # There is no drawing of seeds from one
    return {name: f"{points[name].item():.2f}" if name in single else interval(points[name], bounds[name]) for name in data}


def aggregates(runs: pd.DataFrame, column: str, random: dict[str, float], algos: list[str]) -> str:
    """
    :param runs: The runs
    :param column: What of them is the score
    :param random: The mean returns of random actions
    :param algos: Algorithms
    :return: A table of the interquartile means of the normalized scores, and of the probabilities of improvement
    """
    try:
        from rliable import metrics
    except ModuleNotFoundError:
        return 'rliable is not installed: `pip install "sb3-reinforce[benchmark]"`.'
    matrices, tasks = score_matrices(runs, column, random, algos)
    if not tasks:
        return (
            f"No MuJoCo task has {MIN_SEEDS} runs of REINFORCE and of {NAMES[REFERENCE]}, and the return of random actions "
            "(`random`)."
        )
    others = {algo: (scores, matrices[REFERENCE]) for algo, scores in matrices.items() if algo != REFERENCE}
    means = {REFERENCE: f"{interquartile_mean(matrices[REFERENCE]):.2f}", **estimate(others, scaled_iqm)}
    pairs = {algo: (matrices[OURS], matrices[algo]) for algo in matrices if algo != OURS}
    chances = estimate(pairs, metrics.probability_of_improvement)
    rows = [[NAMES[algo], str(len(matrices[algo])), means[algo], chances.get(algo, "-")] for algo in matrices]
    header = ["", "seeds", f"IQM ({NAMES[REFERENCE]} = 1, random = 0)", f"probability that {NAMES[OURS]} is better"]
    missing = [env_id for env_id in MUJOCO if env_id not in tasks]
    missing += [NAMES[algo] for algo in algos if algo not in {*matrices, *STAND_INS}]
    left_out = f" Left out for want of runs: {', '.join(missing)}." if missing else ""
    return f"Over {len(tasks)} tasks: {', '.join(tasks)}.{left_out}\n\n{markdown(header, rows)}"


def without_one(runs: pd.DataFrame, random: dict[str, float]) -> str:
    """
    :param runs: The runs
    :param random: The mean returns of random actions
    :return: A table of REINFORCE's interquartile means without one task at a time
    """
    columns = []
    for column in ("eval_mean", "return_last_100"):
        matrices, tasks = score_matrices(runs, column, random, [OURS, REFERENCE])
        if len(tasks) < 2:
            return "There are no two tasks with runs enough."
        kept = {"none": matrices[OURS]} | {
            env_id: np.delete(matrices[OURS], task, axis=1) for task, env_id in enumerate(tasks)
        }
        columns.append({name: f"{interquartile_mean(scores):.2f}" for name, scores in kept.items()})
    rows = [[name, *(column.get(name, "-") for column in columns)] for name in columns[0] | columns[1]]
    header = ["left out", "evaluation, IQM", "training return, IQM"]
    return f"REINFORCE, the mean of {NAMES[REFERENCE]} = 1.\n\n{markdown(header, rows)}"
