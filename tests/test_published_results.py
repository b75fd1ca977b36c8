"""What is published was measured: the tables of BENCHMARKS.md and the returns in the zoo entries come from the runs' files."""

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.skipif(find_spec("rl_zoo3") is None, reason="RL Zoo (rl_zoo3) is not installed")
pd = pytest.importorskip("pandas")

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "benchmarks" / "results" / "learning"


@pytest.fixture
def results(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from learning import ALGOS, BUDGETS
    from learning_report import load

    return load(FOLDER, list(BUDGETS), list(ALGOS))


def test_the_tables_are_those_of_the_runs(results: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    import learning_report
    from learning import ALGOS, BUDGETS

    # Bootstrapped intervals take a minute, and a package of their own
    monkeypatch.setattr(learning_report, "aggregates", lambda *_: "")
    runs, curves = results
    envs, algos = (learning_report.in_order(runs, *what) for what in (("env", list(BUDGETS)), ("algo", list(ALGOS))))
    page = (ROOT / "BENCHMARKS.md").read_text().split(learning_report.BEGIN)[1].split(learning_report.END)[0]
    published = dict(section.split("\n\n", 1) for section in page.split("### ")[1:])
    expected = learning_report.tables(FOLDER, runs, curves, envs, algos)
    assert list(published) == list(expected) and len(expected) > 8
    for title, body in expected.items():
        assert not body or published[title].strip() == body, title
    random = learning_report.read_random(FOLDER)
    for title, column in (("evaluation at the end", "eval_mean"), ("training return", "return_last_100")):
        matrices, tasks = learning_report.score_matrices(runs, column, random, algos)
        assert len(tasks) == 7
        for algo, scores in matrices.items():
            flat = np.sort(scores.ravel())
            cut = len(flat) // 4
            row = f"| {learning_report.NAMES[algo]} | {len(scores)} | {flat[cut:-cut].mean():.2f} ["
            assert row in published[f"MuJoCo tasks together: {title}"], row


def test_the_entries_say_what_their_runs_came_to(results: tuple[Any, Any]) -> None:
    runs, _ = results
    text = (ROOT / "zoo_configs" / "reinforce.yml").read_text()
    tuned = re.findall(r"^# Tuned: (\S+) \+- (\S+) \((\d+) seeds, (\S+) steps\)\n(?:#.*\n)*([\w-]+):", text, re.MULTILINE)
    assert len(tuned) == text.count("\n# Tuned:") > 12
    for mean, deviation, n_seeds, n_steps, env_id in tuned:
        ours = runs[(runs["env"] == env_id) & (runs["algo"] == "reinforce")]
        found = f"{ours['eval_mean'].mean():.1f}", f"{ours['eval_mean'].std():.1f}", str(len(ours))
        assert (mean, deviation, n_seeds) == found, env_id
        assert set(ours["seed"]) == set(range(len(ours))), env_id
        assert set(ours["hyperparameters"].map(lambda entry: entry["n_timesteps"])) == {float(n_steps)}, env_id
