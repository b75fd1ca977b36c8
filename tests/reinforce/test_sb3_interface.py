"""What users of SB3 expect of an algorithm: learn, save, load, callbacks, logs, seeds."""

import copy
import csv
import inspect
import io
import pathlib
import zipfile
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from stable_baselines3 import A2C
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
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
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import configure
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.utils import LinearSchedule, set_random_seed
from stable_baselines3.common.vec_env import VecNormalize

from sb3_reinforce import REINFORCE, EpisodeRolloutBuffer
from tests.helpers.environments import Scripted, vec

SMALL = {"net_arch": [8]}
CONTINUOUS = spaces.Box(-1, 1, (2,))


def ramp(timestep: int) -> float:
    return float(timestep)


def make(env: Any = None, **kwargs: Any) -> REINFORCE:
    defaults = {"learning_rate": 1e-2, "n_steps": 32, "seed": 0, "device": "cpu", "policy_kwargs": SMALL}
    return REINFORCE("MlpPolicy", "CartPole-v1" if env is None else env, **{**defaults, **kwargs})


def weights(model: REINFORCE) -> list[th.Tensor]:
    return [parameter.detach().clone() for parameter in model.policy.parameters()]


def equal(a: list[th.Tensor], b: list[th.Tensor]) -> bool:
    return all(th.equal(x, y) for x, y in zip(a, b, strict=True))


# learn


def test_the_algorithm_is_one_of_sb3s_on_policy_algorithms() -> None:
    assert issubclass(REINFORCE, OnPolicyAlgorithm)


def test_the_defaults_of_learn_are_those_that_are_promised() -> None:
    defaults = {name: p.default for name, p in inspect.signature(REINFORCE.learn).parameters.items() if name != "self"}
    assert defaults == {
        "total_timesteps": 100_000,
        "callback": None,
        "log_interval": 1,
        "tb_log_name": "REINFORCE",
        "reset_num_timesteps": True,
        "progress_bar": False,
    }
    assert list(defaults) == [name for name in inspect.signature(A2C.learn).parameters if name != "self"]


def test_learn_without_arguments_is_a_whole_program() -> None:
    env = vec(*(Scripted((500,), reward=ramp) for _ in range(50)))
    model = REINFORCE("MlpPolicy", env, n_episodes=1, policy_kwargs=SMALL, device="cpu")
    assert model.learn() is model
    assert model.num_timesteps == 100_000


def test_attributes_have_the_names_of_the_arguments() -> None:
    model = make(critic_learning_rate=0.1, horizon=100, n_episodes=3)
    special = {"policy", "env", "_init_setup_model", "rollout_buffer_kwargs", "policy_kwargs", "stats_window_size"}
    given = {
        "learning_rate": 1e-2,
        "n_steps": 32,
        "seed": 0,
        "critic_learning_rate": 0.1,
        "horizon": 100,
        "n_episodes": 3,
        "device": th.device("cpu"),
    }
    for name, parameter in inspect.signature(REINFORCE).parameters.items():
        if name not in special and name != "rollout_buffer_class":
            assert getattr(model, name) == given.get(name, parameter.default), name


def test_learning_twice_counts_from_zero_again_or_goes_on() -> None:
    model = make(Scripted((4,), reward=ramp), n_steps=8)
    assert model.learn(16).num_timesteps == 16
    assert model.learn(24).num_timesteps == 24
    assert model._n_updates == 5
    assert model.learn(16, reset_num_timesteps=False).num_timesteps == 40
    assert model._n_updates == 7


def test_learning_on_keeps_the_statistics_of_the_episodes() -> None:
    model = make(Scripted((4,)), n_steps=8).learn(16)
    model.learn(8, reset_num_timesteps=False)
    assert model.ep_info_buffer is not None and len(model.ep_info_buffer) == 6
    model.learn(8)
    assert len(model.ep_info_buffer) == 2


def test_a_budget_of_one_timestep_is_one_update() -> None:
    model = make(Scripted((4,), reward=ramp), n_steps=8).learn(1)
    assert (model.num_timesteps, model._n_updates) == (8, 1)


def test_the_environment_can_be_exchanged() -> None:
    model = make(Scripted((4,), reward=ramp), n_steps=8).learn(8)
    other = Scripted((6,), reward=ramp)
    model.set_env(Monitor(other))
    model.learn(12, reset_num_timesteps=False)
    assert model.num_timesteps == 20
    assert other.n_resets == 3
    assert model.rollout_buffer.episodes.lengths.tolist() == [6, 6]  # type: ignore[attr-defined]


