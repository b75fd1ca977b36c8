"""
Train on CartPole-v1 with as many workers as there are cores, or machines. There is nothing in it but what a script for one
process has in it:

    python examples/distributed.py                                    # one process
    torchrun --standalone --nproc-per-node=2 examples/distributed.py  # two workers on this machine

On several machines, started on each of them:

    torchrun --nnodes=2 --nproc-per-node=4 --rdzv-backend=c10d --rdzv-endpoint=HOST:29400 examples/distributed.py
"""

import argparse
import os
import time
from pathlib import Path

import torch as th
from stable_baselines3.common.callbacks import CheckpointCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_reinforce import REINFORCE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--timesteps", type=int, default=60_000, help="steps of all workers together")
    parser.add_argument("--n-envs", type=int, default=1, help="environments of each worker")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("output"), help="folder for the model and its checkpoints")
    arguments = parser.parse_args()
    th.set_num_threads(1)

    env = make_vec_env(arguments.env, n_envs=arguments.n_envs)
    model = REINFORCE("MlpPolicy", env, seed=arguments.seed, device="cpu")
    start = time.perf_counter()
    # Checkpoints are written by one worker, and every worker's episodes are in the log
    model.learn(arguments.timesteps, callback=CheckpointCallback(10_000, str(arguments.out / "checkpoints")))
    seconds = time.perf_counter() - start
    model.save(arguments.out / "distributed")

    if int(os.environ.get("RANK", "0")) == 0:
        n_workers = int(os.environ.get("WORLD_SIZE", "1"))
        print(f"{model.num_timesteps} steps of {n_workers} worker(s) in {seconds:.1f} s, {model._n_updates} updates")
        mean, std = evaluate_policy(model, make_vec_env(arguments.env, seed=1_000), n_eval_episodes=20)
        print(f"Return of 20 deterministic episodes: {mean:.1f} +- {std:.1f}")


if __name__ == "__main__":
    main()
