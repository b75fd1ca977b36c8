"""How long it takes to reach a return."""

import math
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.common import markdown, number
from benchmarks.learning.plan import OURS, SOLVE, SOLVE_IN_A_ROW
from benchmarks.learning.results import NAMES, read_run

#: The share of the way from random actions to the lower one of two final returns that both have to go
COMMON_SHARE = 0.9
#: Fewer episodes than these make no mean return
MIN_EPISODES = 20


def first_reached(curve: pd.DataFrame, threshold: float) -> tuple[float, float]:
    """
    :param curve: The rows of a run
    :param threshold: A return
    :return: CPU seconds and timesteps until the mean training return first is that high; infinity if it never is
    """
    reached = curve[(curve["return_last_100"] >= threshold) & (curve["n_episodes"] >= MIN_EPISODES)]
    return (reached["cpu_seconds"].iloc[0], reached["timesteps"].iloc[0]) if len(reached) else (math.inf, math.inf)


def set_clocks(curves: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """
    Runs of different days are made comparable: the clock of each is set so that its first steps take as long as they took
    where the algorithms were measured in turn (``python -m benchmarks.learning speed``). An environment with an algorithm
    that has not been measured so is left as it is.

    :param curves: The rows of the runs
    :param folder: Folder of the results
    :return: The rows, with other ``cpu_seconds``
    """
    measured = {}
    for (env_id, algo), _ in curves.groupby(["env", "algo"]):
        ends = [read_run(path, "speed")[1].iloc[-1] for path in (folder / "speed" / env_id).glob(f"{algo}-*.csv")]
        if ends:
            measured[env_id, algo] = np.median([end["timesteps"] / end["cpu_seconds"] for end in ends]), ends[0]["timesteps"]
    complete = {env_id for env_id, group in curves.groupby("env") if all((env_id, a) in measured for a in set(group["algo"]))}

    def scaled(run: pd.DataFrame) -> pd.Series:
        key = run["env"].iloc[0], run["algo"].iloc[0]
        if key[0] not in complete:
            return run["cpu_seconds"]
        speed, n_steps = measured[key]
        return run["cpu_seconds"] * (n_steps / speed / np.interp(n_steps, run["timesteps"], run["cpu_seconds"]))

    parts = [scaled(run) for _, run in curves.groupby(["env", "algo", "seed"], sort=False)]
    return curves.assign(cpu_seconds=pd.concat(parts)) if parts else curves


def times(runs: pd.DataFrame, curves: pd.DataFrame, random: dict[str, float], env_ids: list[str], algos: list[str]) -> str:
    """
    :param runs: The runs
    :param curves: Their rows
    :param random: The mean returns of random actions
    :param env_ids: Environments
    :param algos: Algorithms
    :return: A table of the medians over the seeds of the CPU seconds, and of the timesteps, until a return that both
        REINFORCE and the other algorithm reach on average. Without the environments where REINFORCE has a horizon, which
        makes its training returns those of other episodes
    """
    horizons = {env for env, kwargs in zip(runs["env"], runs["hyperparameters"], strict=True) if kwargs.get("horizon")}
    finals = runs.groupby(["env", "algo"])["return_last_100"].mean()
    by_run = {key: list(group.groupby("seed")) for key, group in curves.groupby(["env", "algo"])}
    rows = []
    for env_id in env_ids:
        for algo in algos:
            both = [(env_id, OURS), (env_id, algo)]
            if algo == OURS or env_id in horizons or env_id not in random or not all(key in by_run for key in both):
                continue
            threshold = random[env_id] + COMMON_SHARE * (min(finals[key] for key in both) - random[env_id])
            if threshold <= random[env_id]:
                continue
            medians = [np.median([first_reached(curve, threshold) for _, curve in by_run[key]], axis=0) for key in both]
            (our_time, our_steps), (their_time, their_steps) = medians
            ratio = their_time / our_time if math.isfinite(our_time) else math.nan
            cells = [threshold, our_time, their_time, ratio, our_steps, their_steps]
            rows.append([f"{env_id}, {NAMES[algo]}", *(number(float(cell)) for cell in cells)])
    header = ["", "return", "REINFORCE, CPU s", "other, CPU s", "other / REINFORCE", "REINFORCE, steps", "other, steps"]
    what = (
        f"The return is {COMMON_SHARE:.0%} of the way from random actions to the lower of the two mean training returns at "
        f"the end. Medians over the seeds of when the mean of the last 100 episodes ({MIN_EPISODES} or more) first is there; "
        "a dash where half of the runs or more never are."
    )
    return (
        f"{what}\n\n{markdown(header, rows)}"
        if rows
        else "No environment has runs of REINFORCE, another algorithm and random actions."
    )


def steps_to_solve(folder: Path) -> str:
    """
    :param folder: Folder of the results
    :return: A table of the steps and CPU seconds until the first of three consecutive evaluations that pass
    """
    rows = []
    for env_id, (_, enough) in SOLVE.items():
        for algo, name in NAMES.items():
            reached = []
            for path in sorted((folder / "solve" / env_id).glob(f"{algo}-*.csv")):
                _, run = read_run(path, "solve")
                passed = (run["eval_mean"] >= enough).astype(int)
                # 1 where this evaluation and the next ones pass
                starts = run[passed[::-1].rolling(SOLVE_IN_A_ROW).min()[::-1] == 1]
                reached.append((math.inf, math.inf) if starts.empty else starts[["timesteps", "cpu_seconds"]].iloc[0])
            if reached:
                steps, seconds = np.array(reached, dtype=float).T
                solved = f"{np.isfinite(steps).sum()} of {len(steps)}"
                figures = (np.median(steps), np.min(steps), np.max(steps), np.median(seconds))
                rows.append([f"{env_id}, {name}", number(enough), solved, *(number(float(figure)) for figure in figures)])
    header = ["", "return", "solved", "median steps", "least", "most", "median CPU s"]
    return f"CPU seconds as they were measured.\n\n{markdown(header, rows)}" if rows else "No run has finished."
