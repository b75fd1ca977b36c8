"""The learning curves."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.learning.one_run import N_ROWS
from benchmarks.learning.results import NAMES, in_order

COLOURS = {
    "reinforce": "#c0392b",
    "reinforce_mc": "#e67e22",
    "a2c": "#2e6fab",
    "ppo": "#7fb3d9",
    "ppo_cleanrl": "#8e7cc3",
    "trpo": "#4f9d69",
    "trpo_narrow": "#9ccc65",
}


def mean_curve(curves: pd.DataFrame, x: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    :param curves: The rows of the runs of an algorithm on an environment
    :param x: The column along which to go
    :return: Points along it that all runs have reached, and mean and standard deviation over the runs of the training return
    """
    runs = [run.dropna(subset="return_last_100") for _, run in curves.groupby("seed")]
    runs = [run for run in runs if len(run)]
    if not runs:
        return np.empty(0), np.empty(0), np.empty(0)
    start, end = max(run[x].iloc[0] for run in runs), min(run[x].iloc[-1] for run in runs)
    grid = np.geomspace(max(start, 1e-2), end, N_ROWS) if x == "cpu_seconds" else np.linspace(start, end, N_ROWS)
    values = np.stack([np.interp(grid, run[x], run["return_last_100"]) for run in runs])
    return grid, values.mean(axis=0), values.std(axis=0, ddof=1) if len(runs) > 1 else np.zeros(N_ROWS)


def draw(axis: Any, curves: pd.DataFrame, x: str, algos: list[str]) -> None:
    """
    :param axis: Where to draw
    :param curves: The rows of the runs on an environment
    :param x: The column along which to go
    :param algos: Algorithms
    """
    for algo in reversed(algos):  # REINFORCE on top
        ours = curves[curves["algo"] == algo]
        grid, mean, deviation = mean_curve(ours, x)
        if len(grid):
            axis.plot(grid, mean, color=COLOURS[algo], linewidth=1.6)
            axis.fill_between(grid, mean - deviation, mean + deviation, color=COLOURS[algo], alpha=0.18, linewidth=0)
    counts = curves.groupby("algo")["seed"].nunique()
    seeds = f"{counts.min()}" if counts.nunique() == 1 else f"{counts.min()}-{counts.max()}"
    axis.set_title(f"{curves['env'].iloc[0]}  ({seeds} seed{'s' if seeds != '1' else ''})", fontsize=9)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    if x == "cpu_seconds":
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    else:
        axis.xaxis.set_major_formatter(
            lambda value, _: f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k" if value else "0"
        )


def figure(curves: pd.DataFrame, x: str, env_ids: list[str], algos: list[str], path: Path) -> None:
    """
    :param curves: The rows of the runs
    :param x: The column along which to go
    :param env_ids: Environments, at least one
    :param algos: Algorithms
    :param path: Where the figure goes
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    n_columns = min(4, len(env_ids))
    n_rows = -(-len(env_ids) // n_columns)
    size = (3.2 * n_columns, 2.6 * n_rows + 0.7)
    sheet, axes = plt.subplots(n_rows, n_columns, figsize=size, layout="constrained", squeeze=False)
    for axis in axes.flat[len(env_ids) :]:
        axis.set_axis_off()
    for axis, env_id in zip(axes.flat, env_ids, strict=False):
        draw(axis, curves[curves["env"] == env_id], x, algos)
    sheet.supxlabel("CPU seconds of training, one thread" if x == "cpu_seconds" else "timesteps", fontsize=10)
    sheet.supylabel("mean return of the last 100 training episodes", fontsize=10)
    drawn = in_order(curves[curves["env"].isin(env_ids)], "algo", algos)
    handles = [plt.Line2D([], [], color=COLOURS[algo], linewidth=2) for algo in drawn]
    names = [NAMES[algo] for algo in drawn]
    sheet.legend(handles, names, loc="outside upper center", ncols=len(drawn), frameon=False, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.savefig(path, dpi=130)
    plt.close(sheet)
