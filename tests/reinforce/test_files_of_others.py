"""Files and parameters of A2C and PPO, of other networks and other optimizers, and copies of models."""

import copy
import inspect
import io
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch as th
from sb3_contrib import TRPO, MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.save_util import load_from_zip_file

from sb3_reinforce import REINFORCE
from tests.helpers import ROOT
from tests.helpers.environments import Breaking, Scripted, vec

SMALL: dict[str, Any] = {"net_arch": [8]}


def ramp(timestep: int) -> float:
    return timestep * timestep - 3.0


def env() -> Any:
    return vec(Scripted((5,), reward=ramp))


def make(**kwargs: Any) -> REINFORCE:
    return REINFORCE("MlpPolicy", env(), **{"n_steps": 20, "seed": 0, "device": "cpu", "policy_kwargs": dict(SMALL), **kwargs})


def other(cls: type[OnPolicyAlgorithm], **kwargs: Any) -> OnPolicyAlgorithm:
    arguments: dict[str, Any] = {
        "n_steps": 16,
        "seed": 3,
        "gamma": 0.875,
        "policy_kwargs": dict(SMALL),
        "device": "cpu",
        **kwargs,
    }  # A2C writes into them
    if cls is PPO:
        arguments = {"batch_size": 8, "n_epochs": 1, "target_kl": 0.5, **arguments}
    return cls("MlpPolicy", env(), **arguments).learn(32)


def same_weights(a: Any, b: Any) -> bool:
    own, others = a.policy.state_dict(), b.policy.state_dict()
    return own.keys() == others.keys() and all(th.equal(own[name], others[name]) for name in own)


def moved(model: REINFORCE, timesteps: int = 40, **kwargs: Any) -> bool:
    before = copy.deepcopy(model.policy.state_dict())
    model.learn(timesteps, **kwargs)
    return any(not th.equal(before[name], tensor) for name, tensor in model.policy.state_dict().items())


@pytest.mark.parametrize("from_stream", [False, True])
@pytest.mark.parametrize("cls", [A2C, PPO, TRPO])
def test_a_file_of_another_algorithm_gives_its_policy_and_the_rest_is_ours(
    cls: type[OnPolicyAlgorithm], from_stream: bool, tmp_path: Path
) -> None:
    model = other(cls)
    path: Any = io.BytesIO() if from_stream else tmp_path / "model"
    model.save(path)
    if from_stream:
        path.seek(0)
    with pytest.warns(UserWarning) as caught:
        loaded = REINFORCE.load(path, env=env(), device="cpu")
    messages = [str(warning.message) for warning in caught]
    assert any("another algorithm" in message for message in messages)
    assert any("optimizer" in message and "anew" in message for message in messages)
    assert same_weights(loaded, model)
    assert loaded.gamma == 0.875 and loaded.seed == 3
    fresh = REINFORCE("MlpPolicy", env(), device="cpu")
    for name in ("n_steps", "learning_rate", "gae_lambda", "batch_size", "target_kl", "normalize_advantage", "ent_coef"):
        assert getattr(loaded, name) == getattr(fresh, name), name
    assert type(loaded.policy.optimizer) is type(fresh.policy.optimizer)
    assert loaded.policy.optimizer.state_dict()["state"] == {}
    assert not hasattr(loaded, "n_epochs")
    obs = np.zeros((3, 2), np.float32)
    np.testing.assert_array_equal(loaded.predict(obs, deterministic=True)[0], model.predict(obs, deterministic=True)[0])
    assert moved(loaded)


def test_arguments_given_to_load_count_for_files_of_others_too(tmp_path: Path) -> None:
    other(PPO).save(tmp_path / "ppo.zip")
    with pytest.warns(UserWarning, match="another algorithm"):
        loaded = REINFORCE.load(tmp_path / "ppo.zip", device="cpu", n_steps=7, baseline="mean", custom_objects={"seed": 11})
    assert (loaded.n_steps, loaded.baseline, loaded.seed) == (7, "mean", 11)


