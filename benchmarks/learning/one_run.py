"""One run, in a process of its own."""

import json
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import IO, Any

import numpy as np

from benchmarks.common import BusyError, claimed  # first: one thread
from benchmarks.learning.entries import build, find_entry
from benchmarks.learning.files import COLUMNS
from benchmarks.learning.plan import SOLVE, SOLVE_EPISODES, SOLVE_IN_A_ROW, SPEED_STEPS, Run

N_ROWS = 200
N_EVAL_EPISODES = 20
EVAL_SEED_OFFSET = 10_000
PACKAGES = ("stable_baselines3", "sb3_contrib", "rl_zoo3", "torch", "gymnasium", "numpy", "mujoco", "box2d")
#: Exit status of a run that another process is at
BUSY = 75


def metadata(run: Run) -> dict[str, Any]:
    """
    :param run: What to run
    :return: What the first line of its file says
    """
    source, entry = find_entry(run.algo, run.env_id)
    return {
        "algo": run.algo,
        "env": run.env_id,
        "seed": run.seed,
        "budget": run.budget,
        "entry": source,
        "hyperparameters": entry,
        "versions": versions(),
        "commit": commit(),
        "machine": machine(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def versions() -> dict[str, str]:
    """
    :return: The versions of Python and of the packages that results depend on, of those that are installed
    """
    import sb3_reinforce

    found = {"sb3_reinforce": sb3_reinforce.__version__, "python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """
    :return: The commit that this is run from, with a mark if files were changed since; ``None`` outside of a repository
    """
    command = ["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def machine() -> str:
    """
    :return: The model of the processor, as far as the system tells
    """
    cpus = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpus.read_text()) if cpus.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def evaluate(model: Any, manager: Any, seed: int, n_episodes: int) -> Callable[[], tuple[float, float]]:
    """
    :param model: A model
    :param manager: The ``ExperimentManager`` that made its environments
    :param seed: Seed of the environment that it is evaluated in
    :param n_episodes: Number of episodes of an evaluation
    :return: A function that evaluates it: mean and standard deviation of the return
    """
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.vec_env import sync_envs_normalization

    manager.seed = seed
    env = manager.create_envs(1, eval_env=True)

    def run() -> tuple[float, float]:
        sync_envs_normalization(model.env, env)
        returns, _ = evaluate_policy(model, env, n_episodes, deterministic=True, return_episode_rewards=True)
        return float(np.mean(returns)), float(np.std(returns))

    return run


class Recorder:
    """
    Writes the file of a run as its training goes: the work of a callback, called once per vector step.

    :param run: What is run
    :param file: Where the rows go
    :param evaluation: What evaluates the model; ``None``: nothing does before the end
    """

    def __init__(self, run: Run, file: IO[str], evaluation: Callable[[], tuple[float, float]] | None = None):
        self.file = file
        self.evaluation = evaluation
        self.every = SOLVE[run.env_id][0] if run.kind == "solve" else max(run.budget // N_ROWS, 1)
        self.enough = SOLVE[run.env_id][1] if run.kind == "solve" else np.inf
        self.last = SPEED_STEPS if run.kind == "speed" else np.inf
        self.next = self.every
        self.n_episodes = 0
        self.n_passed = 0
        self.evaluation_wall = self.evaluation_cpu = 0.0
        file.write(f"# {json.dumps(metadata(run), default=str)}\n{','.join(COLUMNS)}\n")
        file.flush()
        self.wall_start, self.cpu_start = time.perf_counter(), cpu_seconds()

    def __call__(self, local_variables: dict[str, Any], _: dict[str, Any]) -> bool:
        self.n_episodes += int(np.count_nonzero(local_variables["dones"]))
        model = local_variables["self"]
        if model.num_timesteps < self.next:
            return True
        self.next = (model.num_timesteps // self.every + 1) * self.every
        if self.evaluation is None:
            self.write(model)
            return model.num_timesteps < self.last
        result = self.evaluate()
        self.write(model, *result)
        self.n_passed = self.n_passed + 1 if result[0] >= self.enough else 0
        return self.n_passed < SOLVE_IN_A_ROW

    def evaluate(self) -> tuple[float, float]:
        """
        :return: Mean and standard deviation of an evaluation, whose time does not count
        """
        assert self.evaluation is not None
        wall, cpu = time.perf_counter(), cpu_seconds()
        result = self.evaluation()
        self.evaluation_wall += time.perf_counter() - wall
        self.evaluation_cpu += cpu_seconds() - cpu
        return result

    def write(self, model: Any, *result: float) -> None:
        """
        :param model: The model
        :param result: Mean and standard deviation of an evaluation, if there was one
        """
        wall = time.perf_counter() - self.wall_start - self.evaluation_wall
        cpu = cpu_seconds() - self.cpu_start - self.evaluation_cpu
        episodes = [info["r"] for info in model.ep_info_buffer]
        mean = f"{np.mean(episodes):.6g}" if episodes else ""
        results = [f"{value:.6g}" for value in result] or ["", ""]
        self.file.write(
            ",".join([str(model.num_timesteps), f"{wall:.3f}", f"{cpu:.3f}", str(self.n_episodes), mean, *results]) + "\n"
        )
        self.file.flush()


def cpu_seconds() -> float:
    """
    :return: CPU time of this process and of those of its children that have ended
    """
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def train(run: Run) -> None:
    """
    :param run: What to run, in this process
    """
    try:
        with claimed(run.path) as file:
            if file is not None:
                learn(run, file)
    except BusyError:
        sys.exit(BUSY)


def learn(run: Run, file: IO[str]) -> None:
    """
    :param run: What to run, in this process
    :param file: Where its results go
    """
    import torch as th

    th.set_num_threads(1)
    model, manager = build(run)
    if run.kind == "solve":
        recorder = Recorder(run, file, evaluate(model, manager, run.seed + EVAL_SEED_OFFSET, SOLVE_EPISODES))
    else:
        recorder = Recorder(run, file)
    model.learn(run.budget, callback=[*manager.callbacks, as_callback(recorder)])
    if run.kind in ("learning", "long"):
        # Made within the evaluation, whose time does not count
        recorder.evaluation = lambda: evaluate(model, manager, run.seed + EVAL_SEED_OFFSET, N_EVAL_EPISODES)()
        recorder.write(model, *recorder.evaluate())


def as_callback(function: Callable[[dict[str, Any], dict[str, Any]], bool]) -> Any:
    """
    :param function: A function as SB3 takes it for a callback
    :return: A callback
    """
    from stable_baselines3.common.callbacks import ConvertCallback

    return ConvertCallback(function)
