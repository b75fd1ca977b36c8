"""
Train REINFORCE on CartPole-v1, evaluate it, save it, load it back and plot how it learned.

    python examples/cartpole.py --seed 0 --out output
"""

import argparse
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from sb3_reinforce import REINFORCE

SOLVED = 475  # the return at which CartPole-v1 counts as solved
WINDOW = 20  # episodes in the running mean


class EpisodeReturns(BaseCallback):
    """Notes the return of each training episode and the timestep at which it ended."""

    def __init__(self) -> None:
        super().__init__()
        self.timesteps: list[int] = []
        self.returns: list[float] = []

    def _on_step(self) -> bool:
        for info in self.locals["infos"]:
            if "episode" in info:  # put there by the Monitor wrapper when an episode ends
                self.timesteps.append(self.num_timesteps)
                self.returns.append(info["episode"]["r"])
        return True


def acts_like(model: REINFORCE, other: REINFORCE, env: VecEnv, n_steps: int = 500) -> bool:
    """
    Compare two models along the states that the first one visits.

    :param model: The model that plays
    :param other: The model to compare it with
    :param env: The environment to play in
    :param n_steps: The number of steps to play
    :return: Whether they always choose the same action
    """
    obs = env.reset()
    for _ in range(n_steps):
        action, _ = model.predict(obs, deterministic=True)
        other_action, _ = other.predict(obs, deterministic=True)
        if not np.array_equal(action, other_action):
            return False
        obs, _, _, _ = env.step(action)
    return True


def plot_learning_curve(episodes: EpisodeReturns, caption: str, path: Path) -> None:
    """
    Draw the return of each training episode and a running mean, as PNG.

    :param episodes: The training episodes
    :param caption: Text beside the title
    :param path: The file to write
    """
    plt.switch_backend("Agg")  # write files, open no window
    fig, ax = plt.subplots(figsize=(8, 4.5), layout="constrained")
    thousands = np.array(episodes.timesteps) / 1000
    running_mean = pd.Series(episodes.returns).rolling(WINDOW).mean()

    ax.scatter(thousands, episodes.returns, s=10, color="#6b9bd1", alpha=0.5, linewidths=0, label="one training episode")
    ax.plot(thousands, running_mean, color="#0b3c6f", linewidth=2, label=f"mean of the last {WINDOW} episodes")
    ax.axhline(SOLVED, color="#c2410c", linewidth=1.2, linestyle="--", label=f"solved: {SOLVED}")

    ax.set_title("REINFORCE on CartPole-v1", loc="left", fontweight="bold")
    ax.set_title(caption, loc="right", fontsize=9, color="0.35")
    ax.set_xlabel("Environment steps (thousands)")
    ax.set_ylabel("Return of the episode (steps balanced)")
    ax.margins(x=0)
    ax.set_xlim(left=0)
    ax.set_ylim(0, 520)
    ax.grid(color="0.92")
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(loc="lower right", framealpha=0.95, edgecolor="0.85")
    fig.savefig(path, dpi=150)
    plt.close(fig)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train REINFORCE on CartPole-v1.")
    parser.add_argument("--seed", type=int, default=0, help="seed of the training")
    parser.add_argument("--timesteps", type=int, default=100_000, help="number of environment steps to train for")
    parser.add_argument("--out", type=Path, default=Path("output"), help="folder to write the model and the figure to")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    th.set_num_threads(1)  # such small networks gain nothing from more

    # Train
    model = REINFORCE("MlpPolicy", "CartPole-v1", seed=args.seed, device="cpu")
    episodes = EpisodeReturns()
    start = time.perf_counter()
    model.learn(args.timesteps, callback=episodes, progress_bar=True)
    wall_time = time.perf_counter() - start

    # Evaluate on a fresh environment (in a Monitor wrapper, as evaluate_policy wants it)
    env = make_vec_env("CartPole-v1", seed=args.seed + 1000)
    mean, std = evaluate_policy(model, env, n_eval_episodes=20, deterministic=True)
    evaluation = f"{mean:.1f} +- {std:.1f} over 20 episodes"

    # Save and load
    model_path = args.out / "reinforce_cartpole.zip"
    model.save(model_path)
    if not acts_like(model, REINFORCE.load(model_path, device="cpu"), env):
        raise RuntimeError(f"The model loaded from {model_path} acts differently from the one saved.")

    figure_path = args.out / "cartpole_learning_curve.png"
    plot_learning_curve(episodes, "evaluated after training: " + evaluation.replace("+-", "±"), figure_path)

    print(f"Return:         {evaluation} (mean +- std, deterministic)")
    print(f"Trained for:    {model.num_timesteps:,} steps, {len(episodes.returns):,} episodes")
    print(f"Wall time:      {wall_time:.1f} s of training")
    print(f"Model:          {model_path} (loaded back, acts the same)")
    print(f"Learning curve: {figure_path}")


if __name__ == "__main__":
    main()
