"""The benchmark of learning, on tiny budgets: its files, what it skips and repeats, and the arithmetic of its report."""

import fcntl
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest

from tests.helpers import ROOT

if find_spec("rl_zoo3") is None:
    pytest.skip("RL Zoo (rl_zoo3) is not installed", allow_module_level=True)
pd = pytest.importorskip("pandas")

from benchmarks import common  # noqa: E402
from benchmarks.learning import aggregates, entries, files, one_run, plan, report, results, times  # noqa: E402

TINY = ["--envs", "CartPole-v1", "--seeds", "0", "--budget-factor", "0.002"]


def benchmark(*arguments: str, folder: Path, status: int = 0) -> str:
    """Run a command of the benchmark to its end and return what it printed."""
    command = [sys.executable, "-m", "benchmarks.learning", *arguments, "--folder", str(folder)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.returncode == status, process.stdout
    return process.stdout


@pytest.mark.slow
def test_runs_are_finished_skipped_and_repeated(tmp_path: Path) -> None:
    """One begins anew what was left unfinished, one fails and leaves the other alone, and what is finished stays."""
    folder = tmp_path / "CartPole-v1"
    (folder / "a2c-0.csv.partial").mkdir(parents=True)
    (folder / "reinforce_mc-0.csv.partial").write_text("left over")
    output = benchmark("run", "--algos", "a2c", "reinforce_mc", *TINY, folder=tmp_path, status=1)
    assert "a2c on CartPole-v1, seed 0: FAILED" in output and "IsADirectoryError" in (folder / "a2c-0.log").read_text()

    path = folder / "reinforce_mc-0.csv"
    assert not path.with_name(path.name + ".partial").exists() and not path.with_suffix(".log").exists()
    info = json.loads(path.read_text().splitlines()[0].removeprefix("#"))
    assert info["budget"] == 200 and info["entry"].startswith("reinforce.yml: CartPole-v1")
    assert info["hyperparameters"]["gae_lambda"] == 1.0 and info["machine"]
    rows = pd.read_csv(path, comment="#")
    assert rows["timesteps"].is_monotonic_increasing and rows["timesteps"].iloc[-1] >= 200
    assert rows["eval_mean"].notna().tolist() == [False] * (len(rows) - 1) + [True]
    assert 8 <= rows["eval_mean"].iloc[-1] <= 500 and rows["cpu_seconds"].iloc[-1] > 0

    written = path.stat().st_mtime_ns
    assert "1 runs, 1 of them finished before" in benchmark("run", "--algos", "reinforce_mc", *TINY, folder=tmp_path)
    assert path.stat().st_mtime_ns == written
    with pytest.raises(ValueError, match="budget"):
        files.is_finished(plan.Run("reinforce_mc", "CartPole-v1", 0, 300, tmp_path))


@pytest.mark.parametrize("n_bytes", [0, 30, -1, -20])
def test_a_damaged_file_is_named(n_bytes: int, tmp_path: Path) -> None:
    """Cut anywhere: in the first line, in the last row, or before it."""
    write(tmp_path, "Hopper-v5", "reinforce", 0, 100.0, speed=10)
    path = tmp_path / "Hopper-v5" / "reinforce-0.csv"
    run = plan.Run("reinforce", "Hopper-v5", 0, 1000, tmp_path)
    assert files.is_finished(run)
    path.write_bytes(path.read_bytes()[:n_bytes])
    for function in (lambda: files.is_finished(run), lambda: results.load(tmp_path, ["Hopper-v5"], ["reinforce"])):
        with pytest.raises(ValueError, match=r"reinforce-0\.csv must .* remove it to repeat the run"):
            function()


@pytest.mark.parametrize("row", ["1000,3.1", "abc,1,1,1,1,1,1", "1000,1,1,1,1,nan,1"])
def test_a_last_row_that_is_none_is_named(row: str, tmp_path: Path) -> None:
    write(tmp_path, "Hopper-v5", "reinforce", 0, 100.0, speed=10)
    path = tmp_path / "Hopper-v5" / "reinforce-0.csv"
    path.write_text(f"{path.read_text()}{row}\n")
    with pytest.raises(ValueError, match=r"reinforce-0\.csv must go to the end of its run, .* remove it to repeat the run"):
        results.load(tmp_path, ["Hopper-v5"], ["reinforce"])


@pytest.mark.parametrize("line", ["5", "# {}", '# {"algo": "ppo"}'])
def test_a_first_line_that_says_nothing_is_named(line: str, tmp_path: Path) -> None:
    (tmp_path / "ppo-0.csv").write_text(f"{line}\ntimesteps\n")
    with pytest.raises(ValueError, match=r"ppo-0\.csv must begin with a line of JSON"):
        files.read_metadata(tmp_path / "ppo-0.csv")


def test_other_damaged_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "random.csv").touch()
    with pytest.raises(ValueError, match=r"random\.csv must have the columns env and mean"):
        results.read_random(tmp_path)
    write(tmp_path, "Hopper-v5", "ppo", 0, 100.0, speed=10)
    _, curves = results.load(tmp_path, ["Hopper-v5"], ["ppo"])
    (tmp_path / "speed" / "Hopper-v5").mkdir(parents=True)
    (tmp_path / "speed" / "Hopper-v5" / "ppo-0.csv").touch()
    with pytest.raises(ValueError, match=r"ppo-0\.csv must begin with a line of JSON"):
        times.set_clocks(curves, tmp_path)