@pytest.mark.filterwarnings("ignore:.*(another algorithm|optimizer)")
def test_a_file_of_another_algorithm_that_became_ours_is_loaded_as_ours(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    other(A2C).save(tmp_path / "a2c.zip")
    model = REINFORCE.load(tmp_path / "a2c.zip", env=env(), n_steps=20, device="cpu").learn(40)
    model.save(tmp_path / "ours.zip")
    recwarn.clear()
    loaded = REINFORCE.load(tmp_path / "ours.zip", env=env(), device="cpu")
    assert not [warning for warning in recwarn if "algorithm" in str(warning.message)]
    assert same_weights(model, loaded) and loaded.policy.optimizer.state_dict()["state"]


@pytest.mark.parametrize("cls", [A2C, PPO, TRPO])
def test_parameters_of_another_algorithm_are_taken_and_the_optimizer_starts_anew(cls: type[OnPolicyAlgorithm]) -> None:
    model, theirs = make().learn(40), other(cls)
    with pytest.warns(UserWarning, match="optimizer was not taken over, and it starts anew"):
        model.set_parameters(theirs.get_parameters())
    assert same_weights(model, theirs)
    assert model.policy.optimizer.state_dict()["state"] == {}
    assert moved(model)


def test_parameters_can_be_set_from_a_file_of_another_algorithm(tmp_path: Path) -> None:
    theirs = other(PPO)
    theirs.save(tmp_path / "ppo.zip")
    model = make()
    with pytest.warns(UserWarning, match="optimizer"):
        model.set_parameters(str(tmp_path / "ppo.zip"))
    assert same_weights(model, theirs)


def snapshot(model: REINFORCE) -> Any:
    return copy.deepcopy(model.get_parameters())


def equal_parameters(a: Any, b: Any) -> bool:
    stream_a, stream_b = io.BytesIO(), io.BytesIO()
    th.save(a, stream_a)
    th.save(b, stream_b)
    return stream_a.getvalue() == stream_b.getvalue()


@pytest.mark.parametrize("exact_match", [True, False])
def test_parameters_of_another_network_are_refused_in_one_sentence_and_nothing_changes(exact_match: bool) -> None:
    model = make().learn(40)
    before = snapshot(model)
    wide = other(PPO, policy_kwargs={"net_arch": [9]}).get_parameters()
    with pytest.raises(ValueError, match=r"got mlp_extractor\S+ of shape \(9, 2\), expected \(8, 2\)") as error:
        model.set_parameters(wide, exact_match=exact_match)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")
    assert equal_parameters(before, snapshot(model))


def test_parameters_of_a_deeper_network_are_refused_in_one_sentence() -> None:
    model = make()
    with pytest.raises(ValueError, match=r"got none named action_net|got mlp_extractor|of shape") as error:
        model.set_parameters(other(A2C, policy_kwargs={"net_arch": [8, 8]}).get_parameters())
    assert "\n" not in str(error.value)


def test_files_of_algorithms_with_other_policies_are_refused_in_one_sentence(tmp_path: Path) -> None:
    DQN("MlpPolicy", "CartPole-v1", device="cpu").save(tmp_path / "dqn.zip")
    RecurrentPPO("MlpLstmPolicy", "CartPole-v1", device="cpu").save(tmp_path / "lstm.zip")
    MaskablePPO("MlpPolicy", "CartPole-v1", device="cpu").save(tmp_path / "mask.zip")
    for name in ("dqn", "lstm", "mask"):
        with (
            pytest.warns(UserWarning, match="another algorithm"),
            pytest.raises(ValueError, match="`policy` must be a subclass of SB3's ActorCriticPolicy") as error,
        ):
            REINFORCE.load(tmp_path / f"{name}.zip", device="cpu")
        assert "\n" not in str(error.value)


def test_names_that_do_not_match_are_refused_before_anything_is_loaded() -> None:
    model = make()
    before = snapshot(model)
    weights = other(PPO).get_parameters()["policy"]
    with pytest.raises(ValueError, match="Names of parameters do not match"):
        model.set_parameters({"policy": weights})
    with pytest.raises(ValueError, match="Names of parameters do not match"):
        model.set_parameters({"policy": weights, "critic.optimizer": {}}, exact_match=False)
    assert equal_parameters(before, snapshot(model))
    model.set_parameters({"policy": weights}, exact_match=False)
    assert th.equal(model.policy.state_dict()["action_net.weight"], weights["action_net.weight"])


def test_a_missing_file_is_reported_as_sb3_does() -> None:
    with pytest.raises(FileNotFoundError):
        REINFORCE.load("there_is_no_such_file")


# Our own, with other optimizers


@pytest.mark.parametrize("optimizer", [th.optim.AdamW, th.optim.SGD, th.optim.RMSprop])
def test_a_model_whose_optimizer_was_replaced_is_saved_and_loaded(
    optimizer: type[th.optim.Optimizer], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    model = make()
    model.policy.optimizer = optimizer(model.policy.parameters(), lr=1e-3)
    model.learn(40).save(tmp_path / "model.zip")
    loaded = REINFORCE.load(tmp_path / "model.zip", env=env(), device="cpu")
    assert same_weights(model, loaded)
    told = [str(warning.message) for warning in recwarn if "optimizer" in str(warning.message)]
    # The state of AdamW is that of Adam, the others' is not
    assert bool(told) == (optimizer is not th.optim.AdamW)
    assert moved(loaded)


def test_parameters_of_our_own_keep_the_state_of_the_optimizer(recwarn: pytest.WarningsRecorder) -> None:
    model, copied = make().learn(40), make(seed=7)
    copied.set_parameters(model.get_parameters())
    assert equal_parameters(model.get_parameters(), copied.get_parameters())
    assert not [warning for warning in recwarn if "optimizer" in str(warning.message)]


def test_a_model_of_version_0_1_is_loaded_and_trains_on(recwarn: pytest.WarningsRecorder) -> None:
    path = ROOT / "tests" / "data" / "cartpole_0.1.zip"
    model = REINFORCE.load(path, env=make_vec_env("CartPole-v1", 1), device="cpu")
    assert not [warning for warning in recwarn if "optimizer" in str(warning.message) or "algorithm" in str(warning.message)]
    assert model.num_timesteps > 0 and model.policy.optimizer.state_dict()["state"]
    assert moved(model, 1000, reset_num_timesteps=False)
    # Its critic has raw units, as all had then
    assert model.normalize_returns is False and model._return_units.n_batches == 0
    assert REINFORCE.load(path, device="cpu", normalize_returns=True).normalize_returns is True


def test_a_saved_file_holds_arguments_and_the_state_of_sb3_and_nothing_of_the_run(tmp_path: Path) -> None:
    of_sb3 = A2C("MlpPolicy", env()).learn(10)
    of_sb3.save(tmp_path / "a2c")
    known = set(load_from_zip_file(tmp_path / "a2c")[0] or {}) | set(inspect.signature(REINFORCE).parameters)
    for kwargs in ({}, {"natural_gradient": True}, {"baseline": "leave_one_out", "horizon": 3}):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            make(**kwargs).learn(40).save(tmp_path / "model")
        data = load_from_zip_file(tmp_path / "model")[0]
        assert data is not None and set(data) - known <= {
            "critic_lr_schedule",
            "_natural_refusal",
            "_reward_found",
            "_warned_of_horizon",
            "_return_units",
            "_rollout_start",
            "_seen",
            "sb3_reinforce_version",
        }


# Copies


def pickled(model: REINFORCE) -> REINFORCE:
    return pickle.loads(pickle.dumps(model))


def cloudpickled(model: REINFORCE) -> REINFORCE:
    return pickle.loads(cloudpickle.dumps(model))


COPIES: dict[str, Callable[[REINFORCE], REINFORCE]] = {
    "pickle": pickled,
    "cloudpickle": cloudpickled,
    "deepcopy": copy.deepcopy,
}

MOMENTS: dict[str, Callable[[], REINFORCE]] = {
    "before learning": make,
    "after learning": lambda: make().learn(40),
    "after learning without a critic": lambda: make(baseline="leave_one_out").learn(40),
    "after a natural step": lambda: make(natural_gradient=True).learn(40),
    "after gSDE": lambda: REINFORCE(
        "MlpPolicy", "Pendulum-v1", use_sde=True, n_steps=20, horizon=20, policy_kwargs=SMALL, seed=0, device="cpu"
    ).learn(20),
    "with a log on the screen": lambda: make(verbose=1).learn(40),
    "after a stop": lambda: make().learn(40, callback=lambda locals_, globals_: False),
    "with SB3's buffer": lambda: make(
        complete_episodes=False, rollout_buffer_class=A2C("MlpPolicy", env()).rollout_buffer_class
    ).learn(40),
}


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.filterwarnings("ignore:An episode was cut")
def test_a_model_can_be_copied_at_every_moment_between_calls_of_learn(moment: str, way: str) -> None:
    model = MOMENTS[moment]()
    training_env, model.env = model.env, None
    copied = COPIES[way](model)
    assert same_weights(model, copied)
    assert copied.num_timesteps == model.num_timesteps
    copied.set_env(copy.deepcopy(training_env) if training_env is not None else env())
    assert moved(copied)


@pytest.mark.parametrize("way", COPIES)
def test_a_copy_learns_what_the_model_learns(way: str) -> None:
    model = make(n_critic_updates=0).learn(40)  # whose minibatches come from NumPy's own generator
    model.env = None
    copied = COPIES[way](model)
    for each in (model, copied):
        each.set_env(env())
        each.learn(40, reset_num_timesteps=False)
    assert same_weights(model, copied)


@pytest.mark.parametrize("way", COPIES)
@pytest.mark.parametrize("when", ["playing", "updating"])
@pytest.mark.parametrize("kwargs", [{}, {"natural_gradient": True}, {"baseline": None}], ids=str)
def test_a_model_can_be_copied_after_a_call_of_learn_that_failed(
    when: str, kwargs: dict[str, Any], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if when == "playing":
        breaking = vec(Breaking(Scripted((5,), reward=ramp), 33, RuntimeError("broken")))
        model = REINFORCE("MlpPolicy", breaking, n_steps=20, policy_kwargs=SMALL, device="cpu", **kwargs)
    else:
        model = make(**kwargs)
        monkeypatch.setattr("sb3_reinforce.reinforce.check_losses", lambda *_: (_ for _ in ()).throw(RuntimeError("broken")))
    with pytest.raises(RuntimeError, match="broken"):
        model.learn(40)
    monkeypatch.undo()
    model.env = None
    copied = COPIES[way](model)
    copied.set_env(env())
    assert same_weights(model, copied) and moved(copied)


def test_a_copy_of_a_model_with_a_log_of_its_own_logs_again(tmp_path: Path) -> None:
    model = make()
    model.set_logger(configure(str(tmp_path), ["csv"]))
    copied = copy.deepcopy(model.learn(20))
    assert moved(copied)
    assert model.logger is not copied.logger


def test_a_state_with_fewer_names_is_that_of_another_optimizer(tmp_path: Path) -> None:
    model = make()
    model.policy.optimizer = th.optim.Adamax(model.policy.parameters())  # whose options are some of Adam's
    model.learn(40).save(tmp_path / "model.zip")
    with pytest.warns(UserWarning, match="optimizer was not taken over"):
        loaded = REINFORCE.load(tmp_path / "model.zip", env=env(), device="cpu")
    assert moved(loaded)


@pytest.mark.parametrize("part", ["numpy", "text", "nothing", "empty optimizer", "no optimizer"])
def test_parameters_that_are_none_are_refused_in_one_sentence_and_nothing_changes(part: str) -> None:
    model = make().learn(40)
    before, given = snapshot(model), make(seed=5).learn(40).get_parameters()
    if part in ("numpy", "text"):
        given["policy"]["action_net.weight"] = np.zeros((2, 8)) if part == "numpy" else "weights"  # type: ignore[assignment]
    elif part == "nothing":
        given["policy"] = None  # type: ignore[assignment]
    else:
        given["policy.optimizer"] = {} if part == "empty optimizer" else None  # type: ignore[assignment]
    with pytest.raises(ValueError, match="must") as error:
        model.set_parameters(given)
    assert "\n" not in str(error.value) and str(error.value).endswith(".")
    assert equal_parameters(before, snapshot(model))


def test_an_environment_that_was_saved_with_a_model_of_another_algorithm_is_kept(tmp_path: Path) -> None:
    model = A2C("MlpPolicy", "CartPole-v1", n_steps=16, device="cpu")
    model.save(tmp_path / "a2c.zip", include=["env"])
    with pytest.warns(UserWarning, match="another algorithm"):
        loaded = REINFORCE.load(tmp_path / "a2c.zip", n_steps=20, device="cpu")
    assert moved(loaded)
