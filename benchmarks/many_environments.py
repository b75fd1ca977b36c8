"""
CartPole from scratch until it is solved, in 8, 64 and 256 environments: CPU seconds, steps, and the share of the steps that
is discarded because an environment with its quota waits for the others.

    python -m benchmarks.many_environments run [--settings ...] [--seeds ...] [--workers 1]    # goes on where it stopped
    python -m benchmarks.many_environments report [--seeds ...]

Solved: three evaluations in a row of at least 475, each of 20 deterministic episodes, after the first update once 5,000 steps
have passed since the last. Their time does not count. Settings are chosen with seeds from 100 on, and reported with others.
"""

import argparse
import json
import signal
import statistics
import sys
import time
from multiprocessing import get_context
from pathlib import Path
from typing import IO, Any, NamedTuple

from benchmarks.common import ROOT, made_once, markdown, number, positive, stop

RESULTS = ROOT / "benchmarks" / "results" / "many_environments"
SOLVED, IN_A_ROW, EVAL_EVERY, N_EVAL_EPISODES = 475.0, 3, 5_000, 20
MAX_STEPS = 2_000_000
COLUMNS = ("solved", "timesteps", "updates", "cpu_seconds", "discarded")


class Setting(NamedTuple):
    """
    :param n_envs: Number of environments
    :param native: Whether they are Gymnasium's own vector environment, else SB3's ``DummyVecEnv``
    :param change: Arguments of REINFORCE that differ from the defaults
    """

    n_envs: int
    native: bool = True
    change: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        """How files and tables call it."""
        return " ".join([str(self.n_envs), *([] if self.native else ["Dummy"]), *(f"{k}={v}" for k, v in self.change)])


def of(n_envs: int, **change: Any) -> Setting:
    """
    :param n_envs: Number of native environments
    :param change: Arguments of REINFORCE that differ from the defaults
    :return: The setting
    """
    return Setting(n_envs, True, tuple(change.items()))


SETTINGS = {
    setting.name: setting
    for setting in (
        Setting(8, native=False),
        of(8),
        of(64),
        of(256),
        *(of(64, n_steps=n) for n in (64, 128, 256)),
        *(of(256, n_steps=n) for n in (64, 256)),
        *(of(n, n_episodes=2) for n in (64, 256)),
        *(of(n, n_critic_updates=1) for n in (64, 256)),
        *(of(n, n_critic_updates=1, target_kl=0.02) for n in (64, 256)),
        *(of(n, baseline="leave_one_out") for n in (64, 256)),
        *(of(n, baseline="leave_one_out", target_kl=0.02) for n in (64, 256)),
        of(64, n_critic_updates=0, target_kl=0.02),
        of(64, baseline="leave_one_out", cg_max_steps=5, sub_sampling_factor=8),
    )
}


class Run(NamedTuple):
    """
    :param setting: A name of :data:`SETTINGS`
    :param seed: The seed
    :param folder: Where the results lie
    """

    setting: str
    seed: int
    folder: Path

    @property
    def path(self) -> Path:
        """The file of its results."""
        return self.folder / f"{self.setting.replace(' ', ',')}-{self.seed}.csv"


def build(setting: Setting, seed: int) -> Any:
    """
    :param setting: A setting
    :param seed: The seed
    :return: The model
    """
    from stable_baselines3.common.env_util import make_vec_env

    from sb3_reinforce import REINFORCE
    from sb3_reinforce.envs import make_vector_env

    make = make_vector_env if setting.native else make_vec_env
    env = make("CartPole-v1", setting.n_envs, seed=seed)
    return REINFORCE("MlpPolicy", env, seed=seed, device="cpu", **dict(setting.change))


def evaluate(model: Any, seed: int) -> float:
    """
    :param model: A model
    :param seed: The seed of the environments
    :return: The mean return of deterministic episodes, which are played side by side
    """
    import gymnasium as gym
    import numpy as np

    env = gym.make_vec("CartPole-v1", num_envs=N_EVAL_EPISODES, vectorization_mode="vector_entry_point")
    obs, _ = env.reset(seed=seed)
    returns, running = np.zeros(N_EVAL_EPISODES), np.ones(N_EVAL_EPISODES, dtype=bool)
    while running.any():
        obs, rewards, terminated, truncated, _ = env.step(model.predict(obs, deterministic=True)[0])
        returns += running * rewards
        running &= ~(terminated | truncated)
    return float(returns.mean())


