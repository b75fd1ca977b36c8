"""Bad arguments, bad numbers, bad environments and interruptions: one clear sentence, and nothing lost."""

import copy
import io
import math
import re
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_reinforce import REINFORCE
from sb3_reinforce.update import numpy_critic
from tests.helpers.environments import Breaking, Poisoned, Scripted, vec

SMALL = {"net_arch": [8]}
CONTINUOUS = spaces.Box(-1, 1, (2,))


def ramp(timestep: int) -> float:
    return float(timestep)


def make(env: Any = None, **kwargs: Any) -> REINFORCE:
    defaults = {"learning_rate": 1e-2, "n_steps": 10, "seed": 0, "device": "cpu", "policy_kwargs": SMALL}
    return REINFORCE("MlpPolicy", Scripted((5,), reward=ramp) if env is None else env, **{**defaults, **kwargs})


def snapshot(model: REINFORCE) -> tuple[dict[str, th.Tensor], dict[str, Any]]:
    """Weights and optimizer state, less what a learning rate schedule writes."""
    optimizer = copy.deepcopy(model.policy.optimizer.state_dict())
    for group in optimizer["param_groups"]:
        del group["lr"]
    return {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}, optimizer


def assert_same(before: Any, after: Any) -> None:
    assert type(before) is type(after)
    if isinstance(before, th.Tensor):
        assert th.equal(th.nan_to_num(before, 123.0), th.nan_to_num(after, 123.0))
    elif isinstance(before, dict):
        assert before.keys() == after.keys()
        for key in before:
            assert_same(before[key], after[key])
    elif isinstance(before, list | tuple):
        assert len(before) == len(after)
        for a, b in zip(before, after, strict=True):
            assert_same(a, b)
    else:
        assert before == after


def assert_one_sentence(message: str) -> None:
    assert "\n" not in message
    assert message.endswith(".") and not re.search(r"\.\s", message), message
    assert message[0] in "`" or message[0].isupper()


def assert_usable(model: REINFORCE) -> None:
    """The model can be saved, and learns on."""
    stream = io.BytesIO()
    model.save(stream)
    stream.seek(0)
    loaded = REINFORCE.load(stream, device="cpu")
    assert_same(snapshot(model)[0], snapshot(loaded)[0])
    before = snapshot(model)[0]
    model.learn(20, reset_num_timesteps=False)
    after = snapshot(model)[0]
    assert any(not th.equal(before[name], after[name]) for name in before)
    assert all(tensor.isfinite().all() for tensor in after.values())


# Arguments

#: Name of the argument, bad values, what the sentence says it takes
BAD_VALUES: list[tuple[str, list[Any], str]] = [
    ("n_steps", [0, -1, 2.5, "10", True, math.nan], "integer of at least 1"),
    ("n_episodes", [0, -1, 2.5, "10", True], "integer of at least 1"),
    ("horizon", [0, -5, 2.5, "10", True, math.inf], "integer of at least 1"),
    ("batch_size", [0, -1, 0.5, True], "integer of at least 1"),
    ("n_critic_updates", [-1, 0.5, None, True], "integer of at least 0"),
    ("gamma", [-0.1, 1.1, math.nan, math.inf, "0.9", None, True], r"number in \[0, 1\]"),
    ("gae_lambda", [-0.1, 1.1, math.nan, "0.9", None], r"number in \[0, 1\]"),
    ("ent_coef", [math.nan, math.inf, -math.inf, "0"], "number"),
    ("vf_coef", [-0.1, math.nan, math.inf, "0", None], "number of at least 0"),
    ("max_grad_norm", [0, -0.5, math.nan, "0", None], "number greater than 0"),
    ("learning_rate", [-1e-3, math.nan, math.inf, "fast", None], "number"),
    ("critic_learning_rate", [-1e-3, math.nan, math.inf, "fast"], "number"),
    ("baseline", ["values", "Value", "", 0, 3.5, True, ["value"]], "'value' or a callable"),
    ("average_over", ["steps", None, 1], "'timesteps' or 'episodes'"),
    ("reward_to_go", [None, 1, "yes"], "True or False"),
    ("complete_episodes", [None, 0, "no"], "True or False"),
    ("bootstrap_on_truncation", [None, 1], "True or False"),
    ("discount_state_distribution", [None, 1], "True or False"),
    ("normalize_advantage", [None, 1], "True, False or 'group'"),
    ("natural_gradient", [0, 1, "yes"], "True, False or None"),
    ("target_kl", [0, -0.01, math.nan, math.inf, 10**400, "0.01", None, True], "number greater than 0 or a schedule"),
    ("cg_max_steps", [0, -1, 2.5, "10", None, True], "integer of at least 1"),
    ("cg_damping", [-0.1, math.nan, math.inf, "0", None, True], "number of at least 0"),
    ("sub_sampling_factor", [0, -1, 2.5, "10", True], "integer of at least 1"),
]
BAD_SINGLE = [(name, value, takes) for name, values, takes in BAD_VALUES for value in values]


