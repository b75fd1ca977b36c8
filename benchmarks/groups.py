"""
Many attempts at one instance: a baseline within groups of eight attempts, beside other baselines and MaskablePPO.

    python -m benchmarks.groups variance [--tasks ...] [--seeds ...]          # goes on where it was stopped
    python -m benchmarks.groups learn [--tasks ...] [--methods ...] [--seeds ...]
    python -m benchmarks.groups resets [--tasks ...]
    python -m benchmarks.groups report [--page docs/guides/many_attempts.md]

``variance`` measures the gradient estimate at fixed weights, untrained and trained ones: the trace of its covariance over many
updates, each of 32 fresh episodes, that leave the weights as they are. Groups have 4 instances in an update, and leave-one-out
over all 32. Advantages are raw, and the sum is divided by the number of episodes, so that both estimate the same gradient.
``resets`` measures the share of the CPU time of training that the resets with the groups' seeds take.
``learn`` trains from scratch with the same steps, and tests on 100 instances that are the same for all. Each run is a CSV of
its own.
"""

import argparse
import json
import signal
import sys
import time
from pathlib import Path
from typing import IO, Any, ClassVar, NamedTuple

from benchmarks.common import ROOT, around_marks, made_once, markdown, number, positive, put_between, stop  # first

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces

from sb3_reinforce import PolicyStep

RESULTS = ROOT / "benchmarks" / "results" / "groups"
MARKS = "<!-- Written by `benchmarks.groups report`: begin -->", "<!-- Written by `benchmarks.groups report`: end -->"
N_ENVS, GROUP_SIZE, N_TEST_EPISODES, FIRST_TEST_SEED = 32, 8, 100, 1_000_000
VARIANCE_COLUMNS = "trained_steps,method,n_updates,n_instances,trace,trace_error,squared_norm,mean_return"
LEARN_COLUMNS = "timesteps,cpu_seconds,sampled,greedy"
#: Parts of the training after which it is tested
TESTED_AT = (0.25, 0.5, 1.0)
#: Timesteps of the training
TASKS = {"Knapsack": 40_000, "JobShop": 40_000, "Tour": 40_000}
METHODS: dict[str, dict[str, Any]] = {
    "groups": {"baseline": "leave_one_out", "group_size": GROUP_SIZE},
    "normalized_groups": {"baseline": "leave_one_out", "group_size": GROUP_SIZE, "normalize_advantage": "group"},
    "leave_one_out": {"baseline": "leave_one_out"},
    "value": {"baseline": "value"},
    "MaskablePPO": {},
}
TITLES = {
    "groups": "leave-one-out in groups of 8",
    "normalized_groups": 'the same, `normalize_advantage="group"`',
    "leave_one_out": "leave-one-out over all",
    "value": "value",
    "MaskablePPO": "MaskablePPO",
}


class Knapsack(gym.Env[np.ndarray, int]):
    """
    Twenty things come by, each to be packed or left behind, and how much they are worth together is told at the end.

    What things are worth is of another scale in each instance, from 1/10 to 10. The observation is the weight and the value of
    the thing, beside the mean value; the room that is left, the share of the things that are to come, and the logarithm of the
    mean value.
    """

    N_THINGS = 20
    observation_space: ClassVar = spaces.Box(-np.inf, np.inf, (5,), np.float32)
    action_space: ClassVar = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.weights, self.values = self.np_random.random((2, self.N_THINGS))
        self.values *= 10 ** self.np_random.uniform(-1, 1)
        self.room, self.packed, self.t = self.N_THINGS / 8, 0.0, 0  # for about a quarter of the things
        return self._observe(), {}

    def action_masks(self) -> np.ndarray:
        """
        :return: Whether the thing may be left behind (always), and whether it may be packed (if there is room)
        """
        return np.array([True, self.t < self.N_THINGS and self.weights[self.t] <= self.room])

    def _observe(self) -> np.ndarray:
        thing, mean = min(self.t, self.N_THINGS - 1), self.values.mean()
        share = 1 - self.t / self.N_THINGS
        return np.array([self.weights[thing], self.values[thing] / mean, self.room, share, np.log(mean)], np.float32)

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if action == 1:
            self.room -= self.weights[self.t]
            self.packed += self.values[self.t]
        self.t += 1
        done = self.t == self.N_THINGS
        return self._observe(), float(self.packed) if done else 0.0, done, False, {}


class StayHere(PolicyStep):
    """A step that goes nowhere, and keeps the gradients."""

    def begin(self) -> None:
        self.found: list[np.ndarray] = []

    def take(self, gradients: Any, batch: Any, weights: th.Tensor, parameters: Any) -> None:
        self.found.append(th.cat([gradient.flatten() for gradient in gradients.actor]).double().numpy())


class Run(NamedTuple):
    """
    :param task: A name of :data:`TASKS`
    :param method: A name of :data:`METHODS`; ``"variance"``: what is measured is the variance
    :param seed: The seed
    :param folder: Where the results lie
    """

    task: str
    method: str
    seed: int
    folder: Path

    @property
    def path(self) -> Path:
        """The file of its results."""
        return self.folder / self.task / f"{self.method}-{self.seed}.csv"