def until_solved(setting: Setting, seed: int) -> dict[str, float]:
    """
    :param setting: A setting
    :param seed: The seed
    :return: The columns of the results
    """
    from stable_baselines3.common.callbacks import BaseCallback

    class Watch(BaseCallback):
        n_good = last = 0
        n_recorded = not_counted = 0.0

        def _on_step(self) -> bool:
            return self.n_good < IN_A_ROW

        def _on_rollout_end(self) -> None:
            self.n_recorded += self.logger.name_to_value["rollout/n_steps"]

        def _on_rollout_start(self) -> None:
            if self.num_timesteps - self.last >= EVAL_EVERY:
                begin = time.process_time()
                self.last = self.num_timesteps
                self.n_good = self.n_good + 1 if evaluate(self.model, seed + 1_000_000) >= SOLVED else 0
                self.not_counted += time.process_time() - begin

    model, watch = build(setting, seed), Watch()
    start = time.process_time()
    model.learn(MAX_STEPS, callback=watch)
    seconds = time.process_time() - start - watch.not_counted
    solved = watch.n_good >= IN_A_ROW
    played = watch.last if solved else model.num_timesteps
    values = (int(solved), played, model._n_updates, seconds, 1.0 - watch.n_recorded / played)
    return dict(zip(COLUMNS, values, strict=True))


def train(run: Run) -> str:
    """
    :param run: What to run, if its results are not there
    :return: What it came to
    """
    import torch as th

    from benchmarks.learning.one_run import commit, machine, versions

    def make(file: IO[str]) -> str:
        result = until_solved(SETTINGS[run.setting], run.seed)
        about = {"setting": run.setting, "versions": versions(), "commit": commit(), "machine": machine()}
        file.write(f"# {json.dumps(about, default=str)}\n{','.join(COLUMNS)}\n")
        file.write(",".join(f"{result[name]:.6g}" for name in COLUMNS) + "\n")
        return ", ".join(f"{name} {result[name]:.4g}" for name in COLUMNS)

    th.set_num_threads(1)
    return made_once(run.path, make)


def read(path: Path) -> dict[str, float]:
    """
    :param path: The file of a finished run
    :return: Its row
    """
    return dict(zip(COLUMNS, map(float, path.read_text().splitlines()[-1].split(",")), strict=True))


def report(folder: Path, seeds: list[int]) -> str:
    """
    :param folder: Where the results lie
    :param seeds: The seeds that count
    :return: The table: medians over the seeds
    """
    rows = []
    base = {seed: Run("8 Dummy", seed, folder).path for seed in seeds}
    for name in SETTINGS:
        runs = {seed: read(path) for seed in seeds if (path := Run(name, seed, folder).path).exists()}
        if not runs:
            continue
        middle = {column: statistics.median(run[column] for run in runs.values()) for column in COLUMNS}
        others = [read(path)["cpu_seconds"] for seed, path in base.items() if seed in runs and path.exists()]
        ratio = middle["cpu_seconds"] / statistics.median(others) if others else float("nan")
        solved = f"{sum(int(run['solved']) for run in runs.values())} of {len(runs)}"
        cells = [number(middle[column]) for column in ("timesteps", "updates", "cpu_seconds")]
        rows.append([name, solved, *cells, number(ratio), f"{middle['discarded']:.0%}"])
    header = ["environments", "solved", "steps", "updates", "CPU seconds", "of 8 Dummy's", "discarded"]
    return markdown(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs, table = commands.add_parser("run", help="train"), commands.add_parser("report", help="the table")
    runs.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="settings")
    runs.add_argument("--workers", type=positive, default=1, help="number of runs at a time")
    for command in (runs, table):
        command.add_argument("--seeds", nargs="+", type=int, default=list(range(5)), help="seeds")
        command.add_argument("--folder", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args()
    if args.command == "report":
        print(report(args.folder, args.seeds))
        return
    signal.signal(signal.SIGTERM, stop)
    todo = [run for seed in args.seeds for name in args.settings if not (run := Run(name, seed, args.folder)).path.exists()]
    with get_context("spawn").Pool(args.workers) as pool:
        for run, outcome in zip(todo, pool.imap(train, todo), strict=True):
            print(f"{run.setting}, seed {run.seed}: {outcome}", flush=True)
    sys.exit(0)


if __name__ == "__main__":
    main()
