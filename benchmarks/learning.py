"""
How well does REINFORCE learn? Beside SB3's A2C and PPO and sb3-contrib's TRPO, with the same budgets and seeds.

REINFORCE takes its entries from ``zoo_configs/reinforce.yml``, the others RL Zoo's own: that of the environment itself,
else of its nearest older version, else SB3's defaults with ``VecNormalize``. Nothing of an entry is changed but its budget,
which its schedules follow: number of environments and wrappers (``VecNormalize``) are the entry's. ``reinforce_mc`` is
REINFORCE with whole episodes and ``gae_lambda=1``, pure Monte Carlo (but for the critic's value of the last state where a
time limit cuts an episode); its entry is REINFORCE's, overridden by what ``learning_mc.yml`` beside this file has for the
environment. ``Delayed...`` environments pay the whole return at the end, and have a discount of 1 for every algorithm: with
less, the longer an episode the less its end would count.

    python benchmarks/learning.py run [--algos ...] [--envs ...] [--seeds 0 1 ...] [--workers 2] [--folder DIR]
    python benchmarks/learning.py solve             # steps until deterministic evaluations pass, see SOLVE
    python benchmarks/learning.py speed             # the first steps of each run, all algorithms in turn
    python benchmarks/learning.py random            # the returns of random actions
    python benchmarks/learning.py report            # tables and figures of whatever has finished

Each run is a process of its own, and leaves one file, ``FOLDER/ENV/ALGO-SEED.csv``, that
``pandas.read_csv(path, comment="#")`` reads. Its first line is a comment that holds JSON: what was run, with which
hyperparameters and versions. About 200 rows follow:

- ``timesteps``, ``wall_seconds``, ``cpu_seconds`` (of the process, its children included) since ``learn()`` began,
- ``n_episodes`` finished so far, and ``return_last_100``, the mean return of the last 100 episodes as the algorithm counts
  them (REINFORCE leaves out those that it does not record),
- ``eval_mean``, ``eval_std``: in the last row only, of 20 deterministic episodes after training, raw rewards, with the
  statistics of ``VecNormalize`` frozen. The weights are the last ones, never the best.

The file is called ``.csv.partial`` until that last row is written. Runs that are finished are skipped, unfinished ones start
again, so a benchmark can be stopped at any time and resumed. A run that fails leaves its error in ``ALGO-SEED.log``.

The runs take days, and a machine is not equally fast on all of them. ``speed`` repeats the first steps of the runs with seeds
0 to 2, one process at a time and the algorithms of an environment one after the other; the report sets the clock of each
run by it.
"""

import argparse
import copy
import fcntl
import inspect
import json
import os
import platform
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import IO, Any

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"  # before NumPy and PyTorch are imported

import gymnasium as gym
import numpy as np
import yaml
from gymnasium.envs.registration import WrapperSpec