@pytest.mark.parametrize("name, value, takes", BAD_SINGLE, ids=lambda x: repr(x)[:20])
def test_a_bad_argument_is_refused_by_the_constructor(name: str, value: Any, takes: str) -> None:
    with pytest.raises(ValueError, match=f"^`{name}` must be .*{takes}.*, got {re.escape(repr(value))}") as error:
        make(**{name: value})
    assert_one_sentence(str(error.value))


#: Arguments, the name that the sentence begins with, and what else it holds
BAD_COMBINATIONS: list[tuple[dict[str, Any], str, list[str]]] = [
    ({"gae_lambda": 0.9, "baseline": None}, "gae_lambda", ["baseline='value'", "0.9", "None"]),
    ({"gae_lambda": 0.9, "baseline": "mean"}, "gae_lambda", ["baseline='value'", "'mean'"]),
    ({"gae_lambda": 0.9, "reward_to_go": False}, "gae_lambda", ["reward_to_go=True", "reward_to_go=False"]),
    ({"complete_episodes": False, "baseline": None}, "complete_episodes=False", ["baseline='value'", "None"]),
    ({"complete_episodes": False, "baseline": "leave_one_out"}, "complete_episodes=False", ["'leave_one_out'"]),
    ({"complete_episodes": False, "n_episodes": 2}, "n_episodes", ["complete_episodes=True", "2"]),
]


@pytest.mark.parametrize("kwargs, name, parts", BAD_COMBINATIONS, ids=str)
def test_a_bad_combination_is_refused_by_the_constructor(kwargs: dict[str, Any], name: str, parts: list[str]) -> None:
    with pytest.raises(ValueError, match=f"^`{name}`.*got") as error:
        make(**kwargs)
    assert_one_sentence(str(error.value))
    assert all(part in str(error.value) for part in parts)


@pytest.mark.parametrize("kwargs", [{"n_episodes": 1}, {"n_steps": 1}], ids=str)
def test_leaving_one_out_of_a_single_episode_is_refused(kwargs: dict[str, int]) -> None:
    name, value = next(iter(kwargs.items()))
    with pytest.raises(ValueError, match=f"leave_one_out.*two episodes.*{name}={value}") as error:
        make(baseline="leave_one_out", **kwargs)
    assert_one_sentence(str(error.value))
    # Two environments hold two episodes
    make(vec(Scripted((5,)), Scripted((3,))), baseline="leave_one_out", **kwargs).learn(10)


def test_leaving_one_out_is_checked_against_the_environments_of_a_loaded_model() -> None:
    model = make(vec(Scripted(), Scripted()), baseline="leave_one_out", n_episodes=1)
    stream = io.BytesIO()
    model.save(stream)
    stream.seek(0)
    loaded = REINFORCE.load(stream, env=Scripted(), device="cpu")
    with pytest.raises(ValueError, match="leave_one_out"):
        loaded.learn(10)


