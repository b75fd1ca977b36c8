"""SB3's callbacks, and when each of their methods is called."""

import io
import pathlib
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3 import A2C
from stable_baselines3.common.callbacks import (
    BaseCallback,
    CallbackList,
    CheckpointCallback,
    EvalCallback,
    EveryNTimesteps,
    LogEveryNTimesteps,
    ProgressBarCallback,
    StopTrainingOnMaxEpisodes,
    StopTrainingOnNoModelImprovement,
    StopTrainingOnRewardThreshold,
)
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.vec_env import VecNormalize

from sb3_reinforce import REINFORCE
from tests.helpers.environments import Scripted, vec
from tests.reinforce.interface import CONTINUOUS, Events, equal, make, ramp, read_csv, weights


@pytest.mark.parametrize("complete_episodes", [True, False])
@pytest.mark.parametrize("use_sde", [True, False])
def test_callbacks_are_called_in_the_order_of_sb3(use_sde: bool, complete_episodes: bool) -> None:
    def events(model: OnPolicyAlgorithm) -> list[str]:
        callback = Events()
        model.learn(12, callback)
        return callback.events

    def env() -> gym.Env:
        return Scripted((3,), action_space=CONTINUOUS, reward=ramp)

    kwargs: dict[str, Any] = {"n_steps": 6, "use_sde": use_sde, "device": "cpu"}
    expected = ["training start", *(["rollout start", *["step"] * 6, "rollout end"] * 2), "training end"]
    assert events(REINFORCE("MlpPolicy", env(), complete_episodes=complete_episodes, **kwargs)) == expected
    assert events(A2C("MlpPolicy", env(), **kwargs)) == expected


def test_callbacks_see_every_vector_step_with_its_locals() -> None:
    envs = [Scripted((2,), reward=ramp), Scripted((5,), reward=ramp)]
    callback = Events()
    make(vec(*envs), n_episodes=1).learn(10, callback)
    assert callback.events.count("step") == callback.n_calls == 5 == len(envs[1].received_actions)
    for t, step in enumerate(callback.seen):
        assert step["rewards"].tolist() == [t % 2, t]
        assert step["dones"].tolist() == [t % 2 == 1, t == 4]
        assert step["new_obs"][:, 1].tolist() == [(t + 1) % 2, (t + 1) % 5]
        assert ("terminal_observation" in step["infos"][0]) == (t % 2 == 1)
        assert step["actions"].tolist() == [int(envs[0].received_actions[t]), int(envs[1].received_actions[t])]


def test_callbacks_know_the_names_that_sb3_gives_its_locals() -> None:
    class Names(BaseCallback):
        def __init__(self) -> None:
            super().__init__()
            self.at_step: set[str] = set()
            self.at_end: set[str] = set()

        def _on_step(self) -> bool:
            self.at_step = set(self.locals)
            return True

        def _on_rollout_end(self) -> None:
            self.at_end = set(self.locals)

    callback = Names()
    make(Scripted(), n_steps=6).learn(6, callback)
    known = {"self", "env", "callback", "rollout_buffer", "n_rollout_steps", "new_obs", "rewards", "dones", "infos", "actions"}
    known |= {"clipped_actions", "total_timesteps"}  # the last one from learn, which the progress bar reads
    assert known <= callback.at_step and known <= callback.at_end


def test_a_function_can_be_a_callback() -> None:
    steps: list[int] = []
    make(Scripted(), n_steps=6).learn(6, lambda locals_, globals_: steps.append(locals_["self"].num_timesteps) or True)
    assert steps == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("complete_episodes", [True, False])
def test_a_callback_can_stop_in_the_middle_of_a_rollout_and_learning_starts_afresh(
    complete_episodes: bool, n_envs: int
) -> None:
    model = make(vec(*(Scripted((5,), reward=ramp) for _ in range(n_envs))), n_steps=10, complete_episodes=complete_episodes)
    before = weights(model)
    callback = Events(stop_at=7)
    model.learn(100, callback)
    assert model.num_timesteps == 7 * n_envs
    assert callback.events == ["training start", "rollout start", *["step"] * 7, "training end"]
    assert equal(before, weights(model))
    model.learn(10 * n_envs, reset_num_timesteps=False)
    assert model.num_timesteps == 17 * n_envs
    assert model.rollout_buffer.observations[:, 1].tolist() == [0, 1, 2, 3, 4] * 2 * n_envs
    assert not equal(before, weights(model))
    stream = io.BytesIO()
    model.save(stream)


