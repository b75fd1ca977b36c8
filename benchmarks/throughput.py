"""
How fast does REINFORCE train? Steps per second of whole ``learn()`` calls, updates included, beside SB3's A2C and PPO and
beside stepping the same environments alone.

Every contender lives in a process of its own, pinned to one thread, and learns from scratch at each of its turns. They take
turns, round by round, so that a noisy machine is noisy for all of them; the ratios are medians over the rounds of the ratios
within a round. Peak memory is the high-water mark of the contender's process.

    python -m benchmarks.throughput [--quick] [--out DIR] [--envs CartPole-v1 ...] [--rounds 5] [--clock cpu]
"""

import argparse
import json
import multiprocessing as mp
import os
import platform
import resource
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv

from benchmarks.common import PLAIN, markdown  # first: one thread
from sb3_reinforce import REINFORCE
from sb3_reinforce.envs import make_vector_env

ENVS = ("CartPole-v1", "LunarLander-v3", "HalfCheetah-v5")
N_ENVS = (1, 8)
#: Many environments in one process, which take a step together: Gymnasium's own of CartPole, and EnvPool's (an extra)
NATIVE, ENVPOOL = " (native)", " (EnvPool)"
VECTORS = {"CartPole-v1" + NATIVE: (8, 64, 256), "HalfCheetah-v4" + ENVPOOL: (16,), "Pong-v5" + ENVPOOL: (16,)}
#: One pass of the critic per update there, as A2C has one step
OF_VECTORS: dict[str, Any] = {"n_critic_updates": 1, "batch_size": None}
#: Steps of a measurement, for the fast contenders; the slow ones do fewer
STEPS = {"CartPole-v1" + NATIVE: 150_000, "CartPole-v1": 30_000, "LunarLander-v3": 12_000, "HalfCheetah-v5": 10_000}
N_STEPS = {1: 512, 8: 128, 16: 128, 64: 128, 256: 128}
N_STEPS_WITHOUT_BASELINE = {**N_STEPS, 1: 2048}
COLOURS = {
    "env-only": "#9e9e9e",
    "REINFORCE": "#c0392b",
    "REINFORCE (defaults)": "#e67e22",
    "REINFORCE (no baseline)": "#f1b4a7",
    "A2C": "#2e6fab",
    "PPO": "#7fb3d9",
}


