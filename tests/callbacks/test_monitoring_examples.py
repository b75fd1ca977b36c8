"""The examples about the variance, with tiny budgets."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT


def run(script: str, *arguments: str) -> str:
    command = [sys.executable, str(ROOT / script), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def is_png(path: Path) -> bool:
    return path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_monitoring(tmp_path):
    output = run("examples/monitoring.py", "--quick", "--timesteps", "6000", "--out", str(tmp_path / "new"))
    assert "noise scale" in output
    assert is_png(tmp_path / "new" / "gradient.png")
    assert (tmp_path / "new" / "best" / "best_model.zip").exists()
    assert list((tmp_path / "new" / "checkpoints").glob("*.zip"))
    assert "gradient/noise_scale_episodes" in (tmp_path / "new" / "log" / "progress.csv").read_text().splitlines()[0]


@pytest.mark.slow
def test_variance_reduction(tmp_path):
    output = run(
        "examples/variance_reduction.py", "--quick", "--seeds", "1", "--timesteps", "3000", "--out", str(tmp_path / "new")
    )
    assert "reward-to-go" in output
    assert is_png(tmp_path / "new" / "variance_reduction.png")


@pytest.mark.slow
def test_the_benchmark_of_the_baselines(tmp_path):
    output = run("benchmarks/baseline_variance.py", "--quick", "--tasks", "Knapsack", "--out", str(tmp_path))
    assert "| Knapsack, 0" in output
    assert (tmp_path / "baseline_variance.json").exists()
