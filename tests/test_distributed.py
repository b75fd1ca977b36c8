"""Several workers on one machine, started by torchrun as a user would."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.running_mean_std import RunningMeanStd

from sb3_reinforce import REINFORCE
from sb3_reinforce.distributed import Moments, Workers
from tests import distributed_job as job


def torchrun(n_workers: int, scenario: str, folder: Path) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_workers}"]
    return subprocess.run(
        [*command, "-m", "tests.distributed_job", scenario, str(folder)],
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


def results(n_workers: int, scenario: str, folder: Path) -> list[dict[str, Any]]:
    process = torchrun(n_workers, scenario, folder)
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-4000:]
    return [pickle.loads((folder / f"{rank}.pkl").read_bytes()) for rank in range(n_workers)]


@pytest.mark.parametrize("n_workers", [2, 3])
def test_the_update_is_that_of_one_process_with_all_environments(n_workers, tmp_path):
    outcomes = results(n_workers, "updates", tmp_path)
    all_ids = [env_id for rank in range(n_workers) for env_id in job.env_ids(rank, n_workers)]
    for name in job.UPDATES:
        for space in job.ACTION_SPACES:
            alone = job.repeatable_model(all_ids, name, space)
            before = job.weights(alone)
            alone.learn(1)
            change = np.abs(job.weights(alone) - before).max()
            logged = alone.logger.name_to_value
            for rank, outcome in enumerate(outcomes):
                together = outcome[f"{name}, {space}"]
                np.testing.assert_array_equal(together["weights"], outcomes[0][f"{name}, {space}"]["weights"])
                # Sums in another order: some float32 roundings of the change
                difference = np.abs(together["weights"] - job.weights(alone)).max()
                assert difference < 1e-4 * change, (name, space, rank, difference, change)
                np.testing.assert_allclose(together["returns"], sorted(info["r"] for info in alone.ep_info_buffer), rtol=1e-6)
            first = outcomes[0][f"{name}, {space}"]
            for key in (
                "rollout/n_episodes",
                "rollout/n_steps",
                "train/policy_loss",
                "train/value_loss",
                "train/entropy_loss",
                "train/grad_norm",
                "train/explained_variance",
                "train/approx_kl",
            ):
                if key in logged:
                    np.testing.assert_allclose(
                        first["logged"][key], logged[key], rtol=2e-3, atol=1e-5, err_msg=f"{name} {key}"
                    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    return folder, results(2, "training", folder)


def test_weights_stay_equal_to_the_last_bit(trained):
    _, (first, second) = trained
    np.testing.assert_array_equal(first["first"], second["first"])
    np.testing.assert_array_equal(first["weights"], second["weights"])
    assert first["n_updates"] == second["n_updates"] > 10
    assert not np.array_equal(first["first"], first["weights"])


def test_timesteps_and_schedules_follow_all_workers(trained):
    _, (first, second) = trained
    assert first["num_timesteps"] == second["num_timesteps"] >= 6_000
    assert first["rates"] == second["rates"]
    # Worker 0 plays a third of the steps: counting its own alone it would have needed three times as many rollouts
    assert len(first["rates"]) <= 4_000 / (3 * 128) + 1


def test_no_two_workers_play_the_same_and_rank_0_plays_as_alone(trained):
    _, (first, second) = trained
    assert not set(first["first_observations"]) & set(second["first_observations"])
    starts = job.Writes()
    alone = REINFORCE("MlpPolicy", job.make_vec_env("CartPole-v1"), seed=7, n_steps=128, device="cpu").learn(
        1, callback=starts
    )
    assert starts.first_observations == first["first_observations"][:1]
    assert first["seed"] == second["seed"] == alone.seed == 7


def test_what_is_written_is_written_on_rank_0(trained):
    folder, (first, second) = trained
    assert first["only_one"] == 0 < second["only_one"]  # a callback of the user's own that has chosen its rank
    assert len(list((folder / "tensorboard").iterdir())) == 1
    # Rank 0 has one environment and plays a third of the steps: a checkpoint at each 600 of its own
    assert len(list((folder / "checkpoints").iterdir())) == 2
    evaluations = np.load(folder / "log" / "evaluations.npz")
    assert len(evaluations["timesteps"]) >= 2


def test_a_saved_model_is_an_ordinary_one(trained):
    folder, (first, _) = trained
    for name in ("rank_0", "model"):
        model = REINFORCE.load(folder / name, env=job.make_vec_env("CartPole-v1"), device="cpu")
        np.testing.assert_array_equal(job.weights(model), first["first"])
        assert not any("workers" in key or "distributed" in key for key in vars(model) if key != "_workers")
        n_updates = model._n_updates
        model.learn(600, reset_num_timesteps=False)
        assert model._n_updates > n_updates
    assert not list(folder.glob("*.tmp"))


def test_a_stop_on_one_rank_stops_all_at_the_same_update(tmp_path):
    outcomes = results(3, "stop", tmp_path)
    assert len({outcome["n_updates"] for outcome in outcomes}) == 1
    assert len({outcome["num_timesteps"] for outcome in outcomes}) == 1
    # Worker 1 plays 100 to 300 steps per environment and rollout; it stops at its 250th
    assert 1 <= outcomes[0]["n_updates"] <= 2
    for outcome in outcomes[1:]:
        np.testing.assert_array_equal(outcome["weights"], outcomes[0]["weights"])


def test_an_exception_on_one_rank_ends_all_with_its_message(tmp_path):
    outcomes = results(3, "exception", tmp_path)
    assert outcomes[1]["error"] == "ZeroDivisionError: the moon is full"
    for rank in (0, 2):
        assert outcomes[rank]["error"] == "WorkerLostError: Worker 1 failed: ZeroDivisionError: the moon is full"


def test_an_exception_that_nobody_catches_ends_the_job(tmp_path):
    process = torchrun(2, "uncaught", tmp_path)
    assert process.returncode != 0
    assert "ZeroDivisionError: the moon is full" in process.stderr
    assert not list(tmp_path.glob("*.pkl"))


def test_a_killed_worker_ends_the_job_with_an_error(tmp_path):
    process = torchrun(2, "killed", tmp_path)
    assert process.returncode != 0
    assert "Signal 9" in process.stderr
    survivor = tmp_path / "0.pkl"
    if survivor.exists():  # torchrun may have ended it before it had its say
        outcome = pickle.loads(survivor.read_bytes())
        assert outcome["error"].startswith("WorkerLostError: The connection to another worker was lost")


def test_different_arguments_are_refused(tmp_path):
    outcomes = results(2, "different", tmp_path)
    for outcome in outcomes:
        assert outcome["error"] == "`gamma` must be the same for all workers, got 0.9 on rank 0 and 0.91 on rank 1."


def test_merged_statistics_are_those_of_the_pooled_data(tmp_path):
    outcomes = results(3, "normalizer", tmp_path)
    pooled = RunningMeanStd(shape=(3,))
    pooled.update(np.concatenate([outcome["seen"] for outcome in outcomes]))
    for outcome in outcomes:
        for found, expected in zip(outcome["obs"], (pooled.mean, pooled.var, pooled.count), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)  # the data are float32
        assert outcome["obs"][2] == pytest.approx(pooled.count, rel=1e-9)
        for found, expected in zip(outcome["ret"], outcomes[0]["ret"], strict=True):
            np.testing.assert_array_equal(found, expected)
        # Every step of every environment counts once
        assert outcome["ret"][2] == pytest.approx(sum(other["n_steps"] for other in outcomes), abs=1e-3)


def test_statistics_of_batch_normalization_stay_together(tmp_path):
    ends = [outcome["ends"] for outcome in results(2, "batch_norm", tmp_path)]
    np.testing.assert_array_equal(ends[0], ends[1])


def test_two_workers_solve_cartpole(tmp_path):
    for outcome in results(2, "cartpole", tmp_path):
        assert outcome["mean"] >= 475


def moments(numbers: np.ndarray) -> Moments:
    return Moments(len(numbers), numbers.mean(), np.square(numbers - numbers.mean()).sum())


def test_moments_of_parts_are_those_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    parts = [rng.normal(5, 2, size) for size in (3, 1, 100)]
    total = Moments(0, np.zeros(()), np.zeros(()))
    for part in parts:
        total |= moments(part)
    np.testing.assert_allclose(total, moments(np.concatenate(parts)))
    np.testing.assert_allclose(Workers().moments(np.concatenate(parts)), total)


def test_moments_since_take_a_part_away() -> None:
    rng = np.random.default_rng(1)
    before, after = rng.normal(3, 1, 1_000_000), rng.normal(-2, 5, 10)
    rest = (moments(before) | moments(after)).since(moments(before))
    np.testing.assert_allclose(rest, moments(after), rtol=1e-6)


def test_one_process_is_alone(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    model = REINFORCE("MlpPolicy", "CartPole-v1", n_steps=32).learn(32)
    assert model._workers.alone
    assert not th.distributed.is_initialized()