def test_runs_of_different_budgets_are_not_compared(tmp_path: Path) -> None:
    for algo in ("reinforce", "ppo"):
        write(tmp_path, "Hopper-v5", algo, 0, 100.0, speed=10)
    path = tmp_path / "Hopper-v5" / "reinforce-0.csv"
    path.write_text(path.read_text().replace('"budget": 1000', '"budget": 500', 1))
    with pytest.raises(ValueError, match=r"must have the budget of the runs beside it, 500, got 1000"):
        results.load(tmp_path, ["Hopper-v5"], ["reinforce", "ppo"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workers", "0"], "must be an integer of at least 1, got '0'"),
        (["--workers", "-1"], "must be an integer of at least 1, got '-1'"),
        (["--seeds", "0-4"], "must be an integer of at least 0, got '0-4'"),
        (["--envs", "Hopper"], "invalid choice"),
        (["--algos", "sac"], "invalid choice"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(arguments: list[str], message: str, tmp_path: Path) -> None:
    assert f"argument {arguments[0]}: {message}" in benchmark("run", *arguments, folder=tmp_path, status=2)


@pytest.mark.slow
def test_two_runners_may_come_to_the_same_run(tmp_path: Path) -> None:
    with ThreadPoolExecutor() as pool:
        runners = [pool.submit(benchmark, "run", "--algos", "reinforce", *TINY, folder=tmp_path) for _ in range(2)]
        for runner in runners:
            assert "FAILED" not in runner.result()
    assert [path.name for path in (tmp_path / "CartPole-v1").iterdir()] == ["reinforce-0.csv"]


def test_a_runner_leaves_the_files_of_another_alone(tmp_path: Path) -> None:
    folder = tmp_path / "CartPole-v1"
    folder.mkdir()
    partial, log = folder / "reinforce-0.csv.partial", folder / "reinforce-0.log"
    log.write_text("what the other one has to say\n")
    with open(partial, "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("its rows")
        file.flush()
        output = benchmark("run", "--algos", "reinforce", *TINY, folder=tmp_path)
        assert "another process is at it" in output
        assert partial.read_text() == "its rows" and log.read_text() == "what the other one has to say\n"


def test_a_run_that_another_process_ends_in_between_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = plan.Run("reinforce", "CartPole-v1", 0, 100, tmp_path)
    # Between opening the file and locking it
    monkeypatch.setattr(common.fcntl, "flock", lambda *_: run.partial.rename(run.path))
    one_run.train(run)
    assert run.path.exists() and not run.partial.exists()


def test_entries() -> None:
    assert (
        entries.matching_entry({"Hopper-v3": {}, "Hopper-v4": {}, "Hopper-v6": {}, "default": {}}, "Hopper-v5") == "Hopper-v4"
    )
    assert entries.matching_entry({"HopperBulletEnv-v0": {}, "default": {}}, "Hopper-v5") is None
    source, entry = entries.find_entry("ppo", "DelayedLunarLander-v3")
    plain = entries.find_entry("ppo", "LunarLander-v3")[1]
    assert source == "ppo.yml: LunarLander-v3; discount 1" and plain["gamma"] < 1
    assert entry == {**plain, "gamma": 1.0}
    assert "horizon" in entries.find_entry("reinforce", "LunarLander-v3")[1]
    assert "horizon" not in entries.find_entry("reinforce", "DelayedLunarLander-v3")[1]  # the reward comes later
    source, entry = entries.find_entry("reinforce_mc", "DelayedHopper-v5")
    assert source == "reinforce.yml: Hopper-v5, with overrides of learning_mc.yml; discount 1"
    assert entry["gae_lambda"] == entry["gamma"] == 1.0
    plain = entries.find_entry("reinforce_mc", "Hopper-v5")[1]
    assert entry["n_steps"] != plain["n_steps"] != entries.find_entry("reinforce", "DelayedHopper-v5")[1]["n_steps"]
    source, entry = entries.find_entry("trpo", "Reacher-v5")
    assert source == "SB3's defaults with VecNormalize" and entry["normalize"] is True
    for env_id in plan.BUDGETS:
        monte_carlo = entries.find_entry("reinforce_mc", env_id)[1]
        assert monte_carlo["gae_lambda"] == 1.0 and monte_carlo["complete_episodes"] is True
    assert entries.find_entry("reinforce", "Pendulum-v1")[1]["gae_lambda"] < 1.0
    source, entry = entries.find_entry("ppo_cleanrl", "Hopper-v5")
    assert source == "learning_others.yml: Hopper-v5" and entry["n_steps"] == 2048
    assert entries.find_entry("ppo", "Hopper-v5")[0] == "ppo.yml: Hopper-v4"
    narrow, wide = (entries.find_entry(algo, "Ant-v5")[1] for algo in ("trpo_narrow", "trpo"))
    assert narrow == {**wide, "policy_kwargs": "dict(log_std_init=-1)"}  # which REINFORCE has
    assert narrow["policy_kwargs"] == entries.find_entry("reinforce", "Ant-v5")[1]["policy_kwargs"]
    for env_id in plan.MINATAR:
        network = [entries.find_entry(algo, env_id)[1]["policy_kwargs"] for algo in ("reinforce", "ppo")]
        assert network[0] == network[1] and entries.find_entry("ppo", env_id)[0].startswith("learning_others.yml: MinAtar")
    pong, ppo = (entries.find_entry(algo, "PongNoFrameskip-v4")[1] for algo in ("reinforce", "ppo"))
    assert all(pong[name] == ppo[name] for name in ("env_wrapper", "frame_stack", "policy", "n_envs", "n_timesteps"))


def test_a_run_is_of_today_with_the_defaults_of_its_time() -> None:
    entry = entries.find_entry("reinforce", "MinAtar/Breakout-v1")[1]  # which leaves much to the defaults
    assert entries.is_of_today(entry, "reinforce", "MinAtar/Breakout-v1", "0.2.0")
    for version in ("0.1.0", None):
        assert not entries.is_of_today(entry, "reinforce", "MinAtar/Breakout-v1", version)
    entry = entries.find_entry("reinforce", "Hopper-v5")[1]
    assert entries.is_of_today(entry, "reinforce", "Hopper-v5", "0.1.0")
    assert not entries.is_of_today({**entry, "gamma": 0.5}, "reinforce", "Hopper-v5", "0.1.0")


def test_seeds_come_one_after_the_other(tmp_path: Path) -> None:
    runs = plan.plan(["ppo", "trpo"], ["CartPole-v1", "Hopper-v5"], None, tmp_path)
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)
    counts = {key: sum((run.algo, run.env_id) == key for run in runs) for key in {(run.algo, run.env_id) for run in runs}}
    assert counts["trpo", "Hopper-v5"] == counts["ppo", "Hopper-v5"] == 5 and counts["trpo", "CartPole-v1"] == 10
    assert [plan.seeds_of("reinforce", env_id) for env_id in ("Hopper-v5", "Ant-v5", "Pendulum-v1")] == [20, 10, 10]
    assert [plan.seeds_of(algo, "Ant-v5") for algo in ("trpo", "ppo", "reinforce_mc")] == [3, 3, 5]
    assert len(plan.plan(["ppo", "ppo"], ["CartPole-v1"], [0, 0, 1], tmp_path)) == 2  # nothing twice
    planned = {(run.algo, run.env_id) for run in plan.plan(None, [*plan.BUDGETS], None, tmp_path)}
    assert ("reinforce_mc", "Hopper-v5") in planned and ("reinforce_mc", "CartPole-v1") not in planned
    assert ("reinforce", "CartPole-v1") in planned and ("reinforce_mc", "DelayedHopper-v5") in planned
    assert {env_id for algo, env_id in planned if algo == "ppo_cleanrl"} == {"Hopper-v5"}
    assert {env_id for algo, env_id in planned if algo == "trpo_narrow"} == {"Ant-v5"}
    assert {algo for algo, env_id in planned if env_id in plan.PICTURES} == {"reinforce", "ppo"}


def test_gymnasium_knows_atari_games_before_a_run() -> None:
    pytest.importorskip("ale_py")
    for env_id in plan.ATARI:
        entries.register_env(env_id)
        assert gym.spec(env_id).id == env_id


def test_delayed_rewards() -> None:
    """The last reward is the whole return, also where the time limit ends the episode."""
    entries.register_env("DelayedPendulum-v1")
    delayed, plain = gym.make("DelayedPendulum-v1"), gym.make("Pendulum-v1")
    assert delayed.spec is not None and delayed.spec.max_episode_steps == 200
    for seed in (0, 1):
        rewards: dict[gym.Env, list[float]] = {}
        for env in (delayed, plain):
            env.reset(seed=seed)
            env.action_space.seed(seed)
            truncated = False
            while not truncated:
                _, reward, _, truncated, _ = env.step(env.action_space.sample())
                rewards.setdefault(env, []).append(float(reward))
        assert rewards[delayed][:-1] == [0.0] * 199
        assert np.isclose(rewards[delayed][-1], sum(rewards[plain]))


def write(folder: Path, env_id: str, algo: str, seed: int, final: float, speed: float, horizon: int | None = None) -> None:
    """A run whose return rises along a line, to be reached at 9/10 of the steps."""
    path = folder / env_id / f"{algo}-{seed}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    steps = np.arange(100, 1001, 100)
    lines = [f"{t},{t / speed},{t / speed},{t},{final * t / 1000},," for t in steps]
    lines.append(f"1000,{1000 / speed},{1000 / speed},1000,{final},{2 * final},1")
    info = {"algo": algo, "env": env_id, "seed": seed, "budget": 1000, "entry": "some.yml: entry"}
    info["hyperparameters"] = {"n_envs": 4, "normalize": True}
    if algo == "reinforce":
        info["hyperparameters"] = {**entries.find_entry(algo, env_id)[1], "n_steps": 1000 + seed, "horizon": horizon}
    path.write_text("\n".join([f"# {json.dumps(info)}", ",".join(files.COLUMNS), *lines]) + "\n")


def test_report(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(aggregates, "N_BOOTSTRAPS", 50)
    for env_id in ("Hopper-v5", "Swimmer-v5"):
        for seed, final in enumerate((100.0, 200.0, 300.0)):
            write(tmp_path, env_id, "reinforce", seed, final, speed=10)
        for seed, final in enumerate((400.0, 600.0)):
            write(tmp_path, env_id, "ppo", seed, final, speed=2)
        for seed, final in enumerate((400.0, 500.0, 600.0)):
            write(tmp_path, env_id, "trpo", seed, final, speed=1)
    write(tmp_path, "Hopper-v5", "a2c", 0, 500.0, speed=1)  # on one of the tasks only
    (tmp_path / "random.csv").write_text("env,mean,std,n_episodes\nHopper-v5,0,1,5\nSwimmer-v5,0,1,5\n")
    page, (begin, end) = tmp_path / "page.md", report.MARKS
    page.write_text(f"Before\n{begin}\nold{end}\nAfter\n")
    env_ids, algos = ["Hopper-v5", "Swimmer-v5", "Walker2d-v5"], ["reinforce", "ppo", "trpo", "a2c"]
    report.report(tmp_path, tmp_path / "docs", env_ids, algos, page)

    text = (tmp_path / "report.md").read_text()
    assert page.read_text() == f"Before\n{begin}\n\n{text}\n{end}\nAfter\n"
    assert text in capsys.readouterr().out
    assert "| Hopper-v5 | 200 ± 100 (3) | 500 ± 141 (2) |" in text  # training
    assert "| Hopper-v5 | 400 ± 200 (3) | 1,000 ± 283 (2) |" in text  # evaluation
    # 180: the second seed's run gets there after 900 of 1000 steps, PPO's after 450 and 300
    assert "| Hopper-v5, PPO | 180 | 90.0 | 200 | 2.22 | 900 | 400 |" in text
    assert (
        "| some.yml: entry; 1 environment, normalized | some.yml: entry; 4 environments, normalized |" in text
        and "Walker2d" not in text.split("Left out")[0]
    )
    # The seeds that were run with n_steps=1001 and 1002, where the entry of Hopper has 1000 and that of Swimmer 4000
    swimmers = ", ".join(f"reinforce-{seed} on Swimmer-v5" for seed in range(3))
    assert f"today's\n\nreinforce-1 on Hopper-v5, reinforce-2 on Hopper-v5, {swimmers}\n\n### " in text
    published = " | ".join(f"**{value}**" for value in ("2,590", "994", "1,884", "2,698", "2,680", "2,467", "839", "1,253"))
    assert f"| Hopper-v5 | 400 ± 200 (3) | - | {published} |" in text  # without a run of Monte Carlo
    assert (
        "| Hopper-v5 | 400 ± 200 (3) | - | - | **2,614** | **3,218** | **2,047** | **2,337** | **416** | **1,654** |" in text
    )
    assert text.count("[OmniSafe](https") == text.count("[Tianshou](https") == 2 and text.count("[SLM-Lab](https") == 1
    with pytest.raises(ValueError, match=r"report\.md must hold the lines"):
        report.report(tmp_path, tmp_path / "docs", env_ids, algos, tmp_path / "report.md")
    assert (tmp_path / "docs/learning_mujoco.png").stat().st_size > 0
    assert (tmp_path / "docs/learning_mujoco_cpu.png").stat().st_size > 0
    if find_spec("rliable") is not None:
        assert "Over 2 tasks: Swimmer-v5, Hopper-v5." in text and ", A2C." in text and "| A2C | 1 |" not in text
        one = aggregates.estimate({"one": np.array([[1.0, 3.0]]), "two": np.ones((2, 2))}, lambda x: float(x.mean()))
        assert one == {"one": "2.00", "two": "1.00 [1.00, 1.00]"}  # one seed tells of no interval
        assert (
            "| REINFORCE | 3 | 0.40 [" in text
            and "| PPO | 2 | 1.00 [" in text
            and "| TRPO | 3 | 1.00 | 0.00 [0.00, 0.00]" in text
        )


def test_the_comparison_tells_ahead_from_level() -> None:
    series = pd.Series
    assert report.verdict(series([110.0, 112.0]), series([99.0, 101.0]), 0.0) == "**ahead**: 100, +11%"
    assert report.verdict(series([90.0, 92.0]), series([99.0, 101.0]), 50.0) == "*behind*: 100, -18%"
    assert report.verdict(series([500.0, 500.0]), series([99.0, 101.0]), 0.0) == "**ahead**: 100, 5 times"
    assert report.verdict(series([80.0, 130.0]), series([99.0, 101.0]), 0.0) == "level: 100"
    assert report.verdict(series([100.0, 100.0]), series([100.0, 100.0]), 0.0) == "level: 100"
    assert report.verdict(series([5.0, 5.0]), series([-99.0, -101.0]), -50.0) == "**ahead**: -100, which has learned nothing"
    assert report.verdict(series([80.0, 81.0]), series([100.0]), 0.0) == "open: 100 (one seed)"
    assert report.verdict(series([80.0, 81.0]), series(dtype=float), 0.0) == "-"
    assert report.verdict(series([110.0, 110.0]), series([100.0, 100.0]), 0.0) == "**ahead**: 100, +10%"


def test_with_few_seeds_a_difference_has_to_be_larger() -> None:
    few, many = pd.Series([0.0, 2.0]), pd.Series([0.0, 2.0] * 10)
    assert np.isclose(report.margin(few, few), 4.302653 * 2**0.5)  # Student's quantile with two degrees of freedom
    assert np.isclose(report.margin(many, many), 2.024394 * (2 * 20 / 19 / 20) ** 0.5)  # with 38
    # More than twice the standard error, and not clear all the same
    assert report.verdict(few + 4, few, -10.0) == "level: 1.00" and report.verdict(many + 4, many, -10.0).startswith(
        "**ahead**"
    )


def test_the_interval_of_a_score_has_the_chance_in_the_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rliable")
    monkeypatch.setattr(aggregates, "N_BOOTSTRAPS", 200)
    ours, reference = np.full((3, 2), 2.0), np.array([[0.5, 0.5], [1.0, 1.0], [1.5, 1.5]])
    alike = np.ones((3, 2))
    found = aggregates.estimate({"scatter": (ours, reference), "none": (ours, alike)}, aggregates.scaled_iqm)
    low, high = (float(bound) for bound in found["scatter"].split("[")[1].strip("]").split(", "))
    assert found["none"] == "2.00 [2.00, 2.00]" and low < 1.8 < 2.0 < 2.3 < high


def test_a_mean_is_told_without_each_of_its_tasks() -> None:
    runs = pd.DataFrame(
        [
            {"env": env_id, "algo": algo, "eval_mean": value, "return_last_100": 2 * value}
            for env_id, ours in (("Hopper-v5", 1.0), ("Ant-v5", 4.0))
            for algo, value in (("reinforce", ours), ("trpo", 1.0))
            for _ in range(3)
        ]
    )
    text = aggregates.without_one(runs, {"Hopper-v5": 0.0, "Ant-v5": 0.0})
    assert "| none | 2.50 | 2.50 |" in text and "| Ant-v5 | 1.00 | 1.00 |" in text and "| Hopper-v5 | 4.00 | 4.00 |" in text
    assert aggregates.without_one(runs, {"Ant-v5": 0.0}) == "There are no two tasks with runs enough."


def test_the_scale_of_a_task_is_the_opponent_that_counts() -> None:
    def mean(*algos: tuple[str, float]) -> float:
        rows = [{"env": "Ant-v5", "algo": algo, "eval_mean": value} for algo, value in algos for _ in range(3)]
        matrices, tasks = aggregates.score_matrices(pd.DataFrame(rows), "eval_mean", {"Ant-v5": 0.0}, [*plan.ALGOS])
        assert tasks == ["Ant-v5"] and set(matrices) == {"reinforce", "trpo"}
        return aggregates.interquartile_mean(matrices["reinforce"])

    assert mean(("reinforce", 4.0), ("trpo", 1.0)) == 4.0
    assert mean(("reinforce", 4.0), ("trpo", 1.0), ("trpo_narrow", 2.0)) == 2.0


def test_the_opponent_that_counts_takes_the_place_of_one_that_does_not_learn(tmp_path: Path) -> None:
    for seed in range(2):
        write(tmp_path, "Hopper-v5", "reinforce", seed, 300.0 + seed, speed=10)
        write(tmp_path, "Hopper-v5", "ppo", seed, 10.0 + seed, speed=10)

    def row() -> str:
        runs, _ = results.load(tmp_path, ["Hopper-v5"], [*plan.ALGOS])
        return report.comparison(runs, {"Hopper-v5": 0.0}, ["Hopper-v5"]).splitlines()[-1]

    assert "**ahead**: 21.0, 29 times | - | - |" in row()
    for seed in range(2):
        write(tmp_path, "Hopper-v5", "ppo_cleanrl", seed, 200.0 + seed, speed=10)
    assert "**ahead**: 401, +50% (PPO, CleanRL's entry) | - | - |" in row()


def test_longer_runs_stand_beside_published_ones(tmp_path: Path) -> None:
    for seed in range(2):
        write(tmp_path, "Ant-v5", "reinforce", seed, 1000.0, speed=10)
        write(tmp_path / "long", "Ant-v5", "reinforce", seed, 2700.0, speed=10)
    runs, _ = results.load(tmp_path, ["Ant-v5"], ["reinforce"])
    long, _ = results.load(tmp_path / "long", ["Ant-v5"], ["reinforce"], "long")
    text = report.beside_published({"1M": ("reinforce", runs), "3M": ("reinforce", long)}, "10M")
    row = "| Ant-v5 | 2,000 ± 0.000 (2) | 5,400 ± 0.000 (2) | **5,547** | 5,292 | **6,027** | **5,978** | 1,108 | 2,138 |"
    assert row in text
    planned = plan.plan(["reinforce"], [*plan.LONG], plan.LONG_SEEDS, tmp_path, kind="long")
    assert len(planned) == 12 and planned[0].budget == 3_000_000 and "long" in planned[0].path.parts


def test_clocks_are_those_of_the_measurement_in_turn(tmp_path: Path) -> None:
    """PPO's second run was made on a day when the machine was half as fast."""

    def median_times() -> str:
        runs, curves = results.load(tmp_path, ["Hopper-v5"], ["reinforce", "ppo"])
        curves = times.set_clocks(curves, tmp_path)
        return times.times(runs, curves, {"Hopper-v5": 0.0}, ["Hopper-v5"], ["reinforce", "ppo"])

    write(tmp_path, "Hopper-v5", "reinforce", 0, 100.0, speed=10)
    for seed, speed in ((0, 10), (1, 5)):
        write(tmp_path, "Hopper-v5", "ppo", seed, 100.0, speed=speed)
    plain = "| Hopper-v5, PPO | 90.0 | 90.0 | 135 | 1.50 | 900 | 900 |"
    assert plain in median_times()
    for seed, speed in enumerate((50, 40, 1)):
        write(tmp_path / "speed", "Hopper-v5", "ppo", seed, 0.0, speed=speed)
    assert plain in median_times()  # REINFORCE has not been measured
    write(tmp_path / "speed", "Hopper-v5", "reinforce", 0, 0.0, speed=100)
    assert "| Hopper-v5, PPO | 90.0 | 9.00 | 22.5 | 2.50 | 900 | 900 |" in median_times()


def test_returns_of_episodes_cut_at_a_horizon_are_not_compared(tmp_path: Path) -> None:
    write(tmp_path, "Hopper-v5", "ppo", 0, 100.0, speed=10)
    for horizon, compared in ((None, True), (300, False)):
        write(tmp_path, "Hopper-v5", "reinforce", 0, 100.0, speed=10, horizon=horizon)
        runs, curves = results.load(tmp_path, ["Hopper-v5"], ["reinforce", "ppo"])
        text = times.times(runs, curves, {"Hopper-v5": 0.0}, ["Hopper-v5"], ["reinforce", "ppo"])
        assert ("Hopper-v5, PPO" in text) == compared


@pytest.mark.slow
def test_speed_repeats_the_first_steps_of_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # In a process of its own: RL Zoo patches Gymnasium's `TimeLimit` when it is imported
    script = """
import sys
from pathlib import Path
from benchmarks.learning import files, one_run, plan
one_run.SPEED_STEPS = files.SPEED_STEPS = 300
for kind in ("learning", "speed"):
    one_run.train(plan.Run("reinforce", "CartPole-v1", 0, 2000, Path(sys.argv[1]), kind))
"""
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], env={**os.environ, "PYTHONPATH": paths}, check=True)
    monkeypatch.setattr(files, "SPEED_STEPS", 300)
    runs = [plan.Run("reinforce", "CartPole-v1", 0, 2000, tmp_path, kind) for kind in ("learning", "speed")]
    assert all(files.is_finished(run) for run in runs)
    whole, first = (pd.read_csv(run.path, comment="#").drop(columns=["wall_seconds", "cpu_seconds"]) for run in runs)
    assert first["timesteps"].iloc[-1] == 300
    pd.testing.assert_frame_equal(first, whole.iloc[:30], check_dtype=False)
    assert (tmp_path / "speed" / "CartPole-v1" / "reinforce-0.csv").exists()


def test_report_of_nothing(tmp_path: Path) -> None:
    """It leaves pages alone."""
    page, missing = tmp_path / "page.md", tmp_path / "missing.md"
    page.write_text("\n".join(report.MARKS))
    for path, message in ((page, "must hold finished runs"), (missing, r"missing\.md must hold the lines")):
        with pytest.raises(ValueError, match=message):
            report.report(tmp_path, tmp_path, ["Hopper-v5"], ["reinforce"], path)
    assert page.read_text() == "\n".join(report.MARKS)
    report.report(tmp_path, tmp_path, ["Hopper-v5"], ["reinforce"])
    assert "No run has finished." in (tmp_path / "report.md").read_text()


def test_steps_to_solve(tmp_path: Path) -> None:
    """The first of three consecutive evaluations that pass counts, and a run that never has three is not solved."""
    info = '# {"seed": 0, "budget": 5000, "entry": "some", "hyperparameters": {}}'
    folder = tmp_path / "solve" / "CartPole-v1"
    folder.mkdir(parents=True)
    for seed, returns in enumerate(([500, 100, 480, 475, 500], [500, 500, 100, 500, 500])):
        rows = [f"{1000 * i},1,{i + seed},10,50,{value},0" for i, value in enumerate(returns, start=1)]
        (folder / f"ppo-{seed}.csv").write_text("\n".join([info, ",".join(files.COLUMNS), *rows]) + "\n")
    assert "| CartPole-v1, PPO | 475 | 1 of 2 | - | 3,000 | - | - |" in times.steps_to_solve(tmp_path)
    (folder / "ppo-1.csv").unlink()
    assert "| CartPole-v1, PPO | 475 | 1 of 1 | 3,000 | 3,000 | 3,000 | 3.00 |" in times.steps_to_solve(tmp_path)