def test_the_evaluation_callback_evaluates_saves_the_best_and_logs(tmp_path: pathlib.Path) -> None:
    env = Scripted((4,), reward=ramp)
    callback = EvalCallback(
        Monitor(env), eval_freq=20, n_eval_episodes=2, best_model_save_path=str(tmp_path), log_path=str(tmp_path), verbose=0
    )
    model = make(Scripted((4,), reward=ramp), n_steps=20)
    model.learn(60, callback)
    assert callback.best_mean_reward == 6.0
    with np.load(tmp_path / "evaluations.npz") as evaluations:
        assert evaluations["timesteps"].tolist() == [20, 40, 60]
        assert (evaluations["results"] == 6.0).all()
    best = REINFORCE.load(tmp_path / "best_model", device="cpu")
    assert best.num_timesteps == 0  # saved in the midst of the first rollout, which the file begins with


def test_training_stops_at_a_threshold_of_the_reward() -> None:
    stop = StopTrainingOnRewardThreshold(reward_threshold=5.0)
    callback = EvalCallback(Monitor(Scripted((4,), reward=ramp)), callback_on_new_best=stop, eval_freq=10, verbose=0)
    model = make(Scripted((4,), reward=ramp), n_steps=20).learn(1000, callback)
    assert model.num_timesteps == 10
    model.learn(20, reset_num_timesteps=False)
    assert model.num_timesteps == 30


def test_training_stops_where_nothing_improves() -> None:
    stop = StopTrainingOnNoModelImprovement(max_no_improvement_evals=2, min_evals=1)
    callback = EvalCallback(Monitor(Scripted((4,), reward=ramp)), callback_after_eval=stop, eval_freq=10, verbose=0)
    assert make(Scripted((4,), reward=ramp), n_steps=20).learn(1000, callback).num_timesteps == 40


@pytest.mark.parametrize("n_envs", [1, 3])
def test_training_stops_after_a_number_of_episodes(n_envs: int) -> None:
    env = vec(*(Scripted((4,)) for _ in range(n_envs)))
    model = make(env, n_steps=20).learn(1000, StopTrainingOnMaxEpisodes(max_episodes=7))
    assert model.num_timesteps == 28 * n_envs


def test_checkpoints_are_written_and_can_be_loaded(tmp_path: pathlib.Path) -> None:
    env = VecNormalize(make_vec_env("CartPole-v1", 2, seed=0))
    callback = CheckpointCallback(save_freq=20, save_path=str(tmp_path), name_prefix="cp", save_vecnormalize=True)
    make(env, n_steps=16).learn(130, callback)
    assert {"cp_40_steps.zip", "cp_80_steps.zip", "cp_120_steps.zip"} <= {path.name for path in tmp_path.iterdir()}
    venv = VecNormalize.load(str(tmp_path / "cp_vecnormalize_80_steps.pkl"), make_vec_env("CartPole-v1", 2))
    loaded = REINFORCE.load(tmp_path / "cp_80_steps", env=venv, device="cpu")
    # Saved in the middle of a rollout, which is played again
    assert loaded.num_timesteps < 80
    loaded.learn(120 - loaded.num_timesteps, reset_num_timesteps=False)
    assert loaded.num_timesteps >= 120


@pytest.mark.parametrize("n_envs", [1, 2])
def test_a_callback_can_be_called_every_so_many_timesteps(n_envs: int) -> None:
    counted = Events()
    env = vec(*(Scripted((4,)) for _ in range(n_envs)))
    make(env, n_steps=12).learn(96, EveryNTimesteps(n_steps=10, callback=counted))
    assert counted.n_calls == 9


def test_logs_can_be_written_every_so_many_timesteps_alone(tmp_path: pathlib.Path) -> None:
    model = make(Scripted((4,)), n_steps=12)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(96, LogEveryNTimesteps(n_steps=24), log_interval=None)  # type: ignore[arg-type]
    rows = read_csv(tmp_path)
    assert [int(row["time/total_timesteps"]) for row in rows] == [24, 48, 72, 96]
    assert float(rows[-1]["rollout/ep_rew_mean"]) == 4.0 and rows[-1]["train/policy_loss"] != ""


def test_a_progress_bar_follows_the_training() -> None:
    class Watched(ProgressBarCallback):
        def _on_training_end(self) -> None:
            self.n = self.pbar.n
            super()._on_training_end()

    pytest.importorskip("tqdm")
    pytest.importorskip("rich")
    callback = Watched()
    env = vec(Scripted((4,)), Scripted((4,)))
    make(env, n_steps=8).learn(32, CallbackList([callback]))
    assert callback.n == 32
    make(env, n_steps=8).learn(16, progress_bar=True)
