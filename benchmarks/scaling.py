"""
How the training speed grows with the number of workers.

    python -m benchmarks.scaling --workers 1 2

Each measurement is a torchrun job of its own on this machine: every worker has the same number of environments and of steps
per update, whatever the number of workers, so that perfect scaling is W times the steps per second with W workers. The numbers
of workers take turns, round by round; the table has the medians of the ratios inside the rounds. Every job also says what an
update consists of: seconds of playing and of updating, messages, their bytes, and the seconds spent in them (which contain the
waiting for the slowest worker).
"""

import argparse
import json
import pickle
import platform
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from benchmarks.common import PLAIN, ROOT, markdown  # first: one thread
from sb3_reinforce import REINFORCE, distributed

BATCH_SIZE = PLAIN["batch_size"]
#: Arguments of the model; ``shared_batch``: the critic's minibatches do not grow with the number of workers
SETTINGS: dict[str, dict[str, Any]] = {
    "CartPole-v1, leave-one-out": {"env": "CartPole-v1", "n_envs": 8, "n_steps": 256, "baseline": "leave_one_out"},
    "CartPole-v1": {"env": "CartPole-v1", "n_envs": 8, "n_steps": 256},
    "CartPole-v1, same batch_size": {"env": "CartPole-v1", "n_envs": 8, "n_steps": 256, "shared_batch": True},
    "HalfCheetah-v5": {"env": "HalfCheetah-v5", "n_envs": 1, "n_steps": 1000},
    "HalfCheetah-v5, same batch_size": {"env": "HalfCheetah-v5", "n_envs": 1, "n_steps": 1000, "shared_batch": True},
}


class Meter(BaseCallback):
    """Notes the times of each rollout and update, and what travels in between."""

    def __init__(self) -> None:
        super().__init__()
        self.updates: list[dict[str, float]] = []
        self.messages: Counter[str] = Counter()

    def _on_training_start(self) -> None:
        workers = self.model.workers  # type: ignore[attr-defined]
        workers.add_up = self._metered(workers.add_up, lambda tensors: sum(t.numel() * t.element_size() for t in tensors))
        workers.gather = self._metered(workers.gather, lambda item: len(pickle.dumps(item)))
        self._begin()

    def _metered(self, function: Callable[[Any], Any], size: Callable[[Any], int]) -> Callable[[Any], Any]:
        def call(item: Any) -> Any:
            start = time.perf_counter()
            result = function(item)
            self.messages.update(message_seconds=time.perf_counter() - start, messages=1, message_bytes=size(item))  # type: ignore[arg-type]
            return result

        return call

    def _begin(self) -> None:
        self.start, self.steps = time.perf_counter(), self.model.num_timesteps
        self.messages.clear()

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.rollout_end = time.perf_counter()

    def _on_rollout_start(self) -> None:
        if self.model._n_updates > 0:
            now = time.perf_counter()
            self.updates.append(
                {
                    "rollout_seconds": self.rollout_end - self.start,
                    "update_seconds": now - self.rollout_end,
                    "steps": self.model.num_timesteps - self.steps,
                    **self.messages,
                }
            )
        self._begin()


def work(name: str, n_updates: int, path: Path) -> None:
    """
    Train, as one of the workers of a job, and write down what rank 0 measured.

    :param name: Of the setting
    :param n_updates: How many updates to measure, at least
    :param path: Where to
    """
    th.set_num_threads(1)
    settings = dict(SETTINGS[name])
    size = distributed.n_launched()
    env = make_vec_env(settings.pop("env"), n_envs=settings.pop("n_envs"))
    batch_size = BATCH_SIZE if settings.pop("shared_batch", False) else BATCH_SIZE * size
    # Too small a rate to learn: the episodes, and the work per update, stay what they are
    settings = {**PLAIN, "learning_rate": 1e-8, "batch_size": batch_size, **settings}
    model = REINFORCE("MlpPolicy", env, seed=0, device="cpu", **settings)
    meter = Meter()
    # An episode more per environment is played than n_steps: the number of updates is about the one asked for
    model.learn((n_updates + 3) * size * env.num_envs * model.n_steps, callback=meter)
    if model.workers.rank == 0:
        path.write_text(json.dumps(meter.updates[2:]))  # the first ones warm up


