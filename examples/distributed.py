"""
Train on CartPole-v1 with one worker for each core, or on several machines. The script is the same as for one process:

    python examples/distributed.py                                    # one process
    torchrun --standalone --nproc-per-node=2 examples/distributed.py  # two workers on this machine

On several machines, started on each of them:

    torchrun --nnodes=2 --nproc-per-node=4 --rdzv-backend=c10d --rdzv-endpoint=HOST:29400 examples/distributed.py

With ``--resume`` it goes on from the last checkpoint, if there is one, and ends with the weights of a run that was never
interrupted. So torchrun can start a job again when a worker fails (all workers must be able to read the folder):

    torchrun --standalone --nproc-per-node=2 --max-restarts=3 examples/distributed.py --resume
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


def newest_checkpoint(folder: Path) -> Path | None:
    """
    :param folder: A folder of checkpoints, ``rl_model_10000_steps.zip`` and so on
    :return: The one after the most steps, if there is any
    """
    checkpoints = folder.glob("rl_model_*_steps.zip")
    return max(checkpoints, key=lambda path: int(path.stem.split("_")[2]), default=None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="CartPole-v1")
    parser.add_argument("--timesteps", type=int, default=60_000, help="steps of all workers together")
    parser.add_argument("--n-envs", type=int, default=1, help="environments of each worker")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("output"), help="folder for the model and its checkpoints")
    parser.add_argument("--checkpoint-freq", type=int, default=10_000, help="steps of one environment between checkpoints")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint in that folder, if there is one")
    arguments = parser.parse_args()
    th.set_num_threads(1)

    env = make_vec_env(arguments.env, n_envs=arguments.n_envs)
    folder = arguments.out / "checkpoints"
    checkpoint = newest_checkpoint(folder) if arguments.resume else None
    if checkpoint is None:
        model = REINFORCE("MlpPolicy", env, seed=arguments.seed, device="cpu")
    else:
        model = REINFORCE.load(checkpoint, env=env, device="cpu")
        print(f"Going on from {checkpoint}, at {model.num_timesteps} steps", flush=True)
    start = time.perf_counter()
    # One worker writes the checkpoints. Their frequency counts the steps of one of its environments
    callback = CheckpointCallback(arguments.checkpoint_freq, str(folder))
    model.learn(arguments.timesteps - model.num_timesteps, callback=callback, reset_num_timesteps=checkpoint is None)
    seconds = time.perf_counter() - start
    model.save(arguments.out / "distributed")

    if int(os.environ.get("RANK", "0")) == 0:
        n_workers = int(os.environ.get("WORLD_SIZE", "1"))
        print(f"{model.num_timesteps} steps of {n_workers} worker(s) in {seconds:.1f} s, {model._n_updates} updates")
        mean, std = evaluate_policy(model, make_vec_env(arguments.env, seed=1_000), n_eval_episodes=20)
        print(f"Return of 20 deterministic episodes: {mean:.1f} +- {std:.1f}")


if __name__ == "__main__":
    main()
