"""
Watch a training: evaluations, checkpoints, the noise of the gradient, TensorBoard, and an early stop when the task is solved.

    python examples/monitoring.py --out output
    tensorboard --logdir output
"""

import argparse
from pathlib import Path

import torch as th
from stable_baselines3.common.callbacks import CallbackList, CheckpointCallback, EvalCallback, StopTrainingOnRewardThreshold
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure

from sb3_reinforce import REINFORCE
from sb3_reinforce.callbacks import GradientMonitor

SOLVED = 475  # the return at which CartPole-v1 counts as solved
N_ENVS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description="Train REINFORCE on CartPole-v1 and watch it.")
    parser.add_argument("--quick", action="store_true", help="a short training: a look at what is written")
    parser.add_argument("--seed", type=int, default=0, help="seed of the training")
    parser.add_argument("--timesteps", type=int, help="most environment steps to train for")
    parser.add_argument("--out", type=Path, default=Path("output"), help="folder to write everything to")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    timesteps = args.timesteps or (10_000 if args.quick else 200_000)
    th.set_num_threads(1)  # such small networks gain nothing from more

    model = REINFORCE(
        "MlpPolicy", make_vec_env("CartPole-v1", N_ENVS, seed=args.seed), n_steps=256, seed=args.seed, device="cpu"
    )
    # Every update goes into these files, and nothing to the terminal
    formats = ["csv", "log"]
    try:
        import tensorboard  # noqa: F401

        formats.append("tensorboard")
    except ImportError:
        print("TensorBoard is not installed (pip install tensorboard): writing CSV and text only.")
    model.set_logger(configure(str(args.out / "log"), formats))

    # SB3 counts the calls of `env.step`, each of which steps all environments
    every = max(timesteps // 20 // N_ENVS, 1)
    evaluation = EvalCallback(
        make_vec_env("CartPole-v1", 1, seed=args.seed + 1000),
        callback_on_new_best=StopTrainingOnRewardThreshold(SOLVED, verbose=1),
        n_eval_episodes=5 if args.quick else 20,
        eval_freq=every,
        best_model_save_path=str(args.out / "best"),
        log_path=str(args.out / "evaluations"),
        # The policy as it is trained: without its randomness, even an untrained one can balance by chance
        deterministic=False,
        verbose=0,
    )
    checkpoints = CheckpointCallback(save_freq=4 * every, save_path=str(args.out / "checkpoints"), name_prefix="reinforce")
    monitor = GradientMonitor(every_n_updates=2, compare_baselines=True)
    model.learn(timesteps, callback=CallbackList([evaluation, checkpoints, monitor]))

    monitor.plot(args.out / "gradient.png")
    summary = monitor.summary()
    summary.to_csv(args.out / "gradient.csv", index=False)
    columns = {
        "time/total_timesteps": "timesteps",
        "rollout/n_episodes": "episodes",
        "gradient/noise_scale_episodes": "noise scale",
        "gradient/cosine": "cosine",
        "gradient/variance_ratio_none": "variance without baseline",
    }
    print(summary[list(columns)].rename(columns=columns).tail(10).round(2).to_string(index=False))
    print(f"Best evaluation: {evaluation.best_mean_reward:.1f} after at most {model.num_timesteps:,} steps")
    print(f"Wrote the logs, checkpoints, the best model and gradient.png to {args.out}")


if __name__ == "__main__":
    main()
