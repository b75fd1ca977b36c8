"""
Long runs with everything on: does memory or speed change, and is anything left over?

    python -m benchmarks.soak run [--runs cartpole faulty] [--steps 20000000]
    python -m benchmarks.soak report [--page docs/guides/saving.md]

``cartpole``: 256 native CartPoles, one process, 20 million steps. ``faulty``: four environments in processes of their own,
whose episodes may last one step, never end, or raise, 5 million steps; after an error the run is taken up from the last
checkpoint. Both with evaluation, checkpoints, a callback of one's own and TensorBoard. A row of the CSV is written every
hundredth of the run: timesteps, seconds of CPU time, memory of this process and of its children in MiB, open files, threads,
children, and how often an error was survived.
"""

import argparse
import csv
import gc
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv

from benchmarks.common import PLAIN, ROOT, markdown, number, positive, put_between
from examples.distributed import newest_checkpoint
from sb3_reinforce import REINFORCE
from sb3_reinforce.envs import GymnasiumVecEnv

RESULTS = ROOT / "benchmarks" / "results" / "soak"
MARKS = "<!-- Written by `benchmarks.soak report`: begin -->", "<!-- Written by `benchmarks.soak report`: end -->"
N_ROWS = 100
COLUMNS = ("timesteps", "cpu_seconds", "memory", "memory_of_children", "files", "threads", "children", "n_errors")


