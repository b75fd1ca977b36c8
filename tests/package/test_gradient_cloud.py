"""The page of single episodes' gradients: its numbers are right, and a browser shows them."""

import json
import re
import shutil
import subprocess
import sys
from importlib import util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tests.helpers import ROOT

EXAMPLE = ROOT / "examples" / "gradient_cloud.py"
STORED = ROOT / "docs" / "_static" / "gradient_cloud.html"
BROWSER = next((path for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if path), None)


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = util.spec_from_file_location("gradient_cloud", EXAMPLE)
    assert spec is not None and spec.loader is not None
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(r"^const data = (.*);$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert found is not None
    return json.loads(found[1])


@pytest.fixture(scope="module")
def data(example: ModuleType) -> dict[str, Any]:
    return example.measure(n_episodes=300, seed=1)


def test_the_exact_gradient_is_that_of_the_formula(example: ModuleType) -> None:
    right = 1 / (1 + np.exp(-example.PREFERENCES))
    gains = example.REWARDS[:, 1] - example.REWARDS[:, 0]
    assert np.allclose(example.exact_gradient(), np.array([0.5, 1.0]) * right * (1 - right) * gains)


def test_the_mean_of_the_episodes_is_the_gradient(data: dict[str, Any]) -> None:
    for name in ("whole/none", "whole/leave_one_out", "whole/value", "to_go/none", "to_go/leave_one_out", "to_go/value"):
        points = np.array(data["gradients"][name])
        errors = points.std(axis=0, ddof=1) / np.sqrt(len(points))
        assert (np.abs(points.mean(axis=0) - data["exact"]) < 4.5 * errors).all(), name


def test_reward_to_go_and_each_baseline_shrink_the_cloud(data: dict[str, Any]) -> None:
    variance = {name: float(np.var(points, axis=0).sum()) for name, points in data["gradients"].items()}
    for kind in ("whole", "to_go"):
        assert variance[f"{kind}/value"] < 0.5 * variance[f"{kind}/leave_one_out"] < 0.25 * variance[f"{kind}/none"]
        assert variance[f"{kind}/linear"] < 0.5 * variance[f"{kind}/mean"]
    assert variance["to_go/none"] < 0.8 * variance["whole/none"] and variance["to_go/value"] < variance["whole/value"]


def test_a_point_is_the_sum_of_weights_times_scores(example: ModuleType, data: dict[str, Any]) -> None:
    right = 1 / (1 + np.exp(-example.PREFERENCES))
    for name, advantages in data["advantages"].items():
        for i in range(20):
            expected = np.zeros(2)
            for place, action, advantage in zip(data["places"][i], data["actions"][i], advantages[i], strict=True):
                expected[place] += advantage * (action - right[place])
            assert np.allclose(data["gradients"][name][i], expected, atol=0.1), name


def test_the_page_in_the_documentation_is_what_the_example_writes(example: ModuleType, tmp_path: Path) -> None:
    stored = data_of(STORED)
    example.write(stored, tmp_path / "page.html")
    assert (
        tmp_path / "page.html"
    ).read_text() == STORED.read_text(), "run python examples/gradient_cloud.py --out docs/_static"
    assert np.allclose(stored["exact"], example.exact_gradient(), atol=1e-4)


def test_the_page_needs_no_network() -> None:
    text = STORED.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
    assert "http" not in text and "src=" not in text


def test_the_command_writes_the_page(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLE), "--episodes", "20", "--out", str(tmp_path)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "to_go/value" in output and len(data_of(tmp_path / "gradient_cloud.html")["places"]) == 20


@pytest.mark.skipif(BROWSER is None, reason="there is no Chromium or Chrome to open the page with")
@pytest.mark.parametrize(("choice", "batch"), [("whole/none", 0), ("to_go/value", 0), ("to_go/value", 4)])
def test_a_browser_shows_the_numbers(choice: str, batch: int, tmp_path: Path) -> None:
    returns, baseline = choice.split("/")
    address = f"{STORED.as_uri()}#returns={returns}&baseline={baseline}&batch={batch}"
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--virtual-time-budget=2000"]
    page = subprocess.run([str(BROWSER), *options, "--dump-dom", address], capture_output=True, text=True, timeout=120).stdout
    points = np.array(data_of(STORED)["gradients"][choice])
    batches = points.reshape(-1, 2**batch, 2).mean(axis=1)
    shown = {name: value for name, value in re.findall(r'id="of-(\w+)">([^<]+)<', page)}
    assert float(shown["variance"]) == pytest.approx(batches.var(axis=0).sum(), abs=0.006)
    assert [float(number) for number in shown["mean"].strip("()").split(",")] == pytest.approx(points.mean(axis=0), abs=0.006)
    assert page.count('class="point"') == len(points)
    assert re.search(rf'id="baseline-{baseline}" aria-pressed="true"|aria-pressed="true" id="baseline-{baseline}"', page)
