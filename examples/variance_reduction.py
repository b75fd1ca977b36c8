"""
Why is the policy gradient so noisy, and what helps? One figure: REINFORCE on CartPole-v1 with one remedy after the other,
and a choice between two arms that shows what a baseline does.

    python examples/variance_reduction.py --out output
"""

import argparse
import os
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_reinforce import REINFORCE
from sb3_reinforce.callbacks import GradientMonitor

#: Each variant adds one thing to the one above it; in the last two, the critic replaces the mean
VARIANTS: dict[str, dict[str, Any]] = {
    "whole-episode returns": {"reward_to_go": False, "gamma": 1.0, "baseline": None},
    "reward-to-go": {"reward_to_go": True, "gamma": 1.0, "baseline": None},
    "+ discount 0.99": {"gamma": 0.99, "baseline": None},
    "+ mean baseline": {"gamma": 0.99, "baseline": "mean"},
    "value baseline": {"gamma": 0.99, "baseline": "value"},
    "value, 4 x the batch": {"gamma": 0.99, "baseline": "value", "n_steps": 2048},
}
#: What they all have. The steps are the optimizer's, and longer where the gradient is larger
PLAIN: dict[str, Any] = {
    "n_steps": 512,
    "normalize_advantage": False,
    "natural_gradient": False,
    "normalize_returns": False,
    "ent_coef": 0.0,
    "learning_rate": 3e-3,
    "batch_size": 256,
}
COLOURS = ("#9e9e9e", "#e6a23c", "#c0392b", "#7b4397", "#2e6fab", "#0b3c6f")
#: Points of the curves over the training
N_POINTS = 40
#: The rewards of the two arms, and the baseline that is subtracted
SITUATIONS = {"+10 / -10": (10.0, -10.0, 0.0), "+10 / +1": (10.0, 1.0, 0.0), "+10 / +1, baseline 5.5": (10.0, 1.0, 5.5)}
SITUATION_COLOURS = ("#2a9d8f", "#e76f51", "#264653")


class EpisodeReturns(BaseCallback):
    """Notes the return of each training episode and the timestep at which it ended."""

    def __init__(self) -> None:
        super().__init__()
        self.episodes: list[tuple[int, float]] = []

    def _on_step(self) -> bool:
        ended = [info["episode"]["r"] for info in self.locals["infos"] if "episode" in info]
        self.episodes.extend((self.num_timesteps, episode_return) for episode_return in ended)
        return True


def train(variant: str, seed: int, timesteps: int) -> pd.DataFrame:
    """
    :param variant: Name of a variant
    :param seed: Seed
    :param timesteps: Number of environment steps
    :return: Return and variance of the gradient over the training, a row for each point of the curves
    """
    th.set_num_threads(1)
    arguments = {**PLAIN, **VARIANTS[variant]}
    model = REINFORCE("MlpPolicy", "CartPole-v1", seed=seed, device="cpu", **arguments)
    returns, monitor = EpisodeReturns(), GradientMonitor(every_n_updates=2)
    model.learn(timesteps, callback=[returns, monitor])

    at = np.linspace(0, timesteps, N_POINTS + 1)[1:]
    episodes = pd.DataFrame(returns.episodes, columns=["timestep", "return"])
    measured = monitor.summary().rename(columns=lambda name: name.split("/")[-1])
    # The median of a few neighbours: single measurements of a variance are noisy themselves
    measured["covariance_trace"] = measured["covariance_trace"].rolling(9, min_periods=1, center=True).median()
    return pd.DataFrame(
        {
            "variant": variant,
            "seed": seed,
            "timestep": at,
            "return": np.interp(at, episodes["timestep"], episodes["return"].rolling(20, min_periods=1).mean()),
            "variance": np.interp(at, measured["total_timesteps"], measured["covariance_trace"]),
        }
    )


def train_all(seeds: int, timesteps: int) -> pd.DataFrame:
    """
    :param seeds: Number of seeds
    :param timesteps: Number of environment steps of each run
    :return: The rows of all runs
    """
    jobs = [(variant, seed, timesteps) for seed in range(seeds) for variant in VARIANTS]
    # A fresh process each: PyTorch's threads do not survive a fork
    with ProcessPoolExecutor(min(len(jobs), os.cpu_count() or 1), mp_context=get_context("spawn")) as pool:
        return pd.concat(pool.map(train, *zip(*jobs, strict=True)), ignore_index=True)