def make_env(task: str) -> gym.Env[np.ndarray, int]:
    """
    :param task: A name of :data:`TASKS`
    :return: An environment
    """
    from examples.scheduling.job_shop import ActiveJobShop
    from examples.scheduling.tour import Tour

    return {"Knapsack": Knapsack, "JobShop": ActiveJobShop, "Tour": Tour}[task]()


def build(task: str, method: str, seed: int, **change: Any) -> Any:
    """
    :param task: A name of :data:`TASKS`
    :param method: A name of :data:`METHODS`
    :param seed: The seed
    :param change: Arguments of the constructor that differ
    :return: A model
    """
    from sb3_contrib import MaskablePPO
    from stable_baselines3.common.env_util import make_vec_env

    from examples.scheduling.set_policy import SetPolicy
    from sb3_reinforce import MaskableREINFORCE

    policy = "MlpPolicy" if task == "Knapsack" else SetPolicy
    env = make_vec_env(make_env, N_ENVS, seed, env_kwargs={"task": task})
    common = {"gamma": 1.0, "seed": seed, "device": "cpu"}
    if method == "MaskablePPO":
        # An update has about as many episodes as ours
        n_steps = {"Knapsack": 20, "JobShop": 36, "Tour": 19}[task]
        return MaskablePPO(policy, env, **{"n_steps": n_steps, "batch_size": 128, **common, **change})
    arguments = {"n_episodes": 1, "sub_sampling_factor": 4, **METHODS[method], **common, **change}
    return MaskableREINFORCE(policy, env, **arguments)


def measure_variance(run: Run, n_updates: int) -> list[list[Any]]:
    """
    :param run: What to measure
    :param n_updates: Number of updates
    :return: A row for each stage of the training and each method
    """
    trained, rows = build(run.task, "groups", run.seed), []
    for steps in (0, TASKS[run.task]):
        if steps:
            trained.learn(steps)
        for method in ("groups", "leave_one_out"):
            plain = {"normalize_advantage": False, "average_over": "episodes", "ent_coef": 0.0}
            model = build(run.task, method, run.seed + 50_000, **plain)  # other instances than those of the training
            model.policy.load_state_dict(trained.policy.state_dict())
            model.policy_step_class = StayHere
            per_update = N_ENVS * {"Knapsack": 20, "JobShop": 36, "Tour": 19}[run.task]
            model.learn(n_updates * per_update)
            gradients = np.stack(model.policy_step.found)
            deviations = ((gradients - gradients.mean(axis=0)) ** 2).sum(axis=1) * len(gradients) / (len(gradients) - 1)
            trace, error = deviations.mean(), deviations.std(ddof=1) / np.sqrt(len(gradients))
            squared_norm = (gradients.mean(axis=0) ** 2).sum() - trace / len(gradients)
            mean_return = np.mean([episode["r"] for episode in model.ep_info_buffer])
            n_instances = N_ENVS // model.group_size
            numbers = [f"{value:.6g}" for value in (trace, error, squared_norm, mean_return)]
            rows.append([steps, method, len(gradients), n_instances, *numbers])
    return rows


def learn(run: Run) -> list[list[Any]]:
    """
    :param run: What to train
    :return: A row for each test
    """
    model, seconds, rows = build(run.task, run.method, run.seed), 0.0, []
    for part in TESTED_AT:
        start = time.process_time()
        total = int(part * TASKS[run.task])
        model.learn(total - model.num_timesteps, reset_num_timesteps=False)
        seconds += time.process_time() - start
        returns = [np.mean(test(model, run.task, deterministic)) for deterministic in (False, True)]
        rows.append([model.num_timesteps, f"{seconds:.2f}", *(f"{value:.6g}" for value in returns)])
    return rows


def share_of_resets(task: str, n_steps: int = 8_000) -> tuple[float, float]:
    """
    :param task: A name of :data:`TASKS`
    :param n_steps: Timesteps of the training
    :return: The share of its CPU time that the resets of all environments take, and the milliseconds of one of them
    """
    model = build(task, "groups", 0)
    seconds = []
    reset = model.env.reset

    def timed() -> Any:
        start = time.process_time()
        observations = reset()
        seconds.append(time.process_time() - start)
        return observations

    model.env.reset = timed
    start = time.process_time()
    model.learn(n_steps)
    return sum(seconds) / (time.process_time() - start), 1e3 * float(np.median(seconds))


def test(model: Any, task: str, deterministic: bool) -> np.ndarray:
    """
    :param model: A model
    :param task: A name of :data:`TASKS`
    :param deterministic: Whether it takes its most likely actions
    :return: The returns of episodes on instances that are always the same
    """
    from examples.scheduling.attempts import play

    return play(model, [make_env(task) for _ in range(N_TEST_EPISODES)], deterministic, FIRST_TEST_SEED)