class FixedLengthEpisodes(gym.Env):
    """An environment of no dynamics whose episodes have a given length: it costs nothing but what the algorithm does."""

    observation_space = spaces.Box(-1.0, 1.0, (4,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, length: int):
        self.length = length
        self.t = 0
        self.obs = np.zeros(4, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        self.t = 0
        return self.obs, {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return self.obs, 1.0, self.t >= self.length, False, {}


def make(env_id: str | Callable[[], gym.Env], n_envs: int) -> VecEnv:
    """
    :param env_id: The environment, or a function that makes it
    :param n_envs: Number of environments
    :return: The environments
    """
    for suffix, mode in ((NATIVE, None), (ENVPOOL, "envpool")):
        if isinstance(env_id, str) and env_id.endswith(suffix):
            kwargs = {"num_threads": 1} if mode else {}
            return make_vector_env(env_id.removesuffix(suffix), n_envs, seed=0, vectorization_mode=mode, env_kwargs=kwargs)
    return make_vec_env(env_id, n_envs, seed=0)


def env_only(env_id: str, n_envs: int, n_steps: int) -> Callable[[int], int]:
    """
    :param env_id: The environment
    :param n_envs: Number of environments
    :param n_steps: Unused: there are no updates
    :return: A function that plays at least a given number of steps with actions drawn beforehand
    """
    env = make(env_id, n_envs)
    env.reset()
    actions = [np.array([env.action_space.sample() for _ in range(n_envs)]) for _ in range(1024)]

    def run(total: int) -> int:
        n_vector_steps = -(-total // n_envs)
        for step in range(n_vector_steps):
            env.step(actions[step % 1024])
        return n_vector_steps * n_envs

    return run


def learner(algorithm: type, env_id: str | Callable[[], gym.Env], n_envs: int, **kwargs: Any) -> Callable[[int], int]:
    """
    :param algorithm: The class of the algorithm
    :param env_id: The environment, or a function that makes it
    :param n_envs: Number of environments
    :param kwargs: Arguments of the algorithm
    :return: A function that learns for at least a given number of steps and returns how many it took
    """
    env = make(env_id, n_envs)
    policy = "CnnPolicy" if len(env.observation_space.shape or ()) == 3 else "MlpPolicy"
    model = algorithm(policy, env, seed=0, device="cpu", **kwargs)

    def run(total: int) -> int:
        model.learn(total, log_interval=1)
        return model.num_timesteps

    run.model = model  # type: ignore[attr-defined]
    return run


def contenders(env_id: str, n_envs: int) -> dict[str, tuple[Callable[[], Callable[[int], int]], float]]:
    """
    :param env_id: The environment
    :param n_envs: Number of environments
    :return: By name, a function that builds the contender, and its share of the steps
    """
    n_steps = N_STEPS[n_envs]
    plain = {**PLAIN, "n_steps": n_steps, **(OF_VECTORS if env_id in VECTORS else {})}
    no_baseline = {**PLAIN, "n_steps": N_STEPS_WITHOUT_BASELINE[n_envs], "baseline": None}
    return {
        "env-only": (lambda: env_only(env_id, n_envs, n_steps), 1.0),
        "REINFORCE": (lambda: learner(REINFORCE, env_id, n_envs, **plain), 1.0),
        "A2C": (lambda: learner(A2C, env_id, n_envs, n_steps=n_steps), 0.4),
        "REINFORCE (no baseline)": (lambda: learner(REINFORCE, env_id, n_envs, **no_baseline), 1.0),
        "PPO": (lambda: learner(PPO, env_id, n_envs), 0.2),
        "REINFORCE (defaults)": (lambda: learner(REINFORCE, env_id, n_envs), 1.0),
    }


def serve(connection: Connection, build: Callable[[], Callable[[int], int]], clock: Callable[[], float]) -> None:
    """
    The process of a contender: runs when it is told to, and reports time and memory.

    :param connection: To the parent
    :param build: Builds the contender
    :param clock: Measures the time in seconds
    """
    th.set_num_threads(1)
    while (total := connection.recv()) is not None:
        run = build()  # afresh: what an environment costs depends on how well it is played
        start = clock()
        steps = run(total)
        elapsed = clock() - start
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        report = {"steps_per_second": steps / elapsed, "peak_mib": peak_mib}
        if isinstance(model := getattr(run, "model", None), REINFORCE):
            report["discarded_fraction"] = discarded_fraction(model)
        connection.send(report)


def discarded_fraction(model: REINFORCE) -> float:
    """
    :param model: A model
    :return: The share of the environments' steps that its next rollout throws away
    """
    fractions = []

    class Read(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            fractions.append(self.logger.name_to_value["rollout/discarded_fraction"])

    model.learn(1, callback=Read())
    return fractions[0]


def race(
    builders: dict[str, tuple[Callable[[], Callable[[int], int]], float]],
    steps: int,
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[dict[str, float]]]:
    """
    Let the contenders take turns.

    :param builders: The contenders, and their shares of the steps
    :param steps: Steps per turn
    :param rounds: Number of rounds, after one to warm up
    :param clock: Measures the time in seconds
    :return: The reports of each contender, one per round
    """
    context = mp.get_context("fork")
    processes = {}
    for name, (build, _) in builders.items():
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(theirs, build, clock), daemon=True)
        process.start()
        processes[name] = (process, ours)
    reports: dict[str, list[dict[str, float]]] = {name: [] for name in builders}
    for number in range(rounds + 1):
        for name, (_, connection) in processes.items():
            connection.send(int(steps * builders[name][1]) if number > 0 else max(steps // 10, 1))
            report = connection.recv()
            if number > 0:
                reports[name].append(report)
    for process, connection in processes.values():
        connection.send(None)
        process.join()
    return reports


def median_ratio(reports: dict[str, list[dict[str, float]]], numerator: str, denominator: str) -> float:
    """
    :param reports: The reports of the contenders
    :param numerator: A contender
    :param denominator: Another
    :return: Median over the rounds of the ratio of their speeds
    """
    pairs = zip(reports[numerator], reports[denominator], strict=True)
    return float(np.median([a["steps_per_second"] / b["steps_per_second"] for a, b in pairs]))


def summarize(reports: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """
    :param reports: The reports of the contenders
    :return: Medians of their speeds, peaks of their memory, and the ratios
    """
    return {
        "steps_per_second": {name: float(np.median([r["steps_per_second"] for r in runs])) for name, runs in reports.items()},
        "peak_mib": {name: max(r["peak_mib"] for r in runs) for name, runs in reports.items()},
        "discarded_fraction": {
            name: float(np.median([r["discarded_fraction"] for r in runs]))
            for name, runs in reports.items()
            if "discarded_fraction" in runs[0]
        },
        "ratios": {
            f"{a} / {b}": median_ratio(reports, a, b)
            for a, b in (
                ("REINFORCE", "A2C"),
                ("REINFORCE", "PPO"),
                ("REINFORCE", "env-only"),
                ("REINFORCE (no baseline)", "env-only"),
                ("REINFORCE (no baseline)", "A2C"),
                ("REINFORCE (defaults)", "A2C"),
            )
            if a in reports and b in reports
        },
        "rounds": reports,
    }


def memory(env_id: str, episode_length: int, n_envs: int, steps: int) -> dict[str, float]:
    """
    :param env_id: The environment
    :param episode_length: Its longest episode, which the rollouts are at least as long as
    :param n_envs: Number of environments
    :param steps: Steps to learn for
    :return: Peak memory of REINFORCE and A2C in MiB, and the ratio
    """
    reports = race(
        {
            "REINFORCE": (lambda: learner(REINFORCE, env_id, n_envs, **{**PLAIN, "n_steps": episode_length}), 1.0),
            "A2C": (lambda: learner(A2C, env_id, n_envs, n_steps=episode_length), 1.0),
        },
        steps,
        rounds=1,
    )
    peaks = {name: runs[-1]["peak_mib"] for name, runs in reports.items()}
    return {**peaks, "REINFORCE / A2C": peaks["REINFORCE"] / peaks["A2C"]}


def scaling(steps: int, rounds: int) -> dict[str, float]:
    """
    :param steps: Steps per turn
    :param rounds: Number of rounds
    :return: Ratios of the cost per step: of long and short rollouts, and of long and short episodes
    """

    def build(length: int, n_steps: int) -> tuple[Callable[[], Callable[[int], int]], float]:
        return (lambda: learner(REINFORCE, lambda: FixedLengthEpisodes(length), 1, **{**PLAIN, "n_steps": n_steps})), 1.0

    reports = race(
        {"n_steps 128": build(20, 128), "n_steps 8192": build(20, 8192), "20": build(20, 2000), "2000": build(2000, 2000)},
        steps,
        rounds,
    )
    return {
        "cost per step, n_steps 8192 / 128": median_ratio(reports, "n_steps 128", "n_steps 8192"),
        "cost per step, episodes of 2000 / 20 steps": median_ratio(reports, "20", "2000"),
    }


def table(results: dict[str, Any]) -> str:
    """
    :param results: The results of all races
    :return: A table in Markdown
    """
    names = list(COLOURS)
    pairs = (
        "REINFORCE / A2C",
        "REINFORCE (defaults) / A2C",
        "REINFORCE / env-only",
        "REINFORCE (no baseline) / env-only",
        "REINFORCE (no baseline) / A2C",
    )
    rows = []
    for key, result in results["races"].items():
        speeds = [f"{result['steps_per_second'][name]:,.0f}" if name in result["steps_per_second"] else "-" for name in names]
        ratios = [f"{result['ratios'].get(pair, float('nan')):.2f}" for pair in pairs]
        fractions = result["discarded_fraction"]
        discarded = next((f"{fractions[name]:.0%}" for name in names if name in fractions), "-")
        rows.append([key, *speeds, *ratios, discarded])
    return markdown(["steps/s", *names, *pairs[:3], "no baseline / env-only", "no baseline / A2C", "discarded"], rows)


def plot(results: dict[str, Any], path: Path) -> None:
    """
    :param results: The results of all races
    :param path: Where the bar chart goes
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    races = results["races"]
    figure, axes = plt.subplots(1, len(races), figsize=(3.1 * len(races), 4.2), constrained_layout=True, squeeze=False)
    for axis, (key, result) in zip(axes[0], races.items(), strict=True):
        speeds = result["steps_per_second"]
        for i, name in enumerate(COLOURS):
            if name not in speeds:
                continue
            axis.bar(i, speeds[name] / 1000, color=COLOURS[name])
            axis.text(i, speeds[name] / 1000, f"{speeds[name] / 1000:.1f}", ha="center", va="bottom", fontsize=8)
        axis.set_title(key, fontsize=10)
        axis.set_xticks([])
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("thousand environment steps per second")
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in COLOURS.values()]
    figure.legend(handles, list(COLOURS), loc="outside lower center", ncols=len(COLOURS), frameon=False, fontsize=9)
    figure.suptitle("Training speed, updates included (one thread)", fontsize=11)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds: a smoke test, not a measurement")
    parser.add_argument("--rounds", type=int, default=5, help="number of rounds")
    parser.add_argument("--envs", nargs="+", default=list(ENVS), help=f"environments, also {', '.join(VECTORS)}")
    parser.add_argument("--contenders", nargs="+", choices=COLOURS, default=list(COLOURS), help="who takes part")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: for a machine that others also use")
    parser.add_argument("--no-others", action="store_true", help="neither memory nor scaling")
    parser.add_argument("--out", type=Path, default=Path("output"), help="folder for throughput.json and throughput.png")
    args = parser.parse_args()
    rounds, scale = (2, 0.1) if args.quick else (args.rounds, 1.0)
    args.out.mkdir(parents=True, exist_ok=True)
    clock = time.process_time if args.clock == "cpu" else time.perf_counter

    results: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": f"Python {platform.python_version()}, PyTorch {th.__version__}, NumPy {np.__version__}",
        "rounds": rounds,
        "clock": args.clock,
        "races": {},
        "memory": {},
    }
    for env_id in args.envs:
        for n_envs in VECTORS.get(env_id, N_ENVS):
            key = f"{env_id}, {n_envs} env{'s' if n_envs > 1 else ''}"
            steps = int(STEPS.get(env_id, 10_000) * scale)
            some = {name: built for name, built in contenders(env_id, n_envs).items() if name in args.contenders}
            results["races"][key] = summarize(race(some, steps, rounds, clock))
            if env_id not in VECTORS and not args.no_others:
                length = gym.spec(env_id).max_episode_steps or 1000
                results["memory"][key] = memory(env_id, length, n_envs, max(steps // 2, 1))
            print(table({"races": {key: results["races"][key]}}), flush=True)
            (args.out / "throughput.json").write_text(json.dumps(results, indent=1))
    results["scaling"] = {} if args.no_others else scaling(int(40_000 * scale), rounds)
    (args.out / "throughput.json").write_text(json.dumps(results, indent=1))
    plot(results, args.out / "throughput.png")
    print(f"\n{table(results)}\n")
    for key, peaks in results["memory"].items():
        print(f"peak memory, {key}: " + ", ".join(f"{name} {value:.4g}" for name, value in peaks.items()))
    for key, ratio in results["scaling"].items():
        print(f"{key}: {ratio:.2f}")
    print(f"wrote {args.out / 'throughput.json'} and {args.out / 'throughput.png'}")


if __name__ == "__main__":
    main()
