"""Whatever happens to a worker, its job ends with the cause named, and goes on from the last checkpoint."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch as th

from sb3_reinforce import REINFORCE
from tests.distributed.faulty import TIME_OUT
from tests.helpers import ROOT

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
#: The time that torchrun gives processes to end before it kills them, and what starting takes on a busy machine
PATIENCE = 30 + 120
#: What is said of each fault; a worker that does not answer, or is gone, is a lost one
CAUSES = {
    "kill": ["Signal 9 (SIGKILL)"],
    "stop": ["WorkerLostError: The connection to another worker was lost"],
    "disk": ["The model was not saved, and what was at its place is unchanged: File too large"],
    "raise": ["ZeroDivisionError: the moon is full"],
}


def start(*command: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*TORCHRUN, *command],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def faulty(folder: Path, fault: str = "none", step: int = 0, victim: int = -1) -> tuple[int, str]:
    arguments = ["-m", "tests.distributed.faulty", str(folder), fault, str(step), str(victim)]
    process = start("--nproc-per-node=3", *arguments)
    try:
        output, _ = process.communicate(timeout=TIME_OUT + PATIENCE)
    finally:
        end(process)
    return process.returncode, output


def end(*processes: "subprocess.Popen[str]") -> None:
    """End jobs that may still run: torchrun then ends its workers."""
    for process in processes:
        process.terminate()
    for process in processes:
        process.wait()


def assert_same_end(path: Path, other: Path) -> None:
    model, expected = (REINFORCE.load(each, device="cpu") for each in (path, other))
    for name, tensor in expected.policy.state_dict().items():
        assert th.equal(tensor, model.policy.state_dict()[name]), name
    assert (model.num_timesteps, model._n_updates) == (expected.num_timesteps, expected._n_updates)


@pytest.mark.slow
@pytest.mark.parametrize("fault", CAUSES)
def test_a_job_ends_with_the_cause_and_is_taken_up_exactly_at_ten_random_moments(fault: str, tmp_path: Path) -> None:
    rng = random.Random(0)
    assert faulty(tmp_path / "whole")[0] == 0
    n_faults = 0
    for _ in range(10):
        status, output = faulty(tmp_path / "faulty", fault, rng.randint(20, 900), 0 if fault == "disk" else rng.randrange(3))
        if status != 0:  # else the run came to its end before the fault
            n_faults += 1
            assert any(cause in output for cause in CAUSES[fault]), output[-3000:]
    assert n_faults >= 5
    status, output = faulty(tmp_path / "faulty")
    assert status == 0, output[-3000:]
    assert_same_end(tmp_path / "faulty" / "end", tmp_path / "whole" / "end")


def workers_of(process: "subprocess.Popen[str]") -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True).stdout.split()
    return [int(pid) for pid in found]


@pytest.mark.slow
def test_a_job_that_torchrun_restarts_goes_on_by_itself_and_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    def example(folder: Path) -> "subprocess.Popen[str]":
        arguments = ["--timesteps", "4000", "--checkpoint-freq", "100", "--out", str(folder), "--resume"]
        return start("--nproc-per-node=2", "--max-restarts=3", "examples/distributed.py", *arguments)

    whole, killed = example(tmp_path / "whole"), example(tmp_path / "killed")
    try:
        deadline = time.monotonic() + 400
        while len(list((tmp_path / "killed" / "checkpoints").glob("*.zip"))) < 4:
            assert killed.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(workers_of(killed)[-1], signal.SIGKILL)
        outputs = [process.communicate(timeout=400)[0] for process in (whole, killed)]
    finally:
        end(whole, killed)
    assert whole.returncode == killed.returncode == 0, outputs[1][-3000:]
    assert "Going on from" not in outputs[0] and outputs[1].count("Going on from") >= 2
    assert_same_end(tmp_path / "killed" / "distributed", tmp_path / "whole" / "distributed")


LATE = """
import os, signal, time
from sb3_reinforce import REINFORCE
rank, attempt = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
if attempt and rank == 1:
    time.sleep(3)  # the other worker is there first, and finds what the processes of before have left
model = REINFORCE("MlpPolicy", "CartPole-v1", n_steps=64, device="cpu").learn(200)
if not attempt and rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
if not attempt:
    time.sleep(1_000)
print(f"worker {rank} is done\\n", end="", flush=True)
"""


def test_workers_that_are_started_again_never_meet_those_of_before(tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text(LATE)
    process = start("--nproc-per-node=2", "--max-restarts=1", str(tmp_path / "late.py"))
    try:
        output, _ = process.communicate(timeout=TIME_OUT + PATIENCE)
    finally:
        end(process)
    assert process.returncode == 0, output[-3000:]
    assert "worker 0 is done" in output and "worker 1 is done" in output