def make(run: Run, n_updates: int) -> str:
    """
    :param run: What to run, if its results are not there
    :param n_updates: Number of updates that the variance is measured over
    :return: What it came to
    """
    from benchmarks.learning.one_run import commit, machine, versions

    def write(file: IO[str]) -> str:
        rows = measure_variance(run, n_updates) if run.method == "variance" else learn(run)
        about = {"versions": versions(), "commit": commit(), "machine": machine(), "steps": TASKS[run.task]}
        columns = VARIANCE_COLUMNS if run.method == "variance" else LEARN_COLUMNS
        lines = [f"# {json.dumps(about, default=str)}", columns, *(",".join(map(str, row)) for row in rows)]
        file.write("\n".join(lines) + "\n")
        return str(rows[-1])

    th.set_num_threads(1)
    return made_once(run.path, write)


# Report


def read(folder: Path, task: str, method: str) -> Any:
    """
    :param folder: Where the results lie
    :param task: A name of :data:`TASKS`
    :param method: A name of :data:`METHODS`, or ``"variance"``
    :return: The rows of all finished runs, with their seeds, a data frame of pandas
    """
    import pandas as pd

    paths = sorted((folder / task).glob(f"{method}-*.csv"))
    frames = [pd.read_csv(path, comment="#").assign(seed=int(path.stem.rsplit("-", 1)[1])) for path in paths]
    return pd.concat(frames) if frames else pd.DataFrame()


def variance_table(folder: Path) -> str:
    """
    :param folder: Where the results lie
    :return: The variance with groups over that without, a mean over the seeds of the trained weights
    """
    rows = []
    for task in TASKS:
        runs = read(folder, task, "variance")
        cells = []
        for steps in (0, TASKS[task]):
            if not len(runs):
                cells.append("-")
                continue
            stage = runs[runs.trained_steps == steps]
            ours, other = (stage[stage.method == method].set_index("seed") for method in ("groups", "leave_one_out"))
            ratios = ours.trace / other.trace
            errors = ratios * np.hypot(ours.trace_error / ours.trace, other.trace_error / other.trace)
            cells.append(f"{ratios.mean():.2f} ± {np.sqrt((errors**2).sum()) / len(errors):.2f}")
        rows.append([task, *cells])
    return markdown(["task", "untrained", "trained"], rows)


def learn_table(folder: Path) -> str:
    """
    :param folder: Where the results lie
    :return: The mean return on the test instances at the end of the training, with actions drawn
    """
    rows = []
    for method, title in TITLES.items():
        cells = []
        for task in TASKS:
            runs = read(folder, task, method)
            final = runs.groupby("seed").last().sampled if len(runs) else []
            spread = f" ± {number(final.std())}" if len(final) > 1 else ""
            cells.append(f"{final.mean():.3f}{spread} ({len(final)})" if len(final) else "-")
        rows.append([title, *cells])
    return markdown(["", *(f"{task}, {steps:,} steps" for task, steps in TASKS.items())], rows)


def report(folder: Path) -> str:
    """
    :param folder: Where the results lie
    :return: The tables
    """
    return (
        "Variance of the gradient estimate: groups of 8 over leave-one-out over all\n\n"
        f"{variance_table(folder)}\n\n"
        "Mean return on test instances, with the standard deviation over seeds and their number\n\n"
        f"{learn_table(folder)}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    variance, learning = commands.add_parser("variance", help="measure"), commands.add_parser("learn", help="train")
    tables = commands.add_parser("report", help="the tables")
    variance.add_argument("--updates", type=positive, default=100, help="number of updates")
    learning.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="methods")
    tables.add_argument("--page", type=Path, help="page to put the tables into (docs/guides/many_attempts.md)")
    resets = commands.add_parser("resets", help="measure what resets cost")
    for command in (variance, learning, resets):
        command.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), help="tasks")
        command.add_argument("--seeds", nargs="+", type=int, default=list(range(3)), help="seeds")
    for command in (variance, learning, resets, tables):
        command.add_argument("--folder", type=Path, default=RESULTS, help="folder of the results")
    args = parser.parse_args()
    if args.command == "report":
        if args.page is not None:
            around_marks(args.page, MARKS)
        print(report(args.folder))
        if args.page is not None:
            put_between(args.page, report(args.folder), MARKS)
        return
    if args.command == "resets":
        th.set_num_threads(1)
        for task in args.tasks:
            share, milliseconds = share_of_resets(task)
            print(f"{task}: {share:.2%} of the CPU time, {milliseconds:.2f} ms for {N_ENVS} environments", flush=True)
        return
    signal.signal(signal.SIGTERM, stop)
    methods = ["variance"] if args.command == "variance" else args.methods
    for seed in args.seeds:
        for task in args.tasks:
            for method in methods:
                outcome = make(Run(task, method, seed, args.folder), getattr(args, "updates", 0))
                print(f"{method} on {task}, seed {seed}: {outcome}", flush=True)
    sys.exit(0)


if __name__ == "__main__":
    main()