@pytest.mark.parametrize(
    "name, value, takes", [(name, values[0], takes) for name, values, takes in BAD_VALUES], ids=lambda x: repr(x)[:20]
)
def test_a_bad_argument_is_refused_when_a_model_is_loaded_or_changed_by_hand(name: str, value: Any, takes: str) -> None:
    model = make()
    stream = io.BytesIO()
    model.save(stream)
    stream.seek(0)
    with pytest.raises(ValueError, match=f"^`{name}` must be .*{takes}"):
        REINFORCE.load(stream, env=model.get_env(), device="cpu", **{name: value}).learn(10)
    setattr(model, name, value)
    with pytest.raises(ValueError, match=f"^`{name}` must be .*{takes}"):
        model.learn(10)


@pytest.mark.parametrize("kwargs, name, parts", BAD_COMBINATIONS, ids=str)
def test_a_bad_combination_is_refused_when_a_model_is_loaded(kwargs: dict[str, Any], name: str, parts: list[str]) -> None:
    stream = io.BytesIO()
    make().save(stream)
    stream.seek(0)
    with pytest.raises(ValueError, match=f"^`{name}`"):
        REINFORCE.load(stream, env=Scripted(), device="cpu", **kwargs).learn(10)


def test_an_argument_that_does_not_exist_is_refused_with_a_hint() -> None:
    with pytest.raises(TypeError, match="n_step"):
        make(n_step=5)
    stream = io.BytesIO()
    make().save(stream)
    stream.seek(0)
    with pytest.raises(ValueError, match="`n_step`, did you mean `n_steps`"):
        REINFORCE.load(stream, device="cpu", n_step=5)


def test_a_buffer_that_cannot_hold_episodes_is_refused_at_learn_and_not_before() -> None:
    model = make(rollout_buffer_class=RolloutBuffer)
    with pytest.raises(ValueError, match=r"^`rollout_buffer_class`.*complete_episodes=True.*got RolloutBuffer") as error:
        model.learn(10)
    assert_one_sentence(str(error.value))


def test_an_unknown_policy_is_refused_as_in_sb3() -> None:
    with pytest.raises(ValueError, match="Policy MlpPolic unknown, expected one of MlpPolicy, "):
        REINFORCE("MlpPolic", Scripted())


# A callable baseline

BAD_BASELINES: dict[str, tuple[Callable[..., Any], str]] = {
    "too short": (
        lambda returns, timesteps, episode_ids: returns[:-1],
        r"returned an array of shape \(9,\).*expected \(10,\)",
    ),
    "a number": (lambda returns, timesteps, episode_ids: 0.0, r"returned an array of shape \(\).*expected \(10,\)"),
    "a column": (
        lambda returns, timesteps, episode_ids: returns[:, None],
        r"returned an array of shape \(10, 1\).*expected \(10,\)",
    ),
    "NaN": (
        lambda returns, timesteps, episode_ids: np.where((timesteps == 3) & (episode_ids == 1), np.nan, 0.0),
        "returned nan at timestep 3 of episode 1.*finite",
    ),
    "infinity": (lambda returns, timesteps, episode_ids: returns + np.inf, "returned inf at timestep 0 of episode 0.*finite"),
    "nothing": (lambda returns, timesteps, episode_ids: None, "returned .*expected"),
    "words": (lambda returns, timesteps, episode_ids: ["a"] * 10, "returned list.*expected"),
}


@pytest.mark.parametrize("name", BAD_BASELINES)
def test_a_function_that_is_no_baseline_is_found_out_before_the_weights_change(name: str) -> None:
    function, message = BAD_BASELINES[name]
    model = make(baseline=function)
    before = snapshot(model)
    with pytest.raises(ValueError, match=f"`baseline` {message}") as error:
        model.learn(10)
    assert_one_sentence(str(error.value))
    assert_same(before, snapshot(model))
    model.baseline = "mean"
    assert_usable(model)