RESULTS = Path(__file__).parent / "results"
ALGOS = ("reinforce", "reinforce_mc", "ppo", "a2c", "trpo")
CLASSIC = {
    "CartPole-v1": 100_000,
    "Acrobot-v1": 200_000,
    "LunarLander-v3": 500_000,
    "LunarLanderContinuous-v3": 500_000,
    "MountainCarContinuous-v0": 100_000,
    "Pendulum-v1": 300_000,
}
MUJOCO = {
    "InvertedPendulum-v5": 300_000,
    "InvertedDoublePendulum-v5": 1_000_000,
    "Reacher-v5": 1_000_000,
    "Swimmer-v5": 1_000_000,
    "Hopper-v5": 1_000_000,
    "Walker2d-v5": 1_000_000,
    "HalfCheetah-v5": 1_000_000,
}
#: Run only where `--envs` asks for them
FURTHER_CLASSIC = {"MountainCar-v0": 300_000, "BipedalWalker-v3": 1_000_000}
FURTHER_MUJOCO = {"Ant-v5": 1_000_000, "Humanoid-v5": 1_000_000}
FURTHER = FURTHER_CLASSIC | FURTHER_MUJOCO | {"DelayedLunarLander-v3": 500_000, "DelayedHopper-v5": 500_000}
#: In the order of the tables
BUDGETS = CLASSIC | FURTHER_CLASSIC | MUJOCO | FURTHER
DELAYED = "Delayed"
N_ROWS = 200
N_EVAL_EPISODES = 20
EVAL_SEED_OFFSET = 10_000
COLUMNS = ("timesteps", "wall_seconds", "cpu_seconds", "n_episodes", "return_last_100", "eval_mean", "eval_std")
PACKAGES = ("stable_baselines3", "sb3_contrib", "rl_zoo3", "torch", "gymnasium", "numpy", "mujoco", "box2d")
#: Pure Monte Carlo is in the plan for MuJoCo alone
MONTE_CARLO = "reinforce_mc"
#: ``solve``: every how many steps a deterministic evaluation of ten episodes is made, and the mean return that is to be
#: reached three times in a row
SOLVE = {"CartPole-v1": (1_000, 475.0), "LunarLander-v3": (10_000, 200.0)}
SOLVE_EPISODES, SOLVE_IN_A_ROW = 10, 3
SOLVERS = ("reinforce", "ppo")
#: ``speed``: so many steps of a run
SPEED_STEPS = 10_000
SPEED_SEEDS = [0, 1, 2]
#: Exit status of a run that another process is at
BUSY = 75


class DelayedReward(gym.Wrapper):
    """
    Nothing during the episode, and the sum of its rewards in its last step.

    :param env: The environment, its time limit included
    """

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.total = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.total = 0.0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.total += float(reward)
        return observation, self.total if terminated or truncated else 0.0, terminated, truncated, info


def register_delayed(env_id: str) -> None:
    """
    :param env_id: An environment; where its name says so, it becomes the one that it is derived from with delayed rewards
    """
    if not env_id.startswith(DELAYED) or env_id in gym.registry:
        return
    spec = copy.deepcopy(gym.spec(env_id.removeprefix(DELAYED)))
    gym.register(
        env_id,
        entry_point=spec.entry_point,
        max_episode_steps=spec.max_episode_steps,
        # Around the time limit, as the last step has to be known
        additional_wrappers=(WrapperSpec(DelayedReward.__name__, f"{__name__}:{DelayedReward.__name__}", {}),),
        kwargs=spec.kwargs,
    )


@dataclass(frozen=True)
class Run:
    """One algorithm on one environment with one seed: what there is to do, and where its results lie."""

    algo: str
    env_id: str
    seed: int
    budget: int
    folder: Path
    #: ``learning``, ``solve`` or ``speed``: what is measured
    kind: str = "learning"

    @property
    def path(self) -> Path:
        folder = self.folder if self.kind == "learning" else self.folder / self.kind
        return folder / self.env_id / f"{self.algo}-{self.seed}.csv"

    @property
    def partial(self) -> Path:
        return self.path.with_name(self.path.name + ".partial")

    @property
    def log(self) -> Path:
        return self.path.with_suffix(".log")

    def __str__(self) -> str:
        return f"{self.algo} on {self.env_id}, seed {self.seed}"


# === Hyperparameters ===


def zoo_algo(algo: str) -> str:
    """
    :param algo: An algorithm or a variant of it
    :return: Its name in RL Zoo
    """
    return algo.partition("_")[0]


def read_yaml(path: Path) -> dict[str, Any]:
    """
    :param path: A file
    :return: What it holds; nothing if it does not exist
    """
    return (yaml.safe_load(path.read_text()) or {}) if path.exists() else {}


def config_file(algo: str) -> Path:
    """
    :param algo: The name of an algorithm in RL Zoo
    :return: The file with its entries
    """
    if algo == "reinforce":
        from sb3_reinforce.zoo import default_config

        return default_config()
    zoo = find_spec("rl_zoo3")
    if zoo is None or not zoo.submodule_search_locations:
        raise ImportError('RL Zoo is not installed, please run `pip install "sb3-reinforce[benchmark]"`.')
    return Path(zoo.submodule_search_locations[0]) / "hyperparams" / f"{algo}.yml"