def play_two_arms(rewards: tuple[float, float], baseline: float, n_updates: int, n_runs: int) -> np.ndarray:
    """
    REINFORCE with one sample per update on a softmax policy over two arms.

    :param rewards: Reward of each arm, the better one first
    :param baseline: What is subtracted
    :param n_updates: Number of updates
    :param n_runs: Number of independent runs
    :return: Probability of the better arm, shape ``(n_updates + 1, n_runs)``
    """
    rng = np.random.default_rng(0)
    log_odds, history = np.zeros(n_runs), []
    for _ in range(n_updates + 1):
        probability = 1.0 / (1.0 + np.exp(-log_odds))
        history.append(probability)
        better = rng.random(n_runs) < probability
        # The gradient of log pi with respect to the log-odds is 1 - p for the better arm, -p for the other
        score = np.where(better, 1.0 - probability, -probability)
        log_odds = log_odds + 0.05 * (np.where(better, *rewards) - baseline) * score
    return np.array(history)


def gradient_variance(rewards: tuple[float, float], baseline: np.ndarray) -> np.ndarray:
    """
    :param rewards: Reward of each arm
    :param baseline: What is subtracted
    :return: Variance of the gradient from one sample while both arms are equally likely
    """
    gradients = [0.5 * (rewards[0] - baseline), -0.5 * (rewards[1] - baseline)]
    mean = 0.5 * (gradients[0] + gradients[1])
    return 0.5 * ((gradients[0] - mean) ** 2 + (gradients[1] - mean) ** 2)


def plot_training(axes: np.ndarray, runs: pd.DataFrame) -> None:
    """
    :param axes: Two axes: learning curves, variance of the gradient
    :param runs: The rows of all runs
    """
    for axis, column in zip(axes, ("return", "variance"), strict=True):
        for variant, colour in zip(VARIANTS, COLOURS, strict=True):
            values = runs[runs["variant"] == variant].pivot(index="timestep", columns="seed", values=column)
            if column == "variance":
                values = np.log10(values.clip(lower=1e-12))
            centre, error = values.mean(axis=1), values.std(axis=1, ddof=1).fillna(0.0) / np.sqrt(values.shape[1])
            curves = [centre - error, centre, centre + error]
            low, middle, high = [10.0**curve for curve in curves] if column == "variance" else curves
            axis.fill_between(values.index / 1000, low, high, color=colour, alpha=0.18, linewidth=0)
            axis.plot(values.index / 1000, middle, color=colour, linewidth=2, label=variant)
        axis.set_xlabel("environment steps (thousands)")
        axis.set_xlim(0, runs["timestep"].max() / 1000)
    axes[0].set_ylim(0, 510)
    axes[0].set_ylabel("return of the training episodes")
    axes[0].set_title("Learning curves", fontsize=12, loc="left")
    axes[1].set_yscale("log")
    # Where every episode reaches the time limit, the variance is nearly zero
    axes[1].set_ylim(bottom=max(1e-3, 0.5 * runs["variance"].min()))
    axes[1].set_ylabel("trace of its covariance")
    axes[1].set_title("Variance of the gradient", fontsize=12, loc="left")


