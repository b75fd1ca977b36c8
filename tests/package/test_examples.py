"""The examples run as a user runs them: in a process of their own, from any folder."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3.common.save_util import load_from_zip_file

from sb3_reinforce import REINFORCE
from tests.helpers import ROOT

EXAMPLES = ROOT / "examples"


def run_cartpole(folder: Path, *args: str) -> str:
    """
    :param folder: The folder to run the example in
    :param args: Its arguments
    :return: What it printed
    """
    result = subprocess.run(
        [sys.executable, str(EXAMPLES / "cartpole.py"), *args],
        cwd=folder,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def folder_and_output(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("cartpole")
    return folder, run_cartpole(folder, "--timesteps", "1500", "--seed", "3", "--out", "some/folder")


def test_cartpole_writes_a_model_and_a_figure(folder_and_output: tuple[Path, str]) -> None:
    folder, _ = folder_and_output
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {"some/folder/reinforce_cartpole.zip", "some/folder/cartpole_learning_curve.png"}

    png = (folder / "some/folder/cartpole_learning_curve.png").read_bytes()
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = (int.from_bytes(png[first : first + 4], "big") for first in (16, 20))
    assert (width, height) == (1200, 675)

    model = REINFORCE.load(folder / "some/folder/reinforce_cartpole.zip")
    assert model.num_timesteps >= 1500
    data, _, _ = load_from_zip_file(folder / "some/folder/reinforce_cartpole.zip")
    assert data is not None and data["seed"] == 3


def test_cartpole_prints_what_it_measured(folder_and_output: tuple[Path, str]) -> None:
    folder, output = folder_and_output
    match = re.search(r"^Return: +(\d+\.\d) \+- (\d+\.\d) over 20 episodes", output, re.MULTILINE)
    assert match is not None, output
    assert 1 <= float(match[1]) <= 500

    steps = re.search(r"^Trained for: +([\d,]+) steps, ([\d,]+) episodes$", output, re.MULTILINE)
    assert steps is not None, output
    model = REINFORCE.load(folder / "some/folder/reinforce_cartpole.zip")
    assert int(steps[1].replace(",", "")) == model.num_timesteps

    assert re.search(r"^Wall time: +\d+\.\d s", output, re.MULTILINE)
    for file in re.findall(r"\S+\.(?:zip|png)", output):
        assert (folder / file).is_file()
    assert len(re.findall(r"\S+\.(?:zip|png)", output)) == 2


def test_cartpole_is_reproducible(folder_and_output: tuple[Path, str], tmp_path: Path) -> None:
    _, first = folder_and_output
    second = run_cartpole(tmp_path, "--timesteps", "1500", "--seed", "3")
    results = [re.findall(r"^(?:Return|Trained for): .*$", output, re.MULTILINE) for output in (first, second)]
    assert results[0] == results[1] and len(results[0]) == 2
    assert (tmp_path / "output" / "reinforce_cartpole.zip").is_file(), "the default folder"


def test_a_baseline_and_a_policy_step_of_ones_own_train() -> None:
    command = [sys.executable, str(EXAMPLES / "own_strategies.py"), "--timesteps", "1500"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert re.search(r"^Mean return of the last \d+ episodes: \d+", output)
    assert re.search(r"^Share of the last step that was taken: (1|0\.\d+)$", output, re.MULTILINE)


def test_the_strategies_of_the_documentation_train() -> None:
    text = (ROOT / "docs" / "guides" / "own_parts.md").read_text(encoding="utf-8")
    program = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL)).replace("learn(5_000)", "learn(600)")
    names: dict[str, Any] = {}
    exec(program, names)
    model = names["model"]
    assert model.uses_critic and model.logger.name_to_value["train/step_size"] == 0.1
