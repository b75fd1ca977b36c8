"""The returns of random actions."""

from pathlib import Path

import gymnasium as gym
import numpy as np

from benchmarks.learning.entries import register_env


def measure_random(env_ids: list[str], path: Path, n_episodes: int = 100) -> None:
    """
    :param env_ids: Environments
    :param path: Where their mean returns under random actions go; what is there for other environments stays
    :param n_episodes: Number of episodes
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = path.read_text().splitlines()[1:] if path.exists() else []
    rows = {line.split(",")[0]: line for line in lines}
    for env_id in env_ids:
        register_env(env_id)
        env = gym.make(env_id)
        env.action_space.seed(0)
        returns = []
        for episode in range(n_episodes):
            env.reset(seed=0 if episode == 0 else None)
            total, done = 0.0, False
            while not done:
                _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
                total, done = total + float(reward), terminated or truncated
            returns.append(total)
        rows[env_id] = f"{env_id},{np.mean(returns):.6g},{np.std(returns):.6g},{n_episodes}"
        print(rows[env_id], flush=True)
        path.write_text("\n".join(["env,mean,std,n_episodes", *rows.values()]) + "\n")
