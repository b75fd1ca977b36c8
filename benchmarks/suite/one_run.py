"""One run: an algorithm with nothing but its defaults, on one task, with one seed."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch as th
from sb3_contrib import TRPO
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import ConvertCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from benchmarks.common import made_once  # first: one thread
from benchmarks.learning.one_run import EVAL_SEED_OFFSET, commit, machine, versions
from benchmarks.suite.tasks import TASKS
from sb3_reinforce import REINFORCE

COLUMNS = ("timesteps", "cpu_seconds", "n_episodes", "return_last_100", "eval_mean", "eval_std")
N_ROWS = 20
#: Begins the line that names the warnings of a run in which nothing is learned
ADVICE = "# advice: "
#: ``random`` draws its actions from the space; ``zoo`` is REINFORCE with the zoo's default entry
ALGOS: dict[str, type[BaseAlgorithm]] = {"reinforce": REINFORCE, "zoo": REINFORCE, "ppo": PPO, "a2c": A2C, "trpo": TRPO}
RANDOM = "random"


@dataclass(frozen=True)
class Run:
    """
    :param algo: A name of :data:`ALGOS`, or ``random``
    :param task: A name of :data:`~benchmarks.suite.tasks.TASKS`
    :param n_steps: Timesteps of the training
    :param n_envs: Number of environments
    :param seed: The seed
    :param folder: Where the results lie
    :param label: A change of the defaults, as the tables call it; empty: none
    :param change: Arguments of the constructor that make the change
    """

    algo: str
    task: str
    n_steps: int
    n_envs: int
    seed: int
    folder: Path
    label: str = ""
    change: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def path(self) -> Path:
        """The file of its results."""
        name = f"{self.algo}-{self.seed}.csv" if not self.label else f"{self.algo}-{self.label}-{self.seed}.csv"
        return self.folder / f"{self.n_steps}x{self.n_envs}" / self.task / name

    def __str__(self) -> str:
        label = f" ({self.label})" if self.label else ""
        return f"{self.algo}{label} on {self.task}, {self.n_steps} steps, {self.n_envs} environments, seed {self.seed}"


class Recorder:
    """
    Writes a row now and then: the work of a callback.

    :param file: Where the rows go
    :param n_steps: Timesteps of the training
    """

    def __init__(self, file: IO[str], n_steps: int):
        self.file = file
        self.every = self.next = max(n_steps // N_ROWS, 1)
        self.n_episodes = 0
        self.start = time.process_time()

    def __call__(self, local_variables: dict[str, Any], _: dict[str, Any]) -> bool:
        self.n_episodes += int(np.count_nonzero(local_variables["dones"]))
        model = local_variables["self"]
        if model.num_timesteps >= self.next:
            self.next = (model.num_timesteps // self.every + 1) * self.every
            self.write(model)
        return True

    def write(self, model: BaseAlgorithm, *result: float) -> None:
        """
        :param model: The model
        :param result: Mean and standard deviation of the evaluation, at the end
        """
        episodes = [info["r"] for info in model.ep_info_buffer or ()]
        mean = f"{np.mean(episodes):.6g}" if episodes else ""
        results = [f"{value:.6g}" for value in result] or ["", ""]
        seconds = time.process_time() - self.start
        self.file.write(",".join([str(model.num_timesteps), f"{seconds:.2f}", str(self.n_episodes), mean, *results]) + "\n")
        self.file.flush()


def returns_of(run: Run, model: BaseAlgorithm | None) -> np.ndarray:
    """
    :param run: What was run
    :param model: The model; ``None``: actions are drawn from the space
    :return: The return of each episode of the final evaluation
    """
    make, n_episodes = TASKS[run.task]
    env = make_vec_env(make, n_envs=1, seed=run.seed + EVAL_SEED_OFFSET)
    if model is not None:
        returns, _ = evaluate_policy(model, env, n_episodes, deterministic=True, return_episode_rewards=True)
        return np.array(returns)
    env.action_space.seed(run.seed)
    env.reset()
    found: list[float] = []
    while len(found) < max(n_episodes, 100):
        _, _, _, infos = env.step(np.array([env.action_space.sample()]))
        found += [info["episode"]["r"] for info in infos if "episode" in info]
    return np.array(found)


def learn(run: Run, file: IO[str]) -> np.ndarray:
    """
    :param run: What to run
    :param file: Where the rows go
    :return: The return of each episode of the final evaluation
    """
    env = make_vec_env(TASKS[run.task].make, n_envs=run.n_envs, seed=run.seed)
    model = ALGOS[run.algo]("MlpPolicy", env, seed=run.seed, device="cpu", **run.change)
    recorder = Recorder(file, run.n_steps)
    model.learn(run.n_steps, callback=ConvertCallback(recorder))
    end = time.process_time()
    returns = returns_of(run, model)
    recorder.start += time.process_time() - end  # the evaluation does not count
    if isinstance(model, REINFORCE):
        file.write(f"{ADVICE}{json.dumps(sorted(model._advisor.given))}\n")
    recorder.write(model, returns.mean(), returns.std())
    return returns


def train(run: Run) -> str:
    """
    :param run: What to run, if its results are not there
    :return: What it came to
    """
    th.set_num_threads(1)
    return made_once(run.path, lambda file: f"{make_results(run, file).mean():.4g}")


def make_results(run: Run, file: IO[str]) -> np.ndarray:
    """
    :param run: What to run
    :param file: Where its results go
    :return: The return of each episode of the final evaluation
    """
    about = {"change": run.change, "versions": versions(), "commit": commit(), "machine": machine()}
    file.write(f"# {json.dumps(about, default=str)}\n{','.join(COLUMNS)}\n")
    if run.algo != RANDOM:
        return learn(run, file)
    returns = returns_of(run, None)
    file.write(f"0,0,0,,{returns.mean():.6g},{returns.std():.6g}\n")
    return returns
