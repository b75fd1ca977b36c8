"""What users of SB3 expect of ``save`` and ``load``."""

import copy
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
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.save_util import load_from_zip_file
from stable_baselines3.common.utils import LinearSchedule

from sb3_reinforce import REINFORCE
from tests.helpers.environments import Scripted
from tests.reinforce.interface import CONTINUOUS, SMALL, equal, make, ramp, weights

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
    loaded.learn(200, reset_num_timesteps=False)
    assert loaded.num_timesteps >= n_before + 200
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


def test_a_compiled_policy_learns_and_is_saved() -> None:
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
