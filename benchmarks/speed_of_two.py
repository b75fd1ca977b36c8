"""
Which of two versions of the package trains faster? The package of this checkout and that of another take turns.

    python benchmarks/speed_of_two.py OTHER_CHECKOUT [--rounds 15] [--only NAME ...]

Each version lives in a process of its own, with one thread, and learns from scratch with the same seed at each of its turns.
The table has the medians over the rounds of the ratios of their CPU times per timestep within a round, and the quartiles.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"  # before NumPy and PyTorch are imported

import numpy as np

#: Environment, number of environments, timesteps of a turn, and arguments
RACES: dict[str, tuple[str, int, int, dict[str, Any]]] = {
    "CartPole, 1 environment": ("CartPole-v1", 1, 8_000, {"n_steps": 512}),
    "CartPole, 8 environments": ("CartPole-v1", 8, 12_000, {"n_steps": 128}),
    "CartPole, no baseline": ("CartPole-v1", 1, 16_000, {"n_steps": 2048, "baseline": None}),
    "CartPole, leave one out": ("CartPole-v1", 8, 16_000, {"n_steps": 128, "baseline": "leave_one_out"}),
    "CartPole, natural gradient": ("CartPole-v1", 8, 8_000, {"n_steps": 128, "natural_gradient": True}),
    "CartPole, fixed length": ("CartPole-v1", 8, 8_000, {"n_steps": 32, "complete_episodes": False}),
    "LunarLander, 8 environments": ("LunarLander-v3", 8, 5_000, {"n_steps": 128}),
    "HalfCheetah, 1 environment": ("HalfCheetah-v5", 1, 4_000, {"n_steps": 512}),
    "FrozenLake, 4 environments": ("FrozenLake-v1", 4, 6_000, {"n_steps": 64}),
}


def turn(name: str) -> float:
    """
    :param name: Of a race
    :return: CPU seconds per timestep that the package in this process takes
    """
    from stable_baselines3.common.env_util import make_vec_env

    from sb3_reinforce import REINFORCE

    env_id, n_envs, n_timesteps, arguments = RACES[name]
    # Those that have no defaults that any two checkouts share
    plain = {
        "natural_gradient": False,
        "normalize_returns": False,
        "ent_coef": 0.0,
        "learning_rate": 3.5e-3,
        "batch_size": 256,
    }
    env = make_vec_env(env_id, n_envs, seed=0)
    model = REINFORCE("MlpPolicy", env, seed=0, device="cpu", **{**plain, **arguments})
    start = time.process_time()
    model.learn(n_timesteps)
    return (time.process_time() - start) / model.num_timesteps  # another version may play other episodes


def serve(checkout: str) -> None:
    """
    Run the races that are asked for on the standard input.

    :param checkout: The folder of the package
    """
    sys.path.insert(0, checkout)
    import torch as th

    import sb3_reinforce

    assert sb3_reinforce.__file__.startswith(str(Path(checkout).resolve())), sb3_reinforce.__file__
    th.set_num_threads(1)
    for line in sys.stdin:
        print(turn(line.strip()), flush=True)


def main() -> None:
    """Let two versions take turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", help="folder of the other checkout")
    parser.add_argument("--rounds", type=int, default=15, help="number of rounds, after one to warm up")
    parser.add_argument("--only", nargs="*", default=[], help="parts of the names of the races to run")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        return serve(args.other)
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, str(Path(checkout).resolve()), "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for checkout in (Path(__file__).parents[1], args.other)
    ]
    print("| race | this / other, CPU time per timestep | quartiles |\n|---|--:|--:|")
    for name in (name for name in RACES if not args.only or any(part in name for part in args.only)):
        ratios = []
        for number in range(args.rounds + 1):
            times = {}
            for i in (0, 1) if number % 2 else (1, 0):  # neither is always the first
                assert processes[i].stdin and processes[i].stdout
                processes[i].stdin.write(f"{name}\n")
                processes[i].stdin.flush()
                times[i] = float(processes[i].stdout.readline())
            ratios += [times[0] / times[1]] if number else []
        low, median, high = np.quantile(ratios, (0.25, 0.5, 0.75))
        print(f"| {name} | {median:.3f} | {low:.3f} - {high:.3f} |", flush=True)
    for process in processes:
        assert process.stdin
        process.stdin.close()


if __name__ == "__main__":
    main()