def test_an_error_within_a_baseline_function_reaches_the_user() -> None:
    def broken(returns: np.ndarray, timesteps: np.ndarray, episode_ids: np.ndarray) -> np.ndarray:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        make(baseline=broken).learn(10)


# Numbers that are not finite, in one of several environments

DICT = spaces.Dict({"vector": spaces.Box(-np.inf, np.inf, (3,)), "number": spaces.Discrete(2)})


def poisoned(what: str, step: int, value: float, observation_space: spaces.Space | None = None) -> Any:
    """Three environments with episodes of five steps, of which the second shows the number at that step."""
    envs: list[gym.Env] = [Scripted((5,), observation_space, reward=ramp) for _ in range(3)]
    envs[1] = Poisoned(envs[1], what, step, value)
    return vec(*envs)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("complete_episodes", [True, False])
@pytest.mark.parametrize(
    "what, step, message",
    [
        ("reward", 7, r"reward must be finite, got {} in environment 1 at timestep 2 of its episode"),
        ("reward", 0, r"reward must be finite, got {} in environment 1 at timestep 0 of its episode"),
        # What the third step of an episode shows is the observation of timestep 3
        ("observation", 7, r"observation must be finite, got {} in environment 1 at timestep 3 of its episode"),
        ("reset", 0, r"observation must be finite, got {} in environment 1 at timestep 0 of its episode"),
    ],
    ids=lambda x: str(x)[:20],
)
def test_a_number_from_an_environment_that_is_not_finite_is_named_before_the_weights_change(
    what: str, step: int, message: str, complete_episodes: bool, value: float
) -> None:
    model = make(poisoned(what, step, value), complete_episodes=complete_episodes)
    before = snapshot(model)
    with pytest.raises(ValueError, match=message.format(value)) as error:
        model.learn(60)
    assert_one_sentence(str(error.value))
    assert_same(before, snapshot(model))
    if what == "reset":
        return
    # It came once: the model learns on, from fresh episodes
    assert_usable(model)
    assert all(np.isfinite(model.rollout_buffer.observations).flatten())


def test_a_first_observation_that_is_not_finite_is_named_after_an_episode_too() -> None:
    model = make(poisoned("reset", 1, np.nan))
    before = snapshot(model)
    with pytest.raises(ValueError, match="observation must be finite, got nan in environment 1 at timestep"):
        model.learn(60)
    assert_same(before, snapshot(model))


def test_the_part_of_a_dictionary_that_is_not_finite_is_named() -> None:
    model = REINFORCE(
        "MultiInputPolicy", poisoned("observation", 7, np.nan, DICT), learning_rate=1e-2, n_steps=10, device="cpu"
    )
    before = snapshot(model)
    with pytest.raises(ValueError, match="observation 'vector' must be finite, got nan in environment 1 at timestep 3"):
        model.learn(60)
    assert_same(before, snapshot(model))
    assert_usable(model)


