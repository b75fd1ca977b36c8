"""What is published was measured: the tables of BENCHMARKS.md and the returns in the zoo entries come from the runs' files."""

import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers import ROOT

if find_spec("rl_zoo3") is None:
    pytest.skip("RL Zoo (rl_zoo3) is not installed", allow_module_level=True)
pd = pytest.importorskip("pandas")

from benchmarks import defaults, variants  # noqa: E402
from benchmarks.learning import aggregates, report, times  # noqa: E402
from benchmarks.learning import results as finished  # noqa: E402
from benchmarks.learning.plan import ALGOS, BUDGETS  # noqa: E402
from benchmarks.suite import plan as suite_plan  # noqa: E402
from benchmarks.suite import report as suite_report  # noqa: E402

FOLDER = ROOT / "benchmarks" / "results" / "learning"


def published(folder: Path, copy: Path) -> Path:
    """The published results; runs that were made since, and are not published, do not count."""
    listing = subprocess.run(["git", "ls-files", "-z", "."], cwd=folder, capture_output=True, text=True)
    if listing.returncode:  # not a repository
        return folder
    for name in listing.stdout.split("\0")[:-1]:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / name, copy / name)
    return copy


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return published(FOLDER, tmp_path)


@pytest.fixture
def defaults_folder(tmp_path: Path) -> Path:
    return published(suite_plan.RESULTS, tmp_path)


@pytest.fixture
def results(folder: Path) -> tuple[Any, Any]:
    runs, curves = finished.load(folder, list(BUDGETS), list(ALGOS))
    return runs, times.set_clocks(curves, folder)


def between(marks: tuple[str, str]) -> str:
    return (ROOT / "BENCHMARKS.md").read_text().split(marks[0])[1].split(marks[1])[0]


def test_the_tables_are_those_of_the_runs(folder: Path, results: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    # Bootstrapped intervals take a minute, and a package of their own
    monkeypatch.setattr(report, "aggregates", lambda *_: "")
    runs, curves = results
    envs, algos = (finished.in_order(runs, *what) for what in (("env", list(BUDGETS)), ("algo", list(ALGOS))))
    page = between(report.MARKS)
    published = dict(section.split("\n\n", 1) for section in page.split("### ")[1:])
    expected = report.tables(folder, runs, curves, envs, algos)
    assert list(published) == list(expected) and len(expected) > 8
    for title, body in expected.items():
        assert not body or published[title].strip() == body, title
    random = finished.read_random(folder)
    for title, column in (("evaluation at the end", "eval_mean"), ("training return", "return_last_100")):
        matrices, tasks = aggregates.score_matrices(runs, column, random, algos)
        section = published[f"MuJoCo tasks together: {title}"]
        assert len(tasks) == 10 and section.startswith(f"Over {len(tasks)} tasks: {', '.join(tasks)}. Left out")
        rows = {name: cells for name, *cells in re.findall(r"^\| ([^|]+) \| (\d+) \| ([\d.]+) [^|]*\| (\S+)", section, re.M)}
        for algo, scores in matrices.items():
            flat = np.sort(scores.ravel())
            cut = len(flat) // 4
            ours, theirs = matrices["reinforce"][:, None], scores[None]
            better = f"{((ours > theirs) + 0.5 * (ours == theirs)).mean():.2f}" if algo != "reinforce" else "-"
            assert rows.pop(finished.NAMES[algo]) == [str(len(scores)), f"{flat[cut:-cut].mean():.2f}", better], algo
        assert not rows


def test_the_comparison_is_that_of_the_runs(folder: Path, results: tuple[Any, Any]) -> None:
    runs, _ = results
    env_ids = finished.in_order(runs, "env", list(BUDGETS))
    text = report.comparison(runs, finished.read_random(folder), env_ids)
    assert between(report.SUMMARY_MARKS).strip() == text and text.count("**ahead**") + text.count("level") > 20


def test_the_entries_say_what_their_runs_came_to(results: tuple[Any, Any]) -> None:
    runs, _ = results
    text = (ROOT / "zoo_configs" / "reinforce.yml").read_text()
    tuned = re.findall(r"^# Tuned: (\S+) \+- (\S+) \((\d+) seeds, (\S+) steps\)\n(?:#.*\n)*([\w/-]+):", text, re.MULTILINE)
    assert len(tuned) == text.count("\n# Tuned:") > 12
    for mean, deviation, n_seeds, n_steps, env_id in tuned:
        ours = runs[(runs["env"] == env_id) & (runs["algo"] == "reinforce")]
        found = f"{ours['eval_mean'].mean():.1f}", f"{ours['eval_mean'].std():.1f}", str(len(ours))
        assert (mean, deviation, n_seeds) == found, env_id
        assert set(ours["seed"]) == set(range(len(ours))), env_id
        assert set(ours["hyperparameters"].map(lambda entry: entry["n_timesteps"])) == {float(n_steps)}, env_id


@pytest.mark.parametrize(("file", "algo", "n_tuned"), [("lstm", "RecurrentREINFORCE", 3), ("mask", "MaskableREINFORCE", 1)])
def test_the_entries_of_the_variants_say_what_their_runs_came_to(file: str, algo: str, n_tuned: int) -> None:
    text = (ROOT / "zoo_configs" / f"reinforce_{file}.yml").read_text()
    tuned = re.findall(r"^# Tuned: (\S+) \+- (\S+) \((\d+) seeds, (\S+) steps\)\n(?:#.*\n)*([\w-]+):", text, re.MULTILINE)
    assert len(tuned) == text.count("\n# Tuned") == n_tuned
    tasks = {task.entry: name for name, task in variants.TASKS.items()}
    for mean, deviation, n_seeds, n_steps, entry in tuned:
        runs = [variants.Run(algo, tasks[entry], seed, variants.RESULTS) for seed in range(int(n_seeds))]
        found = [variants.read(run.path)["eval_mean"] for run in runs]
        assert (mean, deviation) == (f"{np.mean(found):.1f}", f"{np.std(found, ddof=1):.1f}"), entry
        assert len(list(runs[0].path.parent.glob(f"{algo}-*.csv"))) == len(runs) >= 5, entry
        assert variants.TASKS[tasks[entry]].n_steps == float(n_steps), entry


def test_the_tables_of_the_defaults_are_those_of_their_runs(defaults_folder: Path) -> None:
    assert between(defaults.MARKS).strip() == suite_report.report(defaults_folder).strip()


def test_the_tables_of_other_pages_are_those_of_their_runs(defaults_folder: Path) -> None:
    for page, make in ((ROOT / "docs" / "how_to_choose.md", suite_report.changes), (ROOT / "README.md", suite_report.front)):
        table = page.read_text().split(defaults.MARKS[0])[1].split(defaults.MARKS[1])[0].strip()
        assert table == make(defaults_folder).strip() and table.count("\n") > 2