def matching_entry(entries: dict[str, Any], env_id: str) -> str | None:
    """
    :param entries: The entries of an algorithm
    :param env_id: An environment
    :return: Which entry is for it: its own, else the one of its nearest older version, if any
    """
    name, number = env_id.rsplit("-v", 1)
    versions = [int(match[1]) for key in entries if (match := re.fullmatch(rf"{re.escape(name)}-v(\d+)", key))]
    older = [candidate for candidate in versions if candidate <= int(number)]
    return f"{name}-v{max(older)}" if older else None


def find_entry(algo: str, env_id: str) -> tuple[str, dict[str, Any]]:
    """
    :param algo: An algorithm or a variant of it
    :param env_id: An environment
    :return: Where its hyperparameters are from, and those, in RL Zoo's form
    """
    plain = env_id.removeprefix(DELAYED)
    path = config_file(zoo_algo(algo))
    entries = read_yaml(path)
    key = matching_entry(entries, plain)
    if key is None:
        source, entry = "SB3's defaults with VecNormalize", {"policy": "MlpPolicy", "n_timesteps": 0, "normalize": True}
    else:
        source, entry = f"{path.name}: {key}", dict(entries[key])
    if algo == MONTE_CARLO:
        overrides = read_yaml(Path(__file__).with_name("learning_mc.yml"))
        own = {**overrides.get(plain, {}), **overrides.get(env_id, {})}
        entry = {**entry, "complete_episodes": True, **own, "gae_lambda": 1.0}
        source += ", with overrides of learning_mc.yml" if own else ", with gae_lambda 1"
    if env_id != plain:
        entry.pop("horizon", None)  # behind it lies the reward
        source, entry["gamma"] = f"{source}; discount 1", 1.0
    return source, entry


def build(run: Run) -> tuple[Any, Any]:
    """
    :param run: What to run
    :return: The model and RL Zoo's ``ExperimentManager``, which makes the environments
    """
    from rl_zoo3 import import_envs  # noqa: F401
    from rl_zoo3.exp_manager import ExperimentManager
    from rl_zoo3.utils import ALGOS as CLASSES

    algo = zoo_algo(run.algo)
    if algo == "reinforce":
        from sb3_reinforce.zoo import register

        register()
    register_delayed(run.env_id)
    _, entry = find_entry(run.algo, run.env_id)
    # VecNormalize scales rewards with the discount factor of the entry. Where that has none, it is the algorithm's default
    entry.setdefault("gamma", inspect.signature(CLASSES[algo]).parameters["gamma"].default)
    with tempfile.TemporaryDirectory() as nowhere:
        manager = ExperimentManager(
            argparse.Namespace(), algo, run.env_id, nowhere, n_timesteps=run.budget, eval_freq=-1, seed=run.seed, verbose=0
        )
    # Its own `setup_experiment` does the same, and keeps folders besides
    kwargs, manager.env_wrapper, manager.callbacks, manager.vec_env_wrapper = manager._preprocess_hyperparams(entry)
    env = manager.create_envs(manager.n_envs, no_log=True)
    return CLASSES[algo](env=env, seed=run.seed, device="cpu", verbose=0, **kwargs), manager


# === One run ===


