"""Numbers of NumPy's types as arguments, NumPy's own error handling, and devices that have no float64."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from torch.overrides import TorchFunctionMode

from sb3_reinforce import REINFORCE, GradientMonitor
from tests.helpers.environments import Scripted, vec


def ramp(timestep: int) -> float:
    return timestep * timestep - 3.0


def make(env: Any = None, **kwargs: Any) -> REINFORCE:
    arguments: dict[str, Any] = {"n_steps": 20, "seed": 0, "device": "cpu", "policy_kwargs": {"net_arch": [8]}, **kwargs}
    return REINFORCE("MlpPolicy", env or vec(Scripted((5,), reward=ramp)), **arguments)


def weights(model: REINFORCE) -> list[th.Tensor]:
    return list(model.policy.parameters())


# Numbers of NumPy's

FLOATS = {
    "learning_rate": 0.125,
    "critic_learning_rate": 0.25,
    "gamma": 0.5,
    "gae_lambda": 0.5,
    "ent_coef": 0.25,
    "vf_coef": 0.5,
    "max_grad_norm": 0.25,
    "target_kl": 0.015625,
    "cg_damping": 0.125,
}
INTEGERS = {"n_steps": 10, "n_episodes": 2, "batch_size": 8, "horizon": 4, "n_critic_updates": 2, "cg_max_steps": 5}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("name", FLOATS)
def test_a_number_of_numpys_is_taken_as_the_number_that_it_is(name: str, dtype: Any) -> None:
    def trained(value: Any) -> list[th.Tensor]:
        return weights(make(**{"natural_gradient": name in ("target_kl", "cg_damping"), name: value}).learn(40))

    assert all(th.equal(a, b) for a, b in zip(trained(dtype(FLOATS[name])), trained(FLOATS[name]), strict=True))


@pytest.mark.filterwarnings("ignore:An episode was cut")
@pytest.mark.parametrize("name", INTEGERS)
def test_an_integer_of_numpys_is_taken_as_the_integer_that_it_is(name: str) -> None:
    def trained(value: Any) -> list[th.Tensor]:
        return weights(make(natural_gradient=name == "cg_max_steps", **{name: value}).learn(40))

    assert all(th.equal(a, b) for a, b in zip(trained(np.int32(INTEGERS[name])), trained(INTEGERS[name]), strict=True))


@pytest.mark.parametrize("value", [np.float32(np.nan), np.float32(-1), np.bool_(True), np.array([1e-3]), "0.001"], ids=repr)
@pytest.mark.parametrize("name", ["learning_rate", "critic_learning_rate"])
def test_what_is_no_learning_rate_is_still_refused(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"`{name}` must be a finite number of at least 0 or a schedule, got"):
        make(**{name: value})


@pytest.mark.parametrize("name", ["learning_rate", "critic_learning_rate"])
def test_a_learning_rate_of_numpys_is_saved_loaded_and_set_by_hand(name: str, tmp_path: Any) -> None:
    make(**{name: np.float32(0.125)}).learn(20).save(tmp_path / "model")
    loaded = REINFORCE.load(tmp_path / "model", env=vec(Scripted((5,))), device="cpu")
    assert float(getattr(loaded, name)) == 0.125
    setattr(loaded, name, np.float32(0.25))
    groups = loaded.learn(20).policy.optimizer.param_groups
    assert groups[name == "critic_learning_rate"]["lr"] == 0.25


# NumPy's error handling


class Tiny(gym.Env):
    """
    Pays at the end of a long episode, or next to nothing at each step, for observations that are next to nothing.

    :param action_space: Space of the actions
    :param reward: What it pays at each step; ``None``: 1 at the end
    """

    observation_space = spaces.Box(-1, 1, (3,))

    def __init__(self, action_space: spaces.Space, reward: float | None):
        self.action_space, self.reward = action_space, reward

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.t = 0
        return np.full(3, 1e-30, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        over = self.t == 150
        reward = float(over) if self.reward is None else self.reward
        return np.full(3, 1e-30, np.float32), reward, over, False, {}


@pytest.mark.parametrize("space", [spaces.Discrete(2), spaces.Box(-1, 1, (2,)), spaces.MultiBinary(2)], ids=str)
@pytest.mark.parametrize("reward", [None, 1e-44, 1e-300])
@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"gamma": 0.5},
        {"gae_lambda": 0.9},
        {"baseline": "linear"},
        {"baseline": "leave_one_out"},
        {"natural_gradient": True},
    ],
    ids=str,
)
@pytest.mark.filterwarnings("ignore:The natural gradient needs")
def test_an_underflow_is_no_error_where_numpy_raises_all(
    space: spaces.Space, reward: float | None, kwargs: dict[str, Any]
) -> None:
    monitor = GradientMonitor(every_n_updates=1, compare_baselines=True)
    model = make(Tiny(space, reward), **{"n_steps": 160, **kwargs})
    with np.errstate(all="raise"):
        model.learn(600, monitor)
    plain = make(Tiny(space, reward), **{"n_steps": 160, **kwargs}).learn(600)
    assert all(th.equal(a, b) for a, b in zip(weights(model), weights(plain), strict=True))


def test_what_the_environment_does_is_watched_as_the_user_wants_it() -> None:
    class Underflows(gym.Wrapper):
        def step(self, action: Any) -> Any:
            np.float32(1e-30) * np.float32(1e-30)
            return self.env.step(action)

    with np.errstate(all="raise"), pytest.raises(FloatingPointError):
        make(Underflows(Scripted((5,)))).learn(20)


# Devices without float64


class NoFloat64(TorchFunctionMode):
    """
    Takes every tensor for one of a device that has no float64, as Apple's has none, unless ``cpu()`` or NumPy has given it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.on_host: list[th.Tensor] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        tensors = [arg for arg in args if isinstance(arg, th.Tensor)]
        on_device = [tensor for tensor in tensors if not any(tensor is other for other in self.on_host)]
        wants = name == "double" or any(arg is th.float64 for arg in args) or kwargs.get("dtype") is th.float64
        device = str(kwargs.get("device") or "cpu")
        assert not (wants and on_device), f"{name} of a tensor on the device to float64"
        result = function(*args, **kwargs)
        made_on_host = name in ("cpu", "from_numpy") or (not tensors and device == "cpu") or (tensors and not on_device)
        if made_on_host and isinstance(result, th.Tensor):
            self.on_host.append(result)
        return result


def test_the_check_for_float64_finds_it() -> None:
    tensor = th.ones(3) * th.nn.Parameter(th.ones(3))
    with NoFloat64() as mode:
        assert tensor.cpu().double().sum() == 3.0
        mode.on_host.clear()
        for wrong in (lambda: tensor.double(), lambda: tensor.to(th.float64), lambda: th.sum(tensor, dtype=th.float64)):
            with pytest.raises(AssertionError, match="on the device to float64"):
                wrong()


@pytest.mark.parametrize("kwargs", [{}, {"natural_gradient": True}, {"baseline": "leave_one_out"}], ids=str)
def test_an_update_needs_no_float64_on_the_device(kwargs: dict[str, Any]) -> None:
    model, monitor = make(**kwargs), GradientMonitor(every_n_updates=1, compare_baselines=True)
    before = [parameter.detach().clone() for parameter in model.policy.parameters()]
    with NoFloat64():
        model.learn(40, monitor)
    assert any(not th.equal(old, new) for old, new in zip(before, model.policy.parameters(), strict=True))
    assert len(monitor.summary()) == 2