def plot_two_arms(axes: np.ndarray) -> None:
    """
    :param axes: Three axes: the push of one sample, the probability of the better arm, variance over baseline
    """
    n_updates = 60
    for i, ((name, (best, other, baseline)), colour) in enumerate(zip(SITUATIONS.items(), SITUATION_COLOURS, strict=True)):
        pushes = [best - baseline, other - baseline]
        axes[0].bar(np.arange(2) + 0.27 * (i - 1), pushes, width=0.25, color=colour, label=name)
        for x, push in zip(np.arange(2) + 0.27 * (i - 1), pushes, strict=True):
            axes[0].text(
                x,
                push + (0.4 if push > 0 else -0.4),
                f"{push:+g}",
                ha="center",
                va="bottom" if push > 0 else "top",
                fontsize=9,
            )
        history = play_two_arms((best, other), baseline, n_updates, n_runs=1000)
        low, centre, high = np.quantile(history, [0.1, 0.5, 0.9], axis=1)
        axes[1].fill_between(np.arange(n_updates + 1), low, high, color=colour, alpha=0.18, linewidth=0)
        axes[1].plot(centre, color=colour, linewidth=2)
    axes[0].axhline(0, color="0.3", linewidth=1)
    axes[0].set_xticks([0, 1], ["the better arm A\nwas drawn", "the worse arm B\nwas drawn"])
    axes[0].set_ylim(-17, 13)
    axes[0].set_ylabel("push on the drawn arm")
    axes[0].set_title("Two arms: what one sample does", fontsize=12, loc="left")
    axes[0].legend(title="rewards of A / B", frameon=False, fontsize=9, title_fontsize=9, loc="lower left")
    axes[1].set_ylim(0.4, 1.01)
    axes[1].set_xlim(0, n_updates)
    axes[1].set_xlabel("updates of one sample each")
    axes[1].set_ylabel("probability of A")
    axes[1].set_title("… and what comes of it (median, 10 to 90 %)", fontsize=12, loc="left")
    baselines = np.linspace(-5, 12, 200)
    for (name, (best, other, baseline)), colour in zip(SITUATIONS.items(), SITUATION_COLOURS, strict=True):
        variance = gradient_variance((best, other), baselines)
        if baseline == 0.0:
            axes[2].plot(baselines, variance, color=colour, linewidth=2)
        at = gradient_variance((best, other), np.array(baseline))
        axes[2].plot(baseline, at, "o", color=colour, markersize=8, label=name, zorder=3)
    axes[2].set_xlabel("baseline that is subtracted")
    axes[2].set_ylabel("variance of the gradient")
    axes[2].set_ylim(bottom=-2)
    axes[2].legend(frameon=False, fontsize=9, loc="upper center")
    axes[2].set_title("Variance, both arms equally likely", fontsize=12, loc="left")


def plot(runs: pd.DataFrame, path: Path) -> None:
    """
    :param runs: The rows of all runs
    :param path: The PNG to write
    """
    plt.switch_backend("Agg")  # write files, open no window
    figure = plt.figure(figsize=(14, 8.6), layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=(1.15, 1.0))
    halves = [figure.add_subfigure(grid[row, 0]) for row in range(2)]
    top, bottom = halves[0].subplots(1, 2), halves[1].subplots(1, 3)
    plot_training(top, runs)
    plot_two_arms(bottom)
    for axis in [*top, *bottom]:
        axis.grid(color="0.93")
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
    n_seeds = runs["seed"].nunique()
    halves[0].suptitle(
        f"REINFORCE on CartPole-v1: mean and standard error over {n_seeds} seeds", fontsize=14, fontweight="bold"
    )
    handles, labels = top[0].get_legend_handles_labels()
    halves[0].legend(handles, labels, loc="outside lower center", ncols=len(VARIANTS), frameon=False, fontsize=10)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description="What lowers the variance of the policy gradient?")
    parser.add_argument("--quick", action="store_true", help="fewer seeds and steps: a look, not a measurement")
    parser.add_argument("--seeds", type=int, help="number of seeds")
    parser.add_argument("--timesteps", type=int, help="environment steps of each run")
    parser.add_argument("--out", type=Path, default=Path("output"), help="folder to write the figure to")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    seeds = args.seeds or (2 if args.quick else 6)
    runs = train_all(seeds, args.timesteps or (8_000 if args.quick else 60_000))
    path = args.out / "variance_reduction.png"
    plot(runs, path)
    last = runs[runs["timestep"] > 0.8 * runs["timestep"].max()]
    print(f"Means over the last fifth of the training ({seeds} seeds):")
    print(last.groupby("variant", sort=False)[["return", "variance"]].mean().round(3).to_string())
    print(f"Wrote {path} after {time.perf_counter() - start:.0f} s.")


if __name__ == "__main__":
    main()
