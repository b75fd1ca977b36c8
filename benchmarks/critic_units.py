"""
Does the critic learn where the mean of the returns is large beside their deviation, or their scale far from 1?

    python -m benchmarks.critic_units [--seeds 3] [--timesteps 50000]

For each task, with plain REINFORCE and a critic in raw units, and with the defaults: which share of the critic's last hidden
units is saturated at the end (beyond 0.99), and the variance of the returns that it has explained, median over the second
half of the updates.
"""

import argparse
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit, TransformReward
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.utils import explained_variance

from benchmarks.common import PLAIN, markdown, positive  # first: one thread
from sb3_reinforce import REINFORCE

SATURATED = 0.99


class Tracking(gym.Env[np.ndarray, np.ndarray]):
    """A target that walks at random, and a reward of minus the distance to it: a cost in every step, about the same always."""

    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.target = self.np_random.uniform(-1.0, 1.0, 2).astype(np.float32)
        return self.target.copy(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward = -float(np.linalg.norm(action - self.target))
        walk = self.target + 0.1 * self.np_random.normal(size=2)
        self.target = np.clip(walk, -1.0, 1.0).astype(np.float32)
        return self.target.copy(), reward, False, False, {}


TASKS: dict[str, Callable[[], gym.Env[Any, Any]]] = {
    "tracking": lambda: TimeLimit(Tracking(), 50),
    "CartPole-v1": lambda: gym.make("CartPole-v1"),
    "CartPole-v1, rewards x 1e6": lambda: TransformReward(gym.make("CartPole-v1"), lambda reward: 1e6 * float(reward)),
    "CartPole-v1, rewards x 1e-6": lambda: TransformReward(gym.make("CartPole-v1"), lambda reward: 1e-6 * float(reward)),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "raw, rate 0.01": {**PLAIN, "learning_rate": 1e-2},
    "raw, rate 0.001": {**PLAIN, "critic_learning_rate": 1e-3},
    "defaults": {},
}


class Watch(BaseCallback):
    """Keeps what the critic has explained in each update."""

    def __init__(self) -> None:
        super().__init__()
        self.explained: list[float] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        buffer = self.locals["rollout_buffer"]
        explained = explained_variance(buffer.values.astype(float), buffer.returns.astype(float))
        if np.isfinite(explained):
            self.explained.append(float(explained))


def saturated(model: REINFORCE) -> float:
    """
    :param model: A model
    :return: The share of the critic's last hidden units that are beyond 0.99 in the last rollout
    """
    observations = th.as_tensor(model.rollout_buffer.observations)
    with th.no_grad():
        features = model.policy.extract_features(observations)
        hidden = model.policy.mlp_extractor.forward_critic(features)
    return float((hidden.abs() > SATURATED).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=positive, default=3)
    parser.add_argument("--timesteps", type=positive, default=50_000)
    args = parser.parse_args()
    rows = []
    for task, make in TASKS.items():
        for setting, arguments in SETTINGS.items():
            shares, explained, returns = [], [], []
            for seed in range(args.seeds):
                model = REINFORCE("MlpPolicy", make_vec_env(make, seed=seed), seed=seed, device="cpu", **arguments)
                watch = Watch()
                model.learn(args.timesteps, callback=watch)
                shares.append(saturated(model))
                explained.append(float(np.median(watch.explained[len(watch.explained) // 2 :])))
                returns.append(float(np.mean([info["r"] for info in model.ep_info_buffer or ()])))
            cells = (f"{np.mean(shares):.0%}", f"{np.mean(explained):.2f}", f"{np.mean(returns):.4g}")
            rows.append([task, setting, *cells])
            print(markdown(["task", "critic", "saturated", "explained variance", "return"], rows[-1:]), flush=True)
    print(markdown(["task", "critic", "saturated", "explained variance", "return"], rows))


if __name__ == "__main__":
    main()