def measure(name: str, n_workers: int, n_updates: int, folder: Path) -> dict[str, float]:
    """
    :param name: Of the setting
    :param n_workers: Number of workers
    :param n_updates: How many updates to measure, at least
    :param folder: For the job's result
    :return: Means per update, and ``steps_per_second``
    """
    path = folder / f"scaling-{n_workers}.json"
    path.unlink(missing_ok=True)
    launcher = [sys.executable]
    if n_workers > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_workers}"]
    work = ["-m", "benchmarks.scaling", "--work", name, str(n_updates), str(path.resolve())]
    subprocess.run([*launcher, *work], check=True, capture_output=True, cwd=ROOT)
    updates = json.loads(path.read_text())
    keys = {key for update in updates for key in update}
    result = {key: statistics.fmean(update.get(key, 0.0) for update in updates) for key in sorted(keys)}
    result["steps_per_second"] = result["steps"] / (result["rollout_seconds"] + result["update_seconds"])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="numbers of workers, 1 among them")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--updates", type=int, default=20, help="updates per measurement")
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "scaling.json")
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work[0], int(arguments.work[1]), Path(arguments.work[2]))
        return
    if 1 not in arguments.workers:
        parser.error("one worker must be among --workers, the others are compared with it")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    results: dict[str, list[dict[str, dict[str, float]]]] = {name: [] for name in arguments.settings}
    for round_ in range(arguments.rounds):
        for name in arguments.settings:
            turn = {str(n): measure(name, n, arguments.updates, arguments.out.parent) for n in arguments.workers}
            results[name].append(turn)
            speeds = ", ".join(f"{n}: {result['steps_per_second']:.0f} steps/s" for n, result in turn.items())
            print(f"round {round_ + 1}, {name}: {speeds}", flush=True)
            versions = {"python": platform.python_version(), "torch": th.__version__}
            arguments.out.write_text(json.dumps({"versions": versions, "results": results}, indent=1) + "\n")
    for n in arguments.workers:
        arguments.out.with_name(f"scaling-{n}.json").unlink(missing_ok=True)
    print(table(results, arguments.workers))


def table(results: dict[str, list[dict[str, dict[str, float]]]], n_workers: list[int]) -> str:
    """
    :param results: For each setting the rounds, each with a measurement per number of workers
    :param n_workers: The numbers of workers
    :return: Markdown: efficiency is the speed-up over the number of workers
    """
    header = ["", "W", "steps / s", "speed-up", "efficiency", "playing, ms", "update, ms", "messages", "kB", "in messages, ms"]
    rows = []
    for name, rounds in results.items():
        for n in n_workers:

            def median(key: str, scale: float = 1.0, n: int = n, rounds: list[Any] = rounds) -> float:
                return scale * statistics.median(turn[str(n)].get(key, 0.0) for turn in rounds)

            speed_up = statistics.median(turn[str(n)]["steps_per_second"] / turn["1"]["steps_per_second"] for turn in rounds)
            cells = [f"{median('steps_per_second'):.0f}", f"{speed_up:.2f}", f"{speed_up / n:.2f}"]
            cells += [f"{median('rollout_seconds', 1e3):.0f}", f"{median('update_seconds', 1e3):.0f}"]
            rows.append([name, str(n), *cells, *(messages(median) if n > 1 else ["", "", ""])])
    return markdown(header, rows)


def messages(median: Callable[..., float]) -> list[str]:
    """
    :param median: Gives the median of a key, scaled
    :return: Cells of the table: number, kB and milliseconds
    """
    cells = (median("messages"), median("message_bytes", 1e-3), median("message_seconds", 1e3))
    return [f"{cell:.0f}" for cell in cells]


if __name__ == "__main__":
    main()
