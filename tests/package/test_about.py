"""`python -m sb3_reinforce` tells a user, and a bug report, what is installed."""

import os
import subprocess
import sys
from pathlib import Path

import stable_baselines3

import sb3_reinforce
from sb3_reinforce.zoo.cli import VERBS
from tests.helpers import ROOT


def about(*arguments: str, folder: Path) -> str:
    command = [sys.executable, "-m", "sb3_reinforce", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True).stdout


def test_it_says_what_is_installed_and_where_to_read(tmp_path: Path) -> None:
    output = about(folder=tmp_path)
    assert output.startswith(f"sb3-reinforce {sb3_reinforce.__version__} in {ROOT / 'sb3_reinforce'}\n")
    assert f"- Stable-Baselines3: {stable_baselines3.__version__}\n" in output
    for name in ("Python", "PyTorch", "Numpy", "Gymnasium", "sb3-contrib", "RL Zoo"):
        assert f"\n- {name}: " in output
    assert f"Documentation: {ROOT / 'docs' / 'index.md'}" in output
    assert all(verb in output for verb in VERBS)


def test_it_says_the_version_alone(tmp_path: Path) -> None:
    assert about("--version", folder=tmp_path) == f"sb3-reinforce {sb3_reinforce.__version__}\n"


def test_a_reader_may_leave_after_the_first_line(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    command = [sys.executable, "-m", "sb3_reinforce"]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        os.read(process.stdout.fileno(), 1)
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 0 and not errors
