"""Several workers on one machine, started by torchrun as a user would."""

import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import CallbackList, CheckpointCallback, EvalCallback, EveryNTimesteps
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from sb3_reinforce import REINFORCE
from sb3_reinforce.distributed import ALONE, Group, Moments
from tests.distributed import job
from tests.helpers import ROOT


def torchrun(n_workers: int, scenario: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={n_workers}"]
    return subprocess.run(
        [*command, "-m", "tests.distributed.job", scenario, str(folder)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
    )


def results(n_workers: int, scenario: str, folder: Path) -> list[dict[str, Any]]:
    process = torchrun(n_workers, scenario, folder)
    assert process.returncode == 0, process.stdout[-2000:] + process.stderr[-4000:]
    return [pickle.loads((folder / f"{rank}.pkl").read_bytes()) for rank in range(n_workers)]


@pytest.mark.parametrize("n_workers", [pytest.param(2, marks=pytest.mark.slow), 3])
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
        with zipfile.ZipFile((folder / name).with_suffix(".zip")) as archive:
            saved = json.loads(archive.read("data"))
        assert not {"workers", "_seeded_env", "_player"} & saved.keys()
        n_updates = model._n_updates
        model.learn(600, reset_num_timesteps=False)
        assert model._n_updates > n_updates
    assert not list(folder.glob("*.tmp"))


def test_a_run_of_two_workers_is_taken_up_exactly(tmp_path):
    for outcome in results(2, "taken_up", tmp_path):
        for name in ("middle", "half", "pieces"):
            for key, value in outcome["whole"].items():
                np.testing.assert_array_equal(outcome[name][key], value, err_msg=f"{name}: {key}")
    env = VecNormalize(job.make_vec_env("CartPole-v1"))
    model = REINFORCE.load(tmp_path / "middle", env=env, device="cpu")
    assert 0 < model.num_timesteps < outcome["whole"]["num_timesteps"]
    with pytest.warns(UserWarning, match="need not end with the weights .* 2 workers instead of 1"):
        model.learn(1, reset_num_timesteps=False)


@pytest.mark.slow
def test_workers_that_differ_in_what_they_load_and_seed_begin_together(tmp_path):
    first, second = results(2, "mixed", tmp_path)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
    np.testing.assert_array_equal(first["rank 0 loads"], first["whole"])
    np.testing.assert_array_equal(first["groups, taken up"], first["groups"])


@pytest.mark.slow
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


@pytest.mark.slow
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
        assert outcome["baseline"] == "`baseline` must be the same for all workers, got None on rank 0 and 'Mean' on rank 1."
        expected = "`policy_step_class` must be the same for all workers, got None on rank 0 and 'OwnStep' on rank 1."
        assert outcome["policy step"] == expected


@pytest.mark.slow
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


@pytest.mark.slow
def test_statistics_of_batch_normalization_stay_together(tmp_path):
    ends = [outcome["ends"] for outcome in results(2, "batch_norm", tmp_path)]
    np.testing.assert_array_equal(ends[0], ends[1])


@pytest.fixture(scope="module")
def edges(tmp_path_factory):
    return results(2, "edges", tmp_path_factory.mktemp("edges"))


@pytest.mark.slow
def test_workers_start_from_all_that_rank_0_has(edges):
    first, second = (outcome["resumed"] for outcome in edges)
    for key in ("weights at start", "moments"):
        np.testing.assert_array_equal(first[key], second[key])
    assert first["n_updates"] == second["n_updates"] == 6
    assert first["rate"] == second["rate"]
    assert first["repairs"] == second["repairs"] == 0


def test_the_log_has_episodes_of_all_workers(edges):
    assert [outcome["mean return"] for outcome in edges] == [0.5, 0.5]


def test_what_one_worker_has_found_all_have(edges):
    for what in ("reward found", "reward found later"):
        (first, first_weights), (second, second_weights) = (outcome[what] for outcome in edges)
        assert first and second
        np.testing.assert_array_equal(first_weights, second_weights)


def test_minibatches_of_one_timestep_are_steps_of_all_workers(edges):
    first, second = (outcome["minibatches"] for outcome in edges)
    np.testing.assert_array_equal(first["weights"], second["weights"])
    # The actor's one step, and those of the critic: the joint one, and five passes over all timesteps
    assert first["n"] == second["n"] > 30
    assert first["steps"] == second["steps"] == [1, 1 + 5 * first["n"]]


def test_environments_with_one_seed_play_different_episodes(edges):
    first, second = (outcome["first observations"] for outcome in edges)
    assert not set(first) & set(second)


def test_with_a_buffer_of_sb3_the_rollout_ends_for_all_at_once(edges):
    for outcome in edges:
        assert outcome["timesteps"] == (192, 192, 192)


def test_workers_that_have_parted_meet_again(edges):
    np.testing.assert_array_equal(edges[0]["again"], edges[1]["again"])


@pytest.mark.slow
def test_errors_before_and_after_the_start_reach_all(tmp_path):
    first, second = results(2, "early", tmp_path)
    assert second["errors"][0] == "ValueError: `gamma` must be a number in [0, 1], got 5.0."
    assert first["errors"][0] == f"WorkerLostError: Worker 1 failed: {second['errors'][0]}"
    for outcome in (first, second):
        assert (
            "`requires_grad of value_net.weight` must be the same for all workers, got True on rank 0" in outcome["errors"][1]
        )
    np.testing.assert_array_equal(first["weights"], second["weights"])


@pytest.mark.parametrize("counts", [[1, 1], [1, 1, 1], [5, 0, 9], [100, 3], [7]])
@pytest.mark.parametrize("batch_size", [1, 2, 4, 1000])
def test_minibatches_deal_out_every_timestep_once(counts, batch_size):
    each_workers = []
    for rank, n in enumerate(counts):
        workers = Group(rank, len(counts))
        workers.n_timesteps = counts
        each_workers.append(list(workers.minibatches(n, batch_size)))
        np.testing.assert_array_equal(np.sort(np.concatenate([rows for rows, _ in each_workers[-1]])), np.arange(n))
    totals = [sum(len(rows) for rows, _ in parts) for parts in zip(*each_workers, strict=True)]
    assert all([total for _, total in parts] == totals for parts in each_workers)
    assert max(totals) <= batch_size and max(totals) - min(totals) <= 1
    assert len(totals) == -(-sum(counts) // batch_size)


@pytest.mark.parametrize("seed", [None, 0, 3])
def test_seeds_differ_by_rank_and_follow_from_the_users(seed, monkeypatch):
    monkeypatch.setattr(Group, "_from_rank_0", lambda self, item: item)
    th.manual_seed(11)
    seeds = [Group(rank, 4).seed(seed) for rank in range(4)]
    assert seeds[0] == seed
    assert len(set(seeds)) == 4
    if seed is not None:
        assert seeds == [Group(rank, 4).seed(seed) for rank in range(4)]
        assert not set(seeds[1:]) & {Group(rank, 4).seed(seed + 1) for rank in range(4)}


def test_a_callback_chooses_its_ranks():
    class Own(job.Writes):
        pass

    chosen = Own()
    chosen.ranks = (1,)
    evaluation, everywhere = EvalCallback(job.make_vec_env("CartPole-v1")), Own()
    nested = CallbackList(
        [everywhere, EveryNTimesteps(10, CheckpointCallback(5, "nowhere")), CallbackList([evaluation, chosen])]
    )
    for rank, expected in ((0, {"every", "checkpoint", "evaluation"}), (1, {"every", "chosen"})):
        found = set()

        def visit(callback, found=found):
            names = {id(everywhere): "every", id(evaluation): "evaluation", id(chosen): "chosen"}
            if isinstance(callback, CheckpointCallback):
                found.add("checkpoint")
            if id(callback) in names:
                found.add(names[id(callback)])
            for child in [*getattr(callback, "callbacks", []), getattr(callback, "callback", None)]:
                if child is not None:
                    visit(child)

        for callback in Group(rank, 2).callbacks(nested, progress_bar=False)[0]:
            visit(callback)
        assert found == expected
    assert len(nested.callbacks) == 3  # the user's own list is as it was


@pytest.mark.slow
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
    np.testing.assert_allclose(ALONE.moments(np.concatenate(parts)), total)


def test_moments_since_take_a_part_away() -> None:
    rng = np.random.default_rng(1)
    before, after = rng.normal(3, 1, 1_000_000), rng.normal(-2, 5, 10)
    rest = (moments(before) | moments(after)).since(moments(before))
    np.testing.assert_allclose(rest, moments(after), rtol=1e-6)


def test_one_process_is_alone(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    model = REINFORCE("MlpPolicy", "CartPole-v1", n_steps=32).learn(32)
    assert model.workers is ALONE
    assert not th.distributed.is_initialized()


@pytest.mark.slow
def test_the_example_runs_with_two_workers(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [str(ROOT / "examples" / "distributed.py"), "--timesteps", "1500", "--out", str(tmp_path)]
    process = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert process.returncode == 0, process.stderr[-3000:]
    assert process.stdout.count("steps of 2 worker(s)") == 1
    assert (tmp_path / "distributed.zip").exists()