@pytest.mark.parametrize("validates", [True, False])
@pytest.mark.parametrize("what", ["reward", "observation"])
def test_a_bad_number_in_the_buffer_of_sb3_is_named_too(what: str, validates: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after ``torch.compile``, which tells PyTorch not to validate distributions."""
    monkeypatch.setattr(th.distributions.Distribution, "_validate_args", validates)
    model = make(poisoned(what, 7, np.nan), rollout_buffer_class=RolloutBuffer, complete_episodes=False)
    before = snapshot(model)
    with pytest.raises(ValueError, match=f"{what} must be finite, got .*nan.* in environment 1 at timestep"):
        model.learn(60)
    assert_same(before, snapshot(model))
    assert_usable(model)


def test_a_bad_number_that_comes_after_an_update_leaves_that_update_in_place() -> None:
    model = make(poisoned("reward", 17, np.nan))
    callback_weights: list[Any] = []

    class Second(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            callback_weights.append(snapshot(model))

    with pytest.raises(ValueError, match="reward"):
        model.learn(600, Second())
    assert len(callback_weights) == 2 and model._n_updates == 1
    assert_same(callback_weights[1], snapshot(model))


@pytest.mark.parametrize("step, timestep", [(3, 1), (5, 1), (6, 0)])
def test_a_bad_number_in_a_discarded_step_is_located_rightly_or_does_no_harm(step: int, timestep: int) -> None:
    short = Poisoned(Scripted((2,), reward=ramp), "reward", step, np.nan)
    model = make(vec(short, Scripted((9,), reward=ramp)), n_episodes=1)
    before = snapshot(model)
    try:
        model.learn(18)
    except ValueError as error:
        assert f"reward must be finite, got nan in environment 0 at timestep {timestep} of its episode" in str(error)
        assert_same(before, snapshot(model))
    assert all(tensor.isfinite().all() for tensor in snapshot(model)[0].values())


class Large(Scripted):
    """Finite numbers whose squares are not."""

    def _observe(self) -> Any:
        return np.full(2, 1e25, np.float32)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_large_numbers_that_are_finite_are_none_of_these_checks_business() -> None:
    model = make(vec(Large((5,)), Scripted((5,), reward=lambda timestep: 1e25 * timestep)), baseline="mean", n_steps=5)
    model.learn(10)
    assert all(tensor.isfinite().all() for tensor in snapshot(model)[0].values())


def test_normalization_does_not_hide_a_bad_reward() -> None:
    model = make(VecNormalize(poisoned("reward", 7, np.nan)))
    before = snapshot(model)
    with pytest.raises(ValueError, match="reward must be finite, got nan in environment 1 at timestep 2"):
        model.learn(60)
    assert_same(before, snapshot(model))


@pytest.mark.parametrize("what", ["observation", "reward"])
def test_a_spoilt_normalization_is_named(what: str) -> None:
    """What was bad came and went; its mean has stayed."""
    model = make(VecNormalize(poisoned(what, 7, np.nan)))
    with pytest.raises(ValueError, match=f"{what} must be finite"):
        model.learn(60)
    with pytest.raises(ValueError, match=rf"statistics of VecNormalize must be finite, got .*nan.* for {what}s") as error:
        model.learn(60, reset_num_timesteps=False)
    assert_one_sentence(str(error.value))


@pytest.mark.parametrize("policy", [RecurrentActorCriticPolicy, MaskableActorCriticPolicy])
def test_a_policy_that_needs_more_than_the_observation_is_refused(policy: type) -> None:
    with pytest.raises(ValueError, match=f"neither recurrent nor maskable, got {policy.__name__}"):
        REINFORCE(policy, vec(Scripted()))


def test_a_model_needs_an_environment() -> None:
    nothing: Any = None
    with pytest.raises(ValueError, match="`env` must be an environment or the name of one, got None"):
        REINFORCE("MlpPolicy", nothing)


@pytest.mark.parametrize("log_interval", [0, -1, 0.5])
def test_a_log_interval_that_makes_no_sense_is_refused_before_the_first_step(log_interval: Any) -> None:
    model = make(vec(Scripted()))
    with pytest.raises(ValueError, match="`log_interval` must be an integer of at least 1"):
        model.learn(10, log_interval=log_interval)
    assert model.num_timesteps == 0


ACTION_SPACES = [spaces.Discrete(2), CONTINUOUS, spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("action_space", ACTION_SPACES, ids=lambda space: type(space).__name__)
def test_weights_of_the_actor_that_are_not_finite_stop_the_rollout(action_space: spaces.Space, value: float) -> None:
    model = make(vec(*(Scripted((5,), action_space=action_space, reward=ramp) for _ in range(2))))
    with th.no_grad():
        model.policy.action_net.bias[0] = value  # type: ignore[index, union-attr]
    before = snapshot(model)
    with pytest.raises(
        ValueError, match=r"output of the policy must be finite, got .* in environment 0 at timestep 0"
    ) as error:
        model.learn(20)
    assert_one_sentence(str(error.value))
    assert_same(before, snapshot(model))
    with th.no_grad():
        model.policy.action_net.bias[0] = 0.0  # type: ignore[index, union-attr]
    assert_usable(model)


class SB3Path(ActorCriticPolicy):
    """A policy that is called as SB3 calls it."""

    def forward(self, obs: th.Tensor, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        return super().forward(obs, deterministic)


@pytest.mark.parametrize("validate", [True, False], ids=["with PyTorch's checks", "without PyTorch's checks"])
@pytest.mark.parametrize("action_space", [spaces.Discrete(2), CONTINUOUS], ids=["Discrete", "Box"])
def test_weights_that_are_not_finite_stop_the_path_of_sb3_too(
    action_space: spaces.Space, validate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(th.distributions.Distribution, "_validate_args", validate)
    env = vec(*(Scripted((5,), action_space=action_space) for _ in range(2)))
    model = REINFORCE(SB3Path, env, learning_rate=1e-2, n_steps=10, seed=0, device="cpu")
    with th.no_grad():
        model.policy.action_net.bias[0] = np.nan  # type: ignore[index, union-attr]
    before = snapshot(model)
    with pytest.raises(
        ValueError, match=r"(output of the policy|action) must be finite, got nan in environment 0 at timestep 0"
    ) as error:
        model.learn(20)
    assert_one_sentence(str(error.value))
    assert_same(before, snapshot(model))


def test_a_policy_of_ones_own_that_overflows_is_located_though_its_weights_are_finite() -> None:
    class Located(ActorCriticPolicy):
        def extract_features(self, obs: Any, features_extractor: Any = None) -> th.Tensor:
            features = super().extract_features(obs, features_extractor)
            return th.where(features[:, 1:] >= 3, features * th.nan, features)

    envs = [Scripted((2,), reward=ramp), Scripted((5,), reward=ramp)]
    model = REINFORCE(Located, vec(*envs), learning_rate=1e-2, n_steps=10, seed=0, device="cpu")
    before = snapshot(model)
    with pytest.raises(ValueError, match="output of the policy must be finite, got nan in environment 1 at timestep 3"):
        model.learn(20)
    assert_same(before, snapshot(model))


def test_a_standard_deviation_that_is_not_finite_stops_the_rollout() -> None:
    model = make(Scripted((5,), action_space=CONTINUOUS))
    with th.no_grad():
        model.policy.log_std[0] = np.nan
    before = snapshot(model)
    with pytest.raises(ValueError, match="finite"):
        model.learn(20)
    assert_same(before, snapshot(model))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_critic_that_is_not_finite_stops_the_update(value: float) -> None:
    model = make(vec(*(Scripted((5,), reward=ramp) for _ in range(2))))
    with th.no_grad():
        model.policy.value_net.bias[0] = value
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"must be finite, got .* in environment 0 at timestep 0"):
        model.learn(20)
    assert_same(before, snapshot(model))
    with th.no_grad():
        model.policy.value_net.bias[0] = 0.0
    assert_usable(model)


def test_rewards_that_are_finite_and_sum_to_infinity_are_located() -> None:
    huge = 3e38  # the largest float32 is 3.4e38
    envs = [Scripted((5,)), Scripted((5,), reward=lambda t: huge if t >= 3 else 0.0)]
    model = make(vec(*envs), gamma=1.0, baseline=None, normalize_advantage=False)
    before = snapshot(model)
    with (
        np.errstate(over="ignore"),
        pytest.raises(ValueError, match=r"(return|advantage) must be finite, got inf in environment 1 at timestep 0"),
    ):
        model.learn(20)
    assert_same(before, snapshot(model))


def test_huge_rewards_do_not_reach_the_weights_as_nan() -> None:
    model = make(vec(Scripted((5,)), Scripted((5,), reward=lambda t: 1e30)), normalize_returns=True).learn(20)
    assert model._n_updates > 0 and all(weight.isfinite().all() for weight in model.policy.parameters())


def test_huge_rewards_do_not_reach_the_weights_of_a_raw_critic_as_nan() -> None:
    model = make(vec(Scripted((5,)), Scripted((5,), reward=lambda t: 1e30)), normalize_returns=False)
    before = snapshot(model)
    with pytest.raises(ValueError, match="finite") as error:
        model.learn(20)
    assert_one_sentence(str(error.value))
    assert_same(before, snapshot(model))


def test_a_critic_that_diverges_within_its_passes_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    # Not Adam, whose critic is fitted in NumPy
    model = make(n_critic_updates=3, policy_kwargs={"optimizer_class": th.optim.RMSprop}).learn(20)
    before = snapshot(model)
    step, calls = th.optim.RMSprop.step, []

    def diverging(optimizer: th.optim.Optimizer) -> None:
        calls.append(1)
        step(optimizer)
        if len(calls) == 3:  # the second pass
            with th.no_grad():
                model.policy.value_net.weight.fill_(math.inf)

    monkeypatch.setattr(model.policy.optimizer, "step", lambda: diverging(model.policy.optimizer))
    with pytest.raises(ValueError, match="value loss must be finite") as error:
        model.learn(10, reset_num_timesteps=False)
    assert_one_sentence(str(error.value))
    assert_same(before, snapshot(model))
    monkeypatch.undo()
    assert_usable(model)


@pytest.mark.parametrize("baseline", ["value", "mean"])
def test_a_learning_rate_that_is_infinite_does_not_leave_nan_behind(baseline: str) -> None:
    model = make(
        natural_gradient=False, baseline=baseline, learning_rate=lambda progress: math.inf if progress < 0.6 else 1e-3
    )
    with pytest.raises(ValueError, match="finite"):
        model.learn(40)
    assert all(tensor.isfinite().all() for tensor in snapshot(model)[0].values())


@pytest.mark.parametrize("optimizer", [th.optim.Adam, th.optim.SGD, th.optim.RMSprop])
def test_the_state_of_every_optimizer_is_put_back(optimizer: type[th.optim.Optimizer]) -> None:
    kwargs: dict[str, Any] = {**SMALL, "optimizer_class": optimizer}
    if optimizer is th.optim.SGD:
        kwargs["optimizer_kwargs"] = {"momentum": 0.9}
    broken = {"now": False}

    def baseline_ok(returns: np.ndarray, timesteps: np.ndarray, episode_ids: np.ndarray) -> np.ndarray:
        return 0.0 * returns

    model = make(policy_kwargs=kwargs, baseline=baseline_ok, natural_gradient=False).learn(20)
    before = snapshot(model)
    assert before[1]["state"]
    step = model.policy.optimizer.step

    def failing(*args: Any, **kwargs: Any) -> None:
        step(*args, **kwargs)
        broken["now"] = True
        raise RuntimeError("out of memory")

    model.policy.optimizer.step = failing  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="out of memory"):
        model.learn(10, reset_num_timesteps=False)
    assert broken["now"]
    assert_same(before, snapshot(model))
    model.policy.optimizer.step = step  # type: ignore[method-assign]
    model.learn(10, reset_num_timesteps=False)


# Environments that raise, and Ctrl-C


@pytest.mark.parametrize("error", [RuntimeError("the simulator crashed"), KeyboardInterrupt()], ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("complete_episodes", [True, False])
@pytest.mark.parametrize("step", [0, 3, 13])
def test_an_environment_that_raises_leaves_the_model_usable(step: int, complete_episodes: bool, error: BaseException) -> None:
    env = vec(Scripted((5,), reward=ramp), Breaking(Scripted((5,), reward=ramp), step, error))
    model = make(env, complete_episodes=complete_episodes)
    with pytest.raises(type(error)) as raised:
        model.learn(100)
    assert raised.value is error
    assert model._n_updates == step // 10
    assert_usable(model)
    assert model.rollout_buffer.observations[:, 1].tolist() == [0, 1, 2, 3, 4] * 4


@pytest.mark.parametrize("buffer_class", [None, RolloutBuffer])
def test_an_interrupt_from_a_callback_leaves_the_weights_as_they_are(buffer_class: type[RolloutBuffer] | None) -> None:
    class Interrupt(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls == 13:
                raise KeyboardInterrupt
            return True

    model = make(
        vec(Scripted((5,), reward=ramp), Scripted((5,), reward=ramp)),
        rollout_buffer_class=buffer_class,
        complete_episodes=buffer_class is None,
    ).learn(20)
    before = snapshot(model)
    with pytest.raises(KeyboardInterrupt):
        model.learn(20, Interrupt(), reset_num_timesteps=True)
        model.learn(100, Interrupt())
    assert model.num_timesteps == 26
    assert model._n_updates == 3
    assert any(not th.equal(before[0][name], tensor) for name, tensor in snapshot(model)[0].items())
    assert_usable(model)


@pytest.mark.parametrize("at", ["mse_gradient", "write_back"])
def test_an_interrupt_while_the_critic_is_fitted_in_numpy_takes_the_whole_update_back(
    at: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make(batch_size=4).learn(20)
    before = snapshot(model)

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(numpy_critic._FlatMlp, at, interrupt)
        with pytest.raises(KeyboardInterrupt):
            model.learn(10, reset_num_timesteps=False)
    assert_same(before, snapshot(model))
    assert_usable(model)


@pytest.mark.parametrize("at", ["evaluate_actions", "predict_values", "step"])
@pytest.mark.parametrize("call", [1, 2, 4])
def test_an_interrupt_during_the_update_takes_the_whole_update_back(
    at: str, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not Adam, whose critic is fitted in NumPy
    model = make(batch_size=4, policy_kwargs={"optimizer_class": th.optim.RMSprop}).learn(20)
    before = snapshot(model)
    calls = []
    owner = model.policy.optimizer if at == "step" else model.policy
    original = getattr(owner, at)
    train = model.train

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        result = original(*args, **kwargs)
        if len(calls) == call:
            raise KeyboardInterrupt
        return result

    def training() -> None:
        monkeypatch.setattr(owner, at, interrupted)
        train()

    monkeypatch.setattr(model, "train", training)
    try:
        model.learn(10, reset_num_timesteps=False)
    except KeyboardInterrupt:
        if model._n_updates == 2:
            assert_same(before, snapshot(model))
    finally:
        interrupted_at_all = len(calls) >= call
        monkeypatch.undo()
    if at == "step":
        assert interrupted_at_all and model._n_updates == 2
    assert all(tensor.isfinite().all() for tensor in snapshot(model)[0].values())
    assert_usable(model)


def test_an_interrupt_of_a_bar_of_progress_leaves_a_model_that_learns_with_another() -> None:
    pytest.importorskip("tqdm")
    pytest.importorskip("rich")
    model = make(Breaking(Scripted((5,), reward=ramp), 7, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        model.learn(100, progress_bar=True)
    assert_usable(model)


def test_an_error_at_the_very_first_reset_reaches_the_user() -> None:
    class NoReset(Scripted):
        def reset(self, **kwargs: Any) -> Any:
            raise OSError("no such level")

    model = make(NoReset())
    with pytest.raises(OSError, match="no such level"):
        model.learn(10)
    model.set_env(Scripted((5,), reward=ramp))
    assert_usable(model)
