"""The benchmark of one line: its tasks, its runs on tiny budgets, and the arithmetic of its report."""

import os
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_checker import check_env

from sb3_reinforce import REINFORCE
from tests.helpers import ROOT

if find_spec("rl_zoo3") is None:
    pytest.skip("RL Zoo (rl_zoo3) is not installed", allow_module_level=True)
pd = pytest.importorskip("pandas")

from benchmarks.suite import many, plan, report  # noqa: E402
from benchmarks.suite.one_run import Run, train  # noqa: E402
from benchmarks.suite.tasks import CHOOSE, CONTINUOUS, TASKS, UNTOUCHED, GoalGrid, Knapsack  # noqa: E402

HEADER = "# {}\ntimesteps,cpu_seconds,n_episodes,return_last_100,eval_mean,eval_std\n0,0,0,,,\n"


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_an_environment_that_sb3_takes(task: str) -> None:
    env = TASKS[task].make()
    if task != "BipedalWalker-v3":  # whose reward is no float of Python's
        check_env(env, warn=False)
    REINFORCE("MlpPolicy", env)
    env.close()


def test_every_task_comes_to_an_end() -> None:
    for name in ("CliffWalking-v1", "GoalGrid", "Knapsack", "Blackjack-v1", "Taxi-v4"):
        env = TASKS[name].make()
        env.reset(seed=0)
        env.action_space.seed(0)
        assert any(any(env.step(env.action_space.sample())[2:4]) for _ in range(200)), name


def test_the_knapsack_pays_for_what_fits() -> None:
    env = Knapsack()
    observation, _ = env.reset(seed=0)
    weights, values = observation.reshape(2, -1)
    lightest = (np.argsort(np.argsort(weights)) < 2).astype(np.int8)
    assert env.step(lightest)[1:4] == (pytest.approx(float(values[lightest == 1].sum())), True, False)
    assert env.step(np.ones(8, np.int8))[1] == 0.0 == env.step(np.zeros(8, np.int8))[1]


def test_the_goal_alone_pays() -> None:
    env = GoalGrid()
    env.reset(seed=0)
    steps = [env.step(action) for action in [0] * 9 + [1] * 7]
    assert [step[1] for step in steps] == [0.0] * 15 + [1.0] and [step[2] for step in steps] == [False] * 15 + [True]


def test_what_is_chosen_on_and_what_is_reported_are_apart() -> None:
    assert not set(CHOOSE) & set(UNTOUCHED)
    chosen, shown = plan.changed(list(plan.CHANGES)), plan.reported()
    assert {run.task for run in chosen} == set(CHOOSE) and {run.task for run in shown} == set(TASKS)
    assert min(run.seed for run in chosen) >= 100 > max(run.seed for run in shown)
    assert len({run.path for run in [*chosen, *shown]}) == len(chosen) + len(shown)


@pytest.mark.parametrize("label", plan.CHANGES)
def test_every_change_is_one_of_arguments(label: str) -> None:
    REINFORCE("MlpPolicy", "Pendulum-v1", **plan.CHANGES[label])
    assert (label == "none") == (not plan.CHANGES[label])


def test_the_entry_of_the_zoo_that_is_reported_is_the_default_one() -> None:
    REINFORCE("MlpPolicy", "Pendulum-v1", **plan.zoo_default())


def test_runs_are_finished_and_skipped_and_one_that_fails_leaves_the_others_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finished = Run("reinforce", "CartPole-v1", 600, 2, 0, tmp_path)
    failing = Run("reinforce", "CartPole-v1", 600, 1, 0, tmp_path, "broken", {"n_steps": -1})
    drawn = Run("random", "Knapsack", 0, 1, 0, tmp_path)
    assert not many.run_all([failing, finished, drawn], 1)
    output = capsys.readouterr().out
    assert "(broken) on CartPole-v1" in output and "FAILED: ValueError('`n_steps` must be" in output
    rows = pd.read_csv(finished.path, comment="#")
    assert rows["timesteps"].is_monotonic_increasing and rows["timesteps"].iloc[-1] >= 600
    assert rows["eval_mean"].notna().tolist() == [False] * (len(rows) - 1) + [True]
    assert 8 <= rows["eval_mean"].iloc[-1] <= 500 and rows["cpu_seconds"].iloc[-1] > 0
    assert 0.3 < report.last_row(drawn.path)["eval_mean"] < 1.5
    assert "\n# advice: []\n" in finished.path.read_text() and "advice" not in drawn.path.read_text()
    assert not failing.path.exists()

    written = finished.path.stat().st_mtime_ns
    assert many.run_all([finished, drawn], 1)
    assert "2 runs, 2 of them finished before" in capsys.readouterr().out
    assert finished.path.stat().st_mtime_ns == written and train(finished) == "finished before"


@pytest.mark.slow
def test_a_benchmark_can_be_stopped(tmp_path: Path) -> None:
    """All processes end, and the next call goes on."""
    command = [sys.executable, "-u", "-m", "benchmarks.defaults", "run", "--algos", "random", "reinforce"]
    command += ["--tasks", "Knapsack", "--steps", "300000", "--folder", str(tmp_path)]
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    process = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "random on Knapsack" in line:
            break
    process.terminate()
    process.stdout.read()  # comes to its end when the last process that could write there has ended
    assert process.wait(30) == 128 + signal.SIGTERM
    assert [path.name for path in tmp_path.rglob("*.csv")] == ["random-0.csv"]