def test_the_limit_of_an_exchanged_environment_counts() -> None:
    model = make(TimeLimit(Scripted((None,)), 4), n_steps=8).learn(8)
    model.set_env(TimeLimit(Scripted((None,)), 11))
    model.learn(8)
    assert model.rollout_buffer.episodes.lengths.tolist() == [11]  # type: ignore[attr-defined]


def test_an_environment_that_does_not_fit_is_refused_as_sb3_does_it() -> None:
    model = make(Scripted())
    with pytest.raises(AssertionError, match="number of environments"):
        model.set_env(vec(Scripted(), Scripted()))
    with pytest.raises(ValueError, match="spaces do not match"):
        model.set_env(Scripted(action_space=spaces.Discrete(5)))


# Save and load


MODELS: dict[str, Callable[[], REINFORCE]] = {
    "MlpPolicy": make,
    "several environments": lambda: make(make_vec_env("CartPole-v1", 2, seed=0)),
    "Gaussian": lambda: make(Scripted((5,), action_space=CONTINUOUS, reward=ramp)),
    "gSDE": lambda: make(Scripted((5,), action_space=CONTINUOUS, reward=ramp), use_sde=True),
    "without a critic": lambda: make(baseline="leave_one_out"),
    "with schedules": lambda: make(
        learning_rate=LinearSchedule(1e-2, 0.0, 1.0), critic_learning_rate=lambda progress: progress
    ),
    "a function as baseline": lambda: make(baseline=lambda returns, timesteps, episode_ids: returns.mean() + 0 * returns),
    "fixed length": lambda: make(complete_episodes=False),
    "SGD": lambda: make(policy_kwargs={**SMALL, "optimizer_class": th.optim.SGD, "optimizer_kwargs": {"momentum": 0.9}}),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_model_is_loaded_whole_and_learns_on(name: str, tmp_path: pathlib.Path) -> None:
    model = MODELS[name]().learn(100)
    env = model.get_env()
    assert env is not None
    model.save(tmp_path / "model")
    loaded = REINFORCE.load(tmp_path / "model", env=env, device="cpu")
    assert equal(weights(model), weights(loaded))
    assert str(model.policy.optimizer.state_dict()) == str(loaded.policy.optimizer.state_dict())
    obs = env.reset()
    assert np.array_equal(model.predict(obs, deterministic=True)[0], loaded.predict(obs, deterministic=True)[0])
    for argument in inspect.signature(REINFORCE).parameters:
        if argument not in ("policy", "env", "device", "baseline", "stats_window_size", "_init_setup_model") and (
            "learning_rate" not in argument
        ):
            assert getattr(loaded, argument) == getattr(model, argument), argument
    n_before = model.num_timesteps
    loaded.learn(50, reset_num_timesteps=False)
    assert loaded.num_timesteps >= n_before + 50
    assert loaded._n_updates > model._n_updates
    assert not equal(weights(model), weights(loaded))
    # A second time through the same door
    stream = io.BytesIO()
    loaded.save(stream)
    stream.seek(0)
    assert equal(weights(loaded), weights(REINFORCE.load(stream, device="cpu")))


def test_a_model_can_be_saved_before_it_learns(tmp_path: pathlib.Path) -> None:
    model = make()
    model.save(tmp_path / "model.zip")
    loaded = REINFORCE.load(tmp_path / "model.zip", env=model.get_env(), device="cpu")
    assert equal(weights(model), weights(loaded))
    loaded.learn(40)


def test_a_loaded_model_acts_without_an_environment(tmp_path: pathlib.Path) -> None:
    make().learn(40).save(tmp_path / "model")
    loaded = REINFORCE.load(tmp_path / "model", device="cpu")
    action, state = loaded.predict(np.zeros(4, np.float32))
    assert loaded.action_space.contains(int(action)) and state is None
    with pytest.raises(ValueError, match="environment"):
        loaded.learn(10)
    loaded.set_env(gym.make("CartPole-v1"))
    loaded.learn(40)


def test_a_loaded_model_takes_another_number_of_environments(tmp_path: pathlib.Path) -> None:
    make().learn(40).save(tmp_path / "model")
    loaded = REINFORCE.load(tmp_path / "model", env=make_vec_env("CartPole-v1", 3), device="cpu")
    loaded.learn(100)
    assert loaded.rollout_buffer.n_envs == loaded.n_envs == 3


def test_a_saved_model_holds_no_rollout(tmp_path: pathlib.Path) -> None:
    space = spaces.Box(-1, 1, (1000,))
    model = make(Scripted((200,), observation_space=space), n_steps=400, policy_kwargs={"net_arch": []}).learn(400)
    assert model.rollout_buffer.observations.nbytes > 1_000_000
    model.save(tmp_path / "model.zip")
    data, _, _ = load_from_zip_file(tmp_path / "model.zip", device="cpu")
    assert data is not None
    assert not {"rollout_buffer", "policy", "env", "_logger", "_sampler"} & set(data)
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        assert sum(file.file_size for file in archive.infolist()) < 400_000


@pytest.mark.parametrize("saved, loaded", [(None, 1e-2), (1e-2, None), (1e-2, 1e-4), (None, None)])
def test_the_learning_rate_of_the_critic_may_change_when_a_model_is_loaded(
    saved: float | None, loaded: float | None, tmp_path: pathlib.Path
) -> None:
    model = make(critic_learning_rate=saved, learning_rate=1e-3).learn(80)
    model.save(tmp_path / "model")
    other = REINFORCE.load(tmp_path / "model", env=model.get_env(), device="cpu", critic_learning_rate=loaded)
    assert equal(weights(model), weights(other))
    assert str(model.policy.optimizer.state_dict()["state"]) == str(other.policy.optimizer.state_dict()["state"])
    other.learn(40)
    actor, critic = other.policy.optimizer.param_groups
    assert actor["lr"] == 1e-3
    assert critic["lr"] == (1e-3 if loaded is None else loaded)


def test_arguments_may_change_when_a_model_is_loaded(tmp_path: pathlib.Path) -> None:
    make().learn(40).save(tmp_path / "model")
    kwargs = {"baseline": "mean", "n_episodes": 2, "learning_rate": 1e-5, "gamma": 0.5}
    loaded = REINFORCE.load(tmp_path / "model", env=gym.make("CartPole-v1"), device="cpu", **kwargs)
    loaded.learn(20)
    assert loaded.rollout_buffer.gamma == 0.5
    assert len(loaded.rollout_buffer.episodes.lengths) == 2  # type: ignore[attr-defined]
    assert {group["lr"] for group in loaded.policy.optimizer.param_groups} == {1e-5}
    assert "train/value_loss" not in loaded.logger.name_to_value


class Derived(REINFORCE):
    """An algorithm of one's own on top."""

    def __init__(self, *args: Any, temperature: float = 1.0, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.temperature = temperature


def test_a_derived_algorithm_is_saved_and_loaded_with_all_its_arguments(tmp_path: pathlib.Path) -> None:
    model = Derived("MlpPolicy", Scripted((5,)), temperature=2.0, n_steps=10, device="cpu").learn(20)
    model.save(tmp_path / "model")
    loaded = Derived.load(tmp_path / "model", env=Scripted((5,)), device="cpu")
    assert loaded.temperature == 2.0
    loaded = Derived.load(tmp_path / "model", env=Scripted((5,)), device="cpu", temperature=3.0, gamma=0.5)
    assert (loaded.temperature, loaded.gamma) == (3.0, 0.5)
    loaded.learn(20)


def test_parameters_move_from_one_model_to_another(tmp_path: pathlib.Path) -> None:
    source, target = make(seed=1).learn(80), make(seed=2).learn(40)
    assert not equal(weights(source), weights(target))
    target.set_parameters(source.get_parameters(), device="cpu")
    assert equal(weights(source), weights(target))
    target.learn(40)
    source.save(tmp_path / "model")
    target.set_parameters(str(tmp_path / "model"), device="cpu")
    assert equal(weights(source), weights(target))
    assert str(source.policy.optimizer.state_dict()) == str(target.policy.optimizer.state_dict())


def test_parameters_that_do_not_fit_are_refused() -> None:
    model = make()
    parameters = model.get_parameters()
    del parameters["policy.optimizer"]
    with pytest.raises(ValueError, match="Names of parameters do not match"):
        model.set_parameters(parameters, device="cpu")
    model.set_parameters(parameters, exact_match=False, device="cpu")


@pytest.mark.parametrize("name", ["MlpPolicy", "Gaussian", "gSDE"])
def test_the_policy_can_be_copied_after_learning(name: str) -> None:
    model = MODELS[name]().learn(50)
    policy = copy.deepcopy(model.policy)
    assert equal(list(policy.parameters()), list(model.policy.parameters()))
    env = model.get_env()
    assert env is not None
    obs = env.reset()
    assert np.array_equal(policy.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])


def test_a_compiled_policy_learns_and_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    # The compiler switches the checks of PyTorch's distributions off, for good
    monkeypatch.setattr(th.distributions.Distribution, "_validate_args", th.distributions.Distribution._validate_args)
    model = make(Scripted((5,), reward=ramp))
    before = weights(model)
    model.policy = th.compile(model.policy, backend="eager")  # type: ignore[assignment]
    model.learn(40)
    assert not equal(before, weights(model))
    stream = io.BytesIO()
    model.save(stream)
    stream.seek(0)
    assert equal(weights(model), weights(REINFORCE.load(stream, device="cpu")))


def test_a_policy_can_be_saved_and_loaded_by_itself(tmp_path: pathlib.Path) -> None:
    model = make().learn(40)
    model.policy.save(str(tmp_path / "policy"))
    policy = ActorCriticPolicy.load(str(tmp_path / "policy"), device="cpu")
    assert equal(list(policy.parameters()), weights(model))


def test_the_policy_is_evaluated_by_sb3s_function() -> None:
    model = make(Scripted((4,), reward=ramp)).learn(40)
    assert evaluate_policy(model, Monitor(Scripted((4,), reward=ramp)), n_eval_episodes=3) == (6.0, 0.0)
    env = model.get_env()
    assert env is not None
    assert evaluate_policy(model, env, n_eval_episodes=2, return_episode_rewards=True) == ([6.0, 6.0], [4, 4])
    # The training environments were used in between: whole episodes follow all the same
    model.learn(40, reset_num_timesteps=False)
    assert set(model.rollout_buffer.episodes.lengths.tolist()) == {4}  # type: ignore[attr-defined]


# Callbacks


class Events(BaseCallback):
    """Writes down what happens, and stops at a step if asked."""

    def __init__(self, stop_at: int | None = None):
        super().__init__()
        self.stop_at = stop_at
        self.events: list[str] = []
        self.seen: list[dict[str, Any]] = []

    def _on_training_start(self) -> None:
        self.events.append("training start")

    def _on_rollout_start(self) -> None:
        self.events.append("rollout start")

    def _on_step(self) -> bool:
        self.events.append("step")
        self.seen.append({key: copy.deepcopy(self.locals[key]) for key in ("new_obs", "rewards", "dones", "infos", "actions")})
        return self.n_calls != self.stop_at

    def _on_rollout_end(self) -> None:
        self.events.append("rollout end")

    def _on_training_end(self) -> None:
        self.events.append("training end")


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
    assert best.num_timesteps == 20


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
    assert loaded.num_timesteps == 80
    # Saved in the middle of a rollout: it goes on with fresh episodes
    loaded.learn(40, reset_num_timesteps=False)
    assert loaded.num_timesteps >= 120


@pytest.mark.parametrize("n_envs", [1, 2])
def test_a_callback_can_be_called_every_so_many_timesteps(n_envs: int) -> None:
    counted = Events()
    env = vec(*(Scripted((4,)) for _ in range(n_envs)))
    make(env, n_steps=12).learn(96, EveryNTimesteps(n_steps=10, callback=counted))
    assert counted.n_calls == 9


def read_csv(folder: pathlib.Path) -> list[dict[str, str]]:
    with open(folder / "progress.csv", newline="") as file:
        return list(csv.DictReader(file))


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


# Logs

ROLLOUT = {f"rollout/{name}" for name in ("ep_rew_mean", "ep_len_mean", "n_episodes", "n_steps", "discarded_fraction")}
TIME = {f"time/{name}" for name in ("fps", "iterations", "time_elapsed", "total_timesteps")}
TRAIN = {f"train/{name}" for name in ("policy_loss", "entropy_loss", "learning_rate", "n_updates", "grad_norm", "approx_kl")}
CRITIC = {f"train/{name}" for name in ("value_loss", "explained_variance")}


@pytest.mark.parametrize(
    "kwargs, keys",
    [
        ({}, CRITIC),
        ({"critic_learning_rate": 1e-2}, CRITIC | {"train/critic_learning_rate"}),
        ({"baseline": "mean"}, set()),
        ({"baseline": None}, set()),
        ({"complete_episodes": False}, CRITIC),
        ({"rollout_buffer_class": RolloutBuffer, "complete_episodes": False}, CRITIC),
    ],
    ids=["value", "rate of the critic", "mean", "no baseline", "fixed length", "buffer of SB3's"],
)
@pytest.mark.parametrize("continuous", [True, False])
def test_the_keys_of_the_log_are_those_of_sb3_and_a_few_more(
    kwargs: dict[str, Any], keys: set[str], continuous: bool, tmp_path: pathlib.Path
) -> None:
    env = Scripted((4,), action_space=CONTINUOUS if continuous else None, reward=ramp)
    model = make(env, n_steps=8, **kwargs)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(24)
    rows = read_csv(tmp_path)
    assert len(rows) == 3
    std = {"train/std"} if continuous else set()
    assert set(rows[-1]) == ROLLOUT | TIME | TRAIN | keys | std
    values = {key: float(value) for key, value in rows[-1].items()}
    assert all(np.isfinite(value) for value in values.values())
    assert (values["rollout/ep_rew_mean"], values["rollout/ep_len_mean"]) == (6.0, 4.0)
    assert (values["rollout/n_episodes"], values["rollout/n_steps"], values["rollout/discarded_fraction"]) == (2, 8, 0)
    assert (values["train/n_updates"], values["time/iterations"], values["time/total_timesteps"]) == (2, 3, 24)
    assert values["train/approx_kl"] > 0 and values["train/grad_norm"] > 0


def test_diagnostics_are_what_they_are_called() -> None:
    model = make(Scripted((40,), action_space=CONTINUOUS, reward=ramp), n_steps=40, ent_coef=0.1, learning_rate=1e-2)
    captured: dict[str, Any] = {}

    class Before(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            captured["policy"] = copy.deepcopy(model.policy)

    model.learn(40, Before())
    logged, buffer, old = model.logger.name_to_value, model.rollout_buffer, captured["policy"]
    observations, actions = th.as_tensor(buffer.observations), th.as_tensor(buffer.actions)
    with th.no_grad():
        values, log_prob, entropy = old.evaluate_actions(observations, actions)
        log_ratio = model.policy.evaluate_actions(observations, actions)[1] - log_prob
    advantages = (buffer.advantages - buffer.advantages.mean()) / buffer.advantages.std(ddof=1)
    values = values.flatten().numpy()
    assert logged["train/policy_loss"] == pytest.approx(-(log_prob.numpy() * advantages).mean(), abs=1e-4)
    assert logged["train/entropy_loss"] == pytest.approx(-float(entropy.mean()), rel=1e-4)
    assert logged["train/value_loss"] == pytest.approx(((buffer.returns - values) ** 2).mean(), rel=1e-4)
    assert logged["train/explained_variance"] == pytest.approx(
        1 - np.var(buffer.returns - values) / np.var(buffer.returns), abs=1e-4
    )
    assert logged["train/std"] == pytest.approx(model.policy.log_std.exp().mean().item())
    # After the step, not before it
    assert logged["train/approx_kl"] == pytest.approx(float((log_ratio.exp() - 1 - log_ratio).mean()), rel=1e-3)
    assert logged["train/approx_kl"] > 1e-6


def test_tensorboard_gets_the_same_keys(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    model = make(Scripted((4,), reward=ramp), n_steps=8, tensorboard_log=str(tmp_path))
    model.learn(24)
    model.learn(16, reset_num_timesteps=False)
    model.learn(8, tb_log_name="other")
    assert {path.name for path in tmp_path.iterdir()} == {"REINFORCE_1", "other_1"}
    accumulator = EventAccumulator(str(tmp_path / "REINFORCE_1"))
    accumulator.Reload()
    hidden = {"time/iterations", "time/time_elapsed", "time/total_timesteps", "train/n_updates"}
    assert set(accumulator.Tags()["scalars"]) == (ROLLOUT | TIME | TRAIN | CRITIC) - hidden
    assert [event.step for event in accumulator.Scalars("rollout/ep_rew_mean")] == [8, 16, 24, 32, 40]
    assert {event.value for event in accumulator.Scalars("rollout/ep_rew_mean")} == {6.0}


def test_the_log_interval_counts_rollouts_and_none_is_never(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make(Scripted((4,)), n_steps=8)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(48, log_interval=2)
    assert [int(row["time/iterations"]) for row in read_csv(tmp_path)] == [2, 4, 6]
    make(Scripted((4,)), n_steps=8, verbose=1).learn(48, log_interval=None)  # type: ignore[arg-type]
    assert "ep_rew_mean" not in capsys.readouterr().out


def test_a_verbose_model_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    make(Scripted((4,)), n_steps=8, verbose=1).learn(16)
    output = capsys.readouterr().out
    assert "ep_rew_mean" in output and "discarded_fraction" in output
    make(Scripted((4,)), n_steps=8).learn(16)
    assert capsys.readouterr().out == ""


# Seeds


def pendulum(n_envs: int) -> Any:
    return make_vec_env(lambda: TimeLimit(gym.make("Pendulum-v1").unwrapped, 20), n_envs)


SEEDED: dict[str, Callable[[int], REINFORCE]] = {
    "Discrete": lambda seed: make(seed=seed),
    "Discrete, several environments": lambda seed: make(make_vec_env("CartPole-v1", 3), seed=seed),
    "Box": lambda seed: make(pendulum(1), seed=seed),
    "Box, several environments": lambda seed: make(pendulum(3), seed=seed),
    "gSDE": lambda seed: make(pendulum(2), use_sde=True, sde_sample_freq=4, seed=seed),
    "leave-one-out": lambda seed: make(make_vec_env("CartPole-v1", 2), baseline="leave_one_out", seed=seed),
    "fixed length": lambda seed: make(make_vec_env("CartPole-v1", 2), complete_episodes=False, seed=seed),
}


@pytest.mark.parametrize("name", SEEDED)
def test_the_same_seed_gives_the_same_weights_to_the_last_bit_and_another_seed_others(name: str) -> None:
    first, second, other = (weights(SEEDED[name](seed).learn(150)) for seed in (1, 1, 2))
    assert equal(first, second)
    assert not equal(first, other)


@pytest.mark.parametrize("name", ["Discrete", "Box, several environments"])
def test_the_same_seed_gives_the_same_weights_after_loading_too(name: str) -> None:
    model = SEEDED[name](1).learn(100)
    stream = io.BytesIO()
    model.save(stream)

    def continued(**kwargs: Any) -> list[th.Tensor]:
        stream.seek(0)
        env = SEEDED[name](1).get_env()
        return weights(REINFORCE.load(stream, env=env, device="cpu", **kwargs).learn(100, reset_num_timesteps=False))

    first = continued()
    assert equal(first, continued())
    assert not equal(first, continued(seed=5))


def test_a_model_without_a_seed_follows_the_global_one() -> None:
    def learnt(seed: int) -> list[th.Tensor]:
        set_random_seed(seed)
        return weights(make(Scripted((5,), reward=ramp), seed=None).learn(64))

    assert equal(learnt(3), learnt(3))
    assert not equal(learnt(3), learnt(4))


def test_models_without_a_seed_differ() -> None:
    assert not equal(weights(make(seed=None).learn(64)), weights(make(seed=None).learn(64)))


def test_the_seed_can_be_set_later() -> None:
    model = make(Scripted((5,), CONTINUOUS, reward=ramp)).learn(64)
    parameters = copy.deepcopy(model.get_parameters())

    def continued() -> list[th.Tensor]:
        model.set_parameters(copy.deepcopy(parameters), device="cpu")
        model.set_random_seed(7)
        return weights(model.learn(64))

    assert equal(continued(), continued())


def test_evaluation_in_between_does_not_change_what_is_learnt() -> None:
    def learnt(callback: BaseCallback | None) -> list[th.Tensor]:
        return weights(make(Scripted((5,), reward=ramp), n_critic_updates=0, n_steps=20).learn(60, callback))

    # The fast path draws from a generator of its own, which a deterministic evaluation cannot disturb
    evaluation = EvalCallback(Monitor(Scripted((5,), reward=ramp)), eval_freq=7, verbose=0)
    assert equal(learnt(None), learnt(evaluation))


# Learning rates and the optimizer


@pytest.mark.parametrize("critic_learning_rate", [None, 1e-2])
@pytest.mark.parametrize("baseline", ["value", "mean", None])
def test_the_optimizer_always_has_two_groups(baseline: str | None, critic_learning_rate: float | None) -> None:
    model = make(baseline=baseline, critic_learning_rate=critic_learning_rate)
    groups = model.policy.optimizer.param_groups
    assert [group["critic"] for group in groups] == [False, True]
    names = {parameter: name for name, parameter in model.policy.named_parameters()}
    assert all("value_net" in names[parameter] for parameter in groups[1]["params"])
    assert not any("value_net" in names[parameter] for parameter in groups[0]["params"])
    assert sum(len(group["params"]) for group in groups) == len(names)


@pytest.mark.parametrize(
    "critic",
    [None, 1e-2, LinearSchedule(2e-2, 0.0, 1.0), lambda progress: 0.5 * progress],
    ids=["none", "number", "schedule", "function"],
)
@pytest.mark.parametrize(
    "actor", [1e-3, LinearSchedule(1e-2, 0.0, 1.0), lambda progress: progress**2], ids=["number", "schedule", "function"]
)
def test_learning_rates_and_schedules_reach_the_optimizer_of_actor_and_critic(actor: Any, critic: Any) -> None:
    def rate(schedule: Any, progress: float) -> float:
        return schedule(progress) if callable(schedule) else schedule

    rates: list[tuple[float, float]] = []

    class Rates(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            actor_group, critic_group = self.model.policy.optimizer.param_groups  # type: ignore[union-attr]
            rates.append((actor_group["lr"], critic_group["lr"]))

    model = make(Scripted((5,), reward=ramp), n_steps=10, learning_rate=actor, critic_learning_rate=critic)
    model.learn(40, Rates())
    used_for_critic = actor if critic is None else critic
    expected = [(rate(actor, progress), rate(used_for_critic, progress)) for progress in (0.75, 0.5, 0.25)]
    np.testing.assert_allclose(rates[1:], expected)
    assert model.logger.name_to_value["train/learning_rate"] == pytest.approx(rate(actor, 0.0))
    if critic is not None:
        assert model.logger.name_to_value["train/critic_learning_rate"] == pytest.approx(rate(critic, 0.0))


@pytest.mark.parametrize("still", ["actor", "critic"])
def test_a_learning_rate_of_zero_stops_its_part_alone(still: str) -> None:
    rates = {"learning_rate": 0.0, "critic_learning_rate": 1e-2} if still == "actor" else {"critic_learning_rate": 0.0}
    model = make(Scripted((5,), reward=ramp), n_steps=10, **rates)
    before = {name: p.detach().clone() for name, p in model.policy.named_parameters()}
    model.learn(20)
    moved = {name for name, p in model.policy.named_parameters() if not th.equal(before[name], p)}
    assert moved
    assert all(("value_net" in name) == (still == "actor") for name in moved)


# Rollout buffers of the user's own


class Watching(RolloutBuffer):
    """SB3's buffer, with an eye on how it is called."""

    added: list[tuple[Any, ...]]

    def reset(self) -> None:
        super().reset()
        self.added = []

    def add(self, *args: Any, **kwargs: Any) -> None:
        self.added.append((args, kwargs))
        super().add(*args, **kwargs)


class WatchingDict(DictRolloutBuffer):
    """SB3's buffer for dictionaries."""


def test_a_buffer_of_sb3s_gets_the_calls_of_sb3() -> None:
    env = vec(Scripted((5,), reward=ramp), Scripted((3,), reward=ramp))
    model = make(env, n_steps=10, rollout_buffer_class=Watching, complete_episodes=False)
    before = weights(model)
    model.learn(60, log_interval=None)  # type: ignore[arg-type]
    buffer = model.rollout_buffer
    assert isinstance(buffer, Watching) and len(buffer.added) == 10
    for args, kwargs in buffer.added:
        assert len(args) == 6 and not kwargs
        obs, actions, rewards, starts, values, log_probs = args
        assert obs.shape == (2, 2) and actions.shape == (2, 1) and rewards.shape == (2,) and starts.shape == (2,)
        assert values.shape == (2, 1) and log_probs.shape == (2,)
    assert buffer.full
    assert not equal(before, weights(model))
    assert model.logger.name_to_value["rollout/n_steps"] == 20


def test_a_buffer_of_sb3s_for_dictionaries_works_too() -> None:
    env = Scripted((5,), spaces.Dict({"vector": CONTINUOUS}), reward=ramp)
    model = REINFORCE(
        "MultiInputPolicy", env, n_steps=10, rollout_buffer_class=WatchingDict, complete_episodes=False, device="cpu"
    )
    model.learn(30)


class SB3Path(ActorCriticPolicy):
    """A policy that is always called as SB3 calls it, so that it draws the same actions for every buffer."""

    def forward(self, obs: th.Tensor, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        return super().forward(obs, deterministic)


@pytest.mark.parametrize("gae_lambda", [1.0, 0.8])
@pytest.mark.parametrize("truncated", [True, False])
def test_a_buffer_of_sb3s_gives_the_update_that_ours_gives(truncated: bool, gae_lambda: float) -> None:
    def updated(buffer_class: type[RolloutBuffer] | None) -> tuple[np.ndarray, list[th.Tensor]]:
        env = vec(*(Scripted((length,), reward=ramp, truncated=truncated) for length in (4, 7)))
        kwargs = {**SMALL, "optimizer_class": th.optim.SGD}
        model = REINFORCE(
            SB3Path,
            env,
            n_steps=10,
            complete_episodes=False,
            gae_lambda=gae_lambda,
            rollout_buffer_class=buffer_class,
            n_critic_updates=0,
            learning_rate=0.1,
            policy_kwargs=kwargs,
            seed=0,
            device="cpu",
        )
        model.learn(20)
        buffer = model.rollout_buffer
        return buffer.advantages.flatten(), weights(model)

    ours, sb3s = updated(None), updated(RolloutBuffer)
    np.testing.assert_allclose(sb3s[0], ours[0], rtol=1e-4, atol=1e-5)
    for a, b in zip(ours[1], sb3s[1], strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-4, atol=1e-6)


def test_a_rollout_into_a_buffer_of_sb3s_that_was_stopped_is_not_gone_on_with() -> None:
    model = make(
        vec(*(Scripted((5,), reward=ramp) for _ in range(2))),
        n_steps=10,
        rollout_buffer_class=Watching,
        complete_episodes=False,
    )
    before = weights(model)
    model.learn(100, Events(stop_at=7))
    assert model.num_timesteps == 14 and equal(before, weights(model))
    model.learn(20, reset_num_timesteps=False)
    assert isinstance(model.rollout_buffer, Watching)
    assert [args[0][0, 1] for args, _ in model.rollout_buffer.added] == [0, 1, 2, 3, 4] * 2


def test_a_buffer_that_cannot_hold_whole_episodes_is_refused_when_learning_starts() -> None:
    model = make(Scripted(), rollout_buffer_class=Watching)
    with pytest.raises(ValueError, match=r"`rollout_buffer_class`.*complete_episodes=True.*got Watching"):
        model.learn(10)


@pytest.mark.parametrize(
    "kwargs", [{"reward_to_go": False}, {"bootstrap_on_truncation": False}, {"discount_state_distribution": True}]
)
def test_a_buffer_of_sb3s_is_refused_what_it_cannot_do(kwargs: dict[str, Any]) -> None:
    model = make(Scripted(), rollout_buffer_class=Watching, complete_episodes=False, **kwargs)
    with pytest.raises(ValueError, match=f"`rollout_buffer_class`.*{next(iter(kwargs))}"):
        model.learn(10)


@pytest.mark.parametrize("complete_episodes", [True, False])
def test_a_buffer_derived_from_ours_is_welcome(complete_episodes: bool) -> None:
    class Own(EpisodeRolloutBuffer):
        def __init__(self, *args: Any, note: str = "", **kwargs: Any):
            super().__init__(*args, **kwargs)
            self.note = note

    model = make(
        Scripted(), rollout_buffer_class=Own, rollout_buffer_kwargs={"note": "mine"}, complete_episodes=complete_episodes
    ).learn(40)
    assert isinstance(model.rollout_buffer, Own) and model.rollout_buffer.note == "mine"


# Devices


def test_an_mlp_on_a_gpu_is_warned_of_as_in_sb3(monkeypatch: pytest.MonkeyPatch) -> None:
    def on_gpu(policy: str, env: Any) -> REINFORCE:
        model = REINFORCE(policy, env, device="cpu", n_steps=4)
        monkeypatch.setattr(model, "device", th.device("cuda"))
        return model

    with pytest.warns(UserWarning, match=r"trying to run REINFORCE on the GPU.*MlpPolicy"):
        on_gpu("MlpPolicy", Scripted())._maybe_recommend_cpu()
    with pytest.warns(UserWarning) as caught:
        on_gpu("CnnPolicy", Scripted(observation_space=spaces.Box(0, 255, (36, 36, 1), np.uint8)))._maybe_recommend_cpu()
        on_gpu("MlpPolicy", Scripted())._maybe_recommend_cpu()
    assert len([warning for warning in caught if "on the GPU" in str(warning.message)]) == 1


@pytest.mark.skipif(not th.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("continuous", [True, False])
def test_a_model_learns_on_a_gpu_and_is_loaded_without_one(continuous: bool) -> None:
    env = vec(*(Scripted((4, 6), action_space=CONTINUOUS if continuous else None, reward=ramp) for _ in range(2)))
    with pytest.warns(UserWarning, match="on the GPU"):
        model = REINFORCE("MlpPolicy", env, n_steps=16, device="cuda", seed=0)
    before = weights(model)
    model.learn(64)
    assert not equal(before, weights(model))
    stream = io.BytesIO()
    model.save(stream)
    stream.seek(0)
    loaded = REINFORCE.load(stream, env=env, device="cpu")
    assert all(th.equal(a.cpu(), b) for a, b in zip(weights(model), weights(loaded), strict=True))
    loaded.learn(32)
