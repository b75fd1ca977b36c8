"""Many runs, a few at a time."""

import subprocess
import sys
import time
from collections.abc import Iterator

from benchmarks.common import ROOT
from benchmarks.learning.files import is_finished, last_row
from benchmarks.learning.one_run import BUSY
from benchmarks.learning.plan import Run


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
        arguments = [run.algo, run.env_id, str(run.seed), str(run.budget), str(run.folder.resolve()), run.kind]
        with open(run.log, "ab") as log:  # another process may be at this run, and write there
            command = [sys.executable, "-m", "benchmarks.learning", "one", *arguments]
            return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)

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