def write(
    folder: Path, algo: str, task: str, returns: list[float], n_steps: int = 100_000, n_envs: int = 1, advice: str = ""
) -> None:
    for seed, value in enumerate(returns):
        path = Run(algo, task, n_steps, n_envs, seed, folder).path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{HEADER}{advice}{n_steps},{10 + seed},5,,{value},0\n")


def test_the_report_measures_between_random_actions_and_ppo(tmp_path: Path) -> None:
    tasks = ["CartPole-v1", "Pendulum-v1", "Hopper-v5", "Swimmer-v5"]
    for task in tasks:
        write(tmp_path, "random", task, [-100.0], n_steps=0)
        write(tmp_path, "ppo", task, [50.0, 150.0])  # 1 is 100
        write(tmp_path, "reinforce", task, [200.0] * 3)
        write(tmp_path, "reinforce", task, [100.0] * 3, n_envs=8)
    write(tmp_path, "random", "Taxi-v4", [0.0], n_steps=0)
    write(tmp_path, "ppo", "Taxi-v4", [-1.0])  # PPO is worse than random actions: no scale
    write(tmp_path, "reinforce", "Taxi-v4", [5.0])
    text = report.report(tmp_path)
    assert (
        "| CartPole-v1 | -100 | 200 ± 0.000 (3) | - | 100 ± 70.7 (2) | - | - | 100 ± 0.000 (3) | 11.0 / 10.5 / - / - |" in text
    )
    assert "| REINFORCE | 4 of 24 | 3 | 1.50 [1.50, 1.50] |" in text
    assert "| REINFORCE, 8 environments | 4 of 24 | 3 | 1.00 [1.00, 1.00] |" in text
    assert "| PPO | 4 of 24 | 2 | 1.00 [" in text
    assert "None in 24 runs." in text
    assert "300,000" not in text
    write(tmp_path, "random", "Walker2d-v5", [0.0], n_steps=0)
    write(tmp_path, "reinforce", "Walker2d-v5", [300.0], n_steps=300_000)
    assert "After 300,000 timesteps:\n\n| task |" in report.report(tmp_path)


def test_changes_are_compared_on_the_tasks_and_seeds_that_both_have(tmp_path: Path) -> None:
    for task in ("CartPole-v1", "Hopper-v5", "Blackjack-v1"):
        write(tmp_path, "random", task, [0.0], n_steps=0)
        write(tmp_path, "ppo", task, [100.0])
    results = {
        ("none", "CartPole-v1"): [50.0, 70.0, 1e9],
        ("none", "Hopper-v5"): [10.0],
        ("none", "Blackjack-v1"): [0.0],
        ("n_steps=256", "CartPole-v1"): [80.0, 80.0],
        ("n_steps=256", "Hopper-v5"): [2.0],
        ("n_steps=256", "Taxi-v4"): [5.0],
    }
    for (label, task), returns in results.items():
        for seed, value in enumerate(returns):
            path = Run("reinforce", task, 100_000, 1, 100 + seed, tmp_path / "changes", label).path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{HEADER}100000,{10 if label == 'none' else 15},5,,{value},0\n")
    (row,) = report.changes(tmp_path).splitlines()[2:]
    assert row == "| `n_steps=256` | 2 | 3 | 0.43 | 0.54 | 1.50 | CartPole-v1 +0.20 | Hopper-v5 -0.08 |"


@pytest.mark.parametrize("task", CHOOSE)
def test_the_tasks_with_continuous_actions_are_known(task: str) -> None:
    env = TASKS[task].make()
    assert (task in CONTINUOUS) == isinstance(env.action_space, gym.spaces.Box)
    env.close()


def test_the_report_counts_the_warnings_of_healthy_runs_apart(tmp_path: Path) -> None:
    for task in ("CartPole-v1", "Acrobot-v1"):
        write(tmp_path, "random", task, [0.0], n_steps=0)
        write(tmp_path, "ppo", task, [100.0])
    write(tmp_path, "reinforce", "CartPole-v1", [50.0, 120.0, 49.0], advice='# advice: ["certain", "critic"]\n')
    write(tmp_path, "reinforce", "Acrobot-v1", [90.0], advice='# advice: ["critic"]\n')
    write(tmp_path, "reinforce", "Acrobot-v1", [90.0], advice="# advice: []\n", n_envs=8)
    text = report.report(tmp_path)
    assert "| certain | 2 of 4 | 1 of 1 | CartPole-v1 (3) |" in text
    assert "| critic | 3 of 4 | 1 of 1 | CartPole-v1 (3), Acrobot-v1 (1) |" in text


def test_a_damaged_result_is_named(tmp_path: Path) -> None:
    write(tmp_path, "ppo", "CartPole-v1", [1.0])
    path = Run("ppo", "CartPole-v1", 100_000, 1, 0, tmp_path).path
    path.write_text(path.read_text()[:-3])
    with pytest.raises(ValueError, match=r"ppo-0\.csv must end with an evaluation, got .*: remove it to repeat the run"):
        report.report(tmp_path)