class Faulty(gym.Env):
    """
    Random observations. An episode has one step, up to 200, or no end, and about one step in a million raises.
    """

    observation_space = spaces.Box(-1, 1, (4,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        kind = self.np_random.random()
        self.left = 1 if kind < 0.2 else -1 if kind > 0.999 else int(self.np_random.integers(2, 200))
        return self._observe(), {}

    def _observe(self) -> np.ndarray:
        self.obs = self.np_random.uniform(-1, 1, 4).astype(np.float32)
        return self.obs

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        # Not from the seeded generator, or the run that is taken up would meet the same error
        if np.random.default_rng().random() < 1e-6:
            raise RuntimeError("the simulator has crashed")
        reward = float((self.obs[0] > 0) == action)
        self.left -= 1
        return self._observe(), reward, self.left == 0, False, {}


class Run:
    """
    :param n_steps: Number of timesteps
    :param make_env: Makes the environments
    :param make_eval_env: Makes the environment of the evaluation
    :param arguments: Arguments of the model
    """

    def __init__(
        self, n_steps: int, make_env: Callable[[], VecEnv], make_eval_env: Callable[[], VecEnv], arguments: dict[str, Any]
    ):
        self.n_steps, self.make_env, self.make_eval_env, self.arguments = n_steps, make_env, make_eval_env, arguments


RUNS = {
    "cartpole": Run(
        20_000_000,
        lambda: GymnasiumVecEnv(gym.make_vec("CartPole-v1", 256)),
        lambda: make_vec_env("CartPole-v1"),
        {**PLAIN, "n_steps": 64, "batch_size": None},
    ),
    "faulty": Run(
        5_000_000,
        lambda: SubprocVecEnv([Faulty] * 4, "forkserver"),
        lambda: make_vec_env("CartPole-v1"),
        {**PLAIN, "n_steps": 512, "horizon": 500},
    ),
}


class Watch(BaseCallback):
    """
    Writes a row every hundredth of the run.

    :param path: The CSV
    :param n_steps: Number of timesteps of the run
    """

    def __init__(self, path: Path, n_steps: int):
        super().__init__()
        self.path, self.every, self.n_errors, self.n_rows = path, n_steps // N_ROWS, 0, 0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(",".join(COLUMNS) + "\n")

    def _on_step(self) -> bool:
        if self.num_timesteps >= self.every * (self.n_rows + 1):
            self.n_rows = self.num_timesteps // self.every
            with self.path.open("a") as file:
                csv.writer(file).writerow([self.num_timesteps, *measured(), self.n_errors])
        return True


def measured() -> list[float]:
    """
    :return: CPU seconds, memory and that of the children in MiB, open files, threads, children
    """
    gc.collect()
    process = psutil.Process()
    children = process.children(recursive=True)
    of_children = sum(child.memory_info().rss for child in children)
    memory = process.memory_info().rss
    cpu = round(time.process_time(), 2)
    return [
        cpu,
        round(memory / 2**20, 1),
        round(of_children / 2**20, 1),
        process.num_fds(),
        process.num_threads(),
        len(children),
    ]


def soak(name: str, n_steps: int) -> None:
    """
    :param name: A name of :data:`RUNS`
    :param n_steps: Number of timesteps
    """
    th.set_num_threads(1)
    run, watch = RUNS[name], Watch(RESULTS / f"{name}.csv", n_steps)
    folder = Path(tempfile.mkdtemp())
    try:
        env = run.make_env()
        model = REINFORCE("MlpPolicy", env, seed=0, device="cpu", tensorboard_log=str(folder / "log"), **run.arguments)
        while model.num_timesteps < n_steps:
            callbacks = [
                watch,
                CheckpointCallback(max(1, n_steps // 200 // env.num_envs), str(folder / "checkpoints")),
                EvalCallback(
                    run.make_eval_env(), eval_freq=max(1, n_steps // 50 // env.num_envs), n_eval_episodes=1, verbose=0
                ),
            ]
            try:
                model.learn(n_steps - model.num_timesteps, callbacks, log_interval=50, reset_num_timesteps=False)
            except (EOFError, ConnectionError, BrokenPipeError):
                watch.n_errors += 1
                end_processes(env)
                env = run.make_env()
                checkpoint = newest_checkpoint(folder / "checkpoints")
                assert checkpoint is not None
                model = REINFORCE.load(checkpoint, env=env, device="cpu")
        env.close()
        print(name, watch.path, "after the end:", dict(zip(COLUMNS[1:-1], measured(), strict=True)))
    finally:
        shutil.rmtree(folder)


def end_processes(env: VecEnv) -> None:
    """
    :param env: Environments of which one has died
    """
    if isinstance(env, SubprocVecEnv):
        for remote, process in zip(env.remotes, env.processes, strict=True):
            process.terminate()
            process.join()
            remote.close()


def table(folder: Path) -> str:
    """
    :param folder: Where the results lie
    :return: Memory, speed and what is left over, at a tenth of each run and at its end
    """
    rows = []
    for name in RUNS:
        path = folder / f"{name}.csv"
        if not path.exists():
            continue
        with path.open() as file:
            found = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
        n_steps, tenth = found[-1]["timesteps"], max(2, len(found) // 10)
        early, late = found[tenth - 1], found[-1]
        memory = [row["memory"] + row["memory_of_children"] for row in (early, late)]
        speeds = [
            (part[-1]["timesteps"] - part[0]["timesteps"]) / (part[-1]["cpu_seconds"] - part[0]["cpu_seconds"])
            for part in (found[:tenth], found[-tenth:])
        ]
        pairs = [f"{early[key]:.0f} / {late[key]:.0f}" for key in ("files", "threads", "children")]
        growth = 100 * (memory[1] / memory[0] - 1)
        memories = f"{number(memory[0])} / {number(memory[1])} ({growth:+.1f} %)"
        speed = " / ".join(f"{each / 1e3:,.1f}" for each in speeds)
        rows.append([name, f"{n_steps / 1e6:.1f}", memories, speed, *pairs, f"{late['n_errors']:.0f}"])
    header = [
        "run",
        "million steps",
        "memory in MiB",
        "thousand steps per CPU second",
        "files",
        "threads",
        "processes",
        "errors",
    ]
    return markdown(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="the runs")
    run.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS), help="which runs")
    run.add_argument("--steps", type=positive, help="number of timesteps, instead of the whole run")
    report = verbs.add_parser("report", help="the table: at a tenth of the run / at its end")
    report.add_argument("--page", type=Path, help="the page to put it into")
    arguments = parser.parse_args()
    if arguments.verb == "run":
        for name in arguments.runs:
            soak(name, arguments.steps or RUNS[name].n_steps)
    elif arguments.page is not None:
        put_between(arguments.page, table(RESULTS), MARKS)
    else:
        print(table(RESULTS))


if __name__ == "__main__":
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    main()