def metadata(run: Run) -> dict[str, Any]:
    """
    :param run: What to run
    :return: What the first line of its file says
    """
    import sb3_reinforce

    source, entry = find_entry(run.algo, run.env_id)
    versions = {"sb3_reinforce": sb3_reinforce.__version__, "python": sys.version.split()[0]}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "algo": run.algo,
        "env": run.env_id,
        "seed": run.seed,
        "budget": run.budget,
        "entry": source,
        "hyperparameters": entry,
        "versions": versions,
        "commit": commit(),
        "machine": machine(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


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
    run.partial.parent.mkdir(parents=True, exist_ok=True)
    with open(run.partial, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(BUSY)
        if run.path.exists():  # since a moment ago
            run.partial.unlink(missing_ok=True)
            return
        file.truncate(0)
        import torch as th

        th.set_num_threads(1)
        model, manager = build(run)
        if run.kind == "solve":
            recorder = Recorder(run, file, evaluate(model, manager, run.seed + EVAL_SEED_OFFSET, SOLVE_EPISODES))
        else:
            recorder = Recorder(run, file)
        model.learn(run.budget, callback=[*manager.callbacks, as_callback(recorder)])
        if run.kind == "learning":
            # Made within the evaluation, whose time does not count
            recorder.evaluation = lambda: evaluate(model, manager, run.seed + EVAL_SEED_OFFSET, N_EVAL_EPISODES)()
            recorder.write(model, *recorder.evaluate())
        run.partial.rename(run.path)


def as_callback(function: Callable[[dict[str, Any], dict[str, Any]], bool]) -> Any:
    """
    :param function: A function as SB3 takes it for a callback
    :return: A callback
    """
    from stable_baselines3.common.callbacks import ConvertCallback

    return ConvertCallback(function)


# === Many runs ===


def seeds_of(algo: str, env_id: str) -> int:
    """
    :param algo: An algorithm
    :param env_id: An environment
    :return: How many seeds it gets
    """
    if algo == MONTE_CARLO:
        return 2
    if env_id not in MUJOCO | FURTHER:
        return 10
    return 3 if algo in ("a2c", "trpo") else 5


def algos_of(env_id: str) -> list[str]:
    """
    :param env_id: An environment
    :return: The algorithms that are in its plan
    """
    return [algo for algo in ALGOS if algo != MONTE_CARLO or env_id not in CLASSIC | FURTHER_CLASSIC]


def plan(
    algos: list[str] | None,
    env_ids: list[str],
    seeds: list[int] | None,
    folder: Path,
    factor: float = 1.0,
    kind: str = "learning",
) -> list[Run]:
    """
    :param algos: Algorithms; ``None``: all, on the classic tasks but pure Monte Carlo
    :param env_ids: Environments
    :param seeds: Seeds; ``None``: as many as each gets
    :param folder: Where the results go
    :param factor: What budgets are multiplied with
    :param kind: What is measured
    :return: The runs, one seed after the other, so that one that is stopped leaves complete sweeps
    """
    runs = [
        Run(algo, env_id, seed, max(int(BUDGETS[env_id] * factor), 1), folder, kind)
        for seed in (range(10) if seeds is None else seeds)
        for env_id in env_ids
        for algo in algos or algos_of(env_id)
        if seeds is not None or seed < seeds_of(algo, env_id)
    ]
    return list(dict.fromkeys(runs))  # nothing twice


def is_finished(run: Run) -> bool:
    """
    :param run: A run
    :return: Whether its results are there
    :raises ValueError: If those that are there were made with another budget, or are damaged
    """
    if not run.path.exists():
        return False
    found = read_metadata(run.path)
    check_complete(run.path, found, run.kind)
    if found["budget"] != run.budget:
        raise ValueError(f"{run.path} has a budget of {found['budget']}, not {run.budget}: use another `--folder`.")
    if json.loads(json.dumps(find_entry(run.algo, run.env_id)[1], default=str)) != found["hyperparameters"]:
        print(f"{run}: finished, with other hyperparameters than today's. Remove {run.path} to repeat it.")
    return True


def read_metadata(path: Path) -> dict[str, Any]:
    """
    :param path: The file of a run
    :return: What its first line says
    :raises ValueError: If it says nothing
    """
    with open(path) as file:
        line = file.readline()
    try:
        info = json.loads(line.removeprefix("#"))
    except json.JSONDecodeError:
        info = None
    if not isinstance(info, dict) or not {"seed", "budget", "entry", "hyperparameters"} <= info.keys():
        raise ValueError(f"{path} must begin with a line of JSON, got {line[:40]!r}: remove it to repeat the run.")
    return info


def check_complete(path: Path, info: dict[str, Any], kind: str = "learning") -> None:
    """
    :param path: The file of a run
    :param info: What its first line says
    :param kind: What was measured
    :raises ValueError: If its last row is missing
    """
    row = last_row(path)
    n_steps = {"learning": info["budget"], "solve": 0, "speed": SPEED_STEPS}[kind]
    try:
        complete = int(row["timesteps"]) >= min(n_steps, info["budget"])
        complete = complete and (kind == "speed" or np.isfinite(float(row["eval_mean"])))
    except (KeyError, ValueError):
        complete = False
    if not complete:
        raise ValueError(f"{path} must go to the end of its run, got a last row of {row}: remove it to repeat the run.")


def last_row(path: Path) -> dict[str, str]:
    """
    :param path: The file of a run, maybe an unfinished one
    :return: Its last complete row
    """
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return dict(zip(COLUMNS, lines[-1].split(","), strict=False)) if len(lines) > 2 else {}


class Runner:
    """
    Works through runs, a few at a time, each in a process of its own.

    :param runs: What to run
    :param n_workers: How many at a time
    """

    def __init__(self, runs: list[Run], n_workers: int):
        self.todo = [run for run in runs if not is_finished(run)]
        self.n_skipped, self.n_runs, self.n_workers = len(runs) - len(self.todo), len(runs), n_workers
        self.steps = sum(run.budget for run in self.todo)
        self.steps_done = 0
        self.failed: list[Run] = []
        self.active: dict[Run, subprocess.Popen[bytes]] = {}
        self.start = time.perf_counter()

    def run(self) -> bool:
        """
        :return: Whether all runs have succeeded
        """
        print(f"{self.n_runs} runs, {self.n_skipped} of them finished before", flush=True)
        try:
            for _ in self._ended():
                self._show()
        finally:
            for process in self.active.values():
                process.terminate()
            for process in self.active.values():
                process.wait()
        for run in self.failed:
            print(f"failed: {run}, see {run.log}")
        return not self.failed

    def _ended(self) -> Iterator[None]:
        queue = list(self.todo)
        while queue or self.active:
            while queue and len(self.active) < self.n_workers:
                run = queue.pop(0)
                self.active[run] = self._launch(run)
            yield
            time.sleep(0.2)
            for run, process in list(self.active.items()):
                if process.poll() is not None:
                    del self.active[run]
                    self._report(run, process.returncode)

    def _launch(self, run: Run) -> "subprocess.Popen[bytes]":
        run.log.parent.mkdir(parents=True, exist_ok=True)
        arguments = [run.algo, run.env_id, str(run.seed), str(run.budget), str(run.folder), run.kind]
        with open(run.log, "ab") as log:  # another process may be at this run, and write there
            return subprocess.Popen([sys.executable, __file__, "one", *arguments], stdout=log, stderr=subprocess.STDOUT)

    def _report(self, run: Run, status: int) -> None:
        self.steps_done += run.budget
        minutes = (time.perf_counter() - self.start) / 60
        left = f"{minutes * (self.steps - self.steps_done) / self.steps_done:.0f} min left"
        if status == 0 and run.path.exists():
            run.log.unlink(missing_ok=True)  # two runners that came to the same run have one
            row = last_row(run.path)
            outcome = f"return {row['return_last_100'] or '-'}, evaluation {row['eval_mean'] or '-'}"
            outcome += f", {row['timesteps']} steps in {float(row['cpu_seconds']):.0f} s of CPU"
        elif status == BUSY:
            outcome = "another process is at it"
        else:
            self.failed.append(run)
            outcome = f"FAILED with status {status}, see {run.log}"
        print(f"\r\033[K{run}: {outcome} ({left})" if sys.stdout.isatty() else f"{run}: {outcome} ({left})", flush=True)

    def _show(self) -> None:
        """Where the active runs stand, on one line of a terminal."""
        if not sys.stdout.isatty():
            return
        states = []
        for run in self.active:
            row = last_row(run.partial)
            states.append(f"{run} {int(row.get('timesteps', 0)) / run.budget:.0%}")
        print(f"\r\033[K{'; '.join(states)}", end="", flush=True)


# === Random actions ===


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
        register_delayed(env_id)
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


def stop(number: int, _: FrameType | None) -> None:
    """Have the children ended when the process is told to end."""
    sys.exit(128 + number)


def natural(text: str) -> int:
    """
    :param text: A number as it is written
    :return: That number
    :raises argparse.ArgumentTypeError: If it is negative, or no integer
    """
    if not re.fullmatch(r"\d+", text):
        raise argparse.ArgumentTypeError(f"must be an integer of at least 0, got {text!r}")
    return int(text)


def positive(text: str) -> int:
    """
    :param text: A number as it is written
    :return: That number
    :raises argparse.ArgumentTypeError: If it is not positive, or no integer
    """
    if not re.fullmatch(r"0*[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return int(text)


def parse() -> argparse.Namespace:
    """
    :return: The command line's arguments
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train")
    run.add_argument("--algos", nargs="+", choices=ALGOS, help="algorithms (default: all, but reinforce_mc on MuJoCo alone)")
    solve = commands.add_parser("solve", help="measure the steps until three evaluations in a row pass")
    solve.add_argument("--algos", nargs="+", choices=ALGOS, default=list(SOLVERS), help="algorithms")
    for command in (run, solve):
        command.add_argument("--seeds", nargs="+", type=natural, help="seeds (default: as many as each environment gets)")
        command.add_argument("--workers", type=positive, default=2, help="number of runs at a time")
        command.add_argument("--budget-factor", type=float, default=1.0, help=argparse.SUPPRESS)
    speed = commands.add_parser("speed", help="measure the CPU time of the first steps, one process at a time")
    speed.add_argument("--algos", nargs="+", choices=ALGOS, help="algorithms (default: as for `run`)")
    commands.add_parser("random", help="measure the returns of random actions")
    commands.add_parser("report", help="tables and figures of the runs that have finished")
    for name, command in commands.choices.items():
        known, envs = (list(SOLVE), list(SOLVE)) if name == "solve" else (list(BUDGETS), [*CLASSIC, *MUJOCO])
        envs = known if name == "report" else envs
        command.add_argument("--envs", nargs="+", choices=known, default=envs, metavar="ENV", help=", ".join(known))
        command.add_argument("--folder", type=Path, default=RESULTS / "learning", help="folder of the results")
    commands.choices["report"].add_argument("--algos", nargs="+", choices=ALGOS, default=list(ALGOS), help="algorithms")
    commands.choices["report"].add_argument(
        "--docs", type=Path, default=RESULTS.parent.parent / "docs", help="folder of the figures"
    )
    commands.choices["report"].add_argument("--page", type=Path, help="page to put the tables into (BENCHMARKS.md)")
    one = commands.add_parser("one")
    for argument, kind in {"algo": str, "env_id": str, "seed": int, "budget": int, "folder": Path, "kind": str}.items():
        one.add_argument(argument, type=kind)
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.command == "one":
        train(Run(args.algo, args.env_id, args.seed, args.budget, args.folder, args.kind))
    elif args.command == "random":
        measure_random(args.envs, args.folder / "random.csv")
    elif args.command == "report":
        from learning_report import report

        report(args.folder, args.docs, args.envs, args.algos, args.page)
    else:
        signal.signal(signal.SIGTERM, stop)
        if args.command == "speed":
            runs, n_workers = plan(args.algos, args.envs, SPEED_SEEDS, args.folder, kind="speed"), 1
        else:
            kind = "solve" if args.command == "solve" else "learning"
            runs = plan(args.algos, args.envs, args.seeds, args.folder, args.budget_factor, kind)
            n_workers = args.workers
        sys.exit(not Runner(runs, n_workers).run())


if __name__ == "__main__":
    main()
