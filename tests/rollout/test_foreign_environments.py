"""Environments that are not SB3's own: REINFORCE trains with what A2C trains with, and nothing foreign steers its estimate."""

from collections.abc import Callable
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from stable_baselines3 import A2C
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecEnvWrapper, VecMonitor

from sb3_reinforce import REINFORCE
from sb3_reinforce.rollout.limits import EpisodeLimits
from tests.helpers import slow
from tests.helpers.environments import Scripted, vec

WIDE = spaces.Box(-np.inf, np.inf, (2,), np.float32)


def make(env: Any, cls: type[REINFORCE] = REINFORCE, **kwargs: Any) -> REINFORCE:
    arguments: dict[str, Any] = {"n_steps": 20, "seed": 0, "device": "cpu", "policy_kwargs": {"net_arch": [8]}, **kwargs}
    return cls(arguments.pop("policy", "MlpPolicy"), env, **arguments)


def moves(model: REINFORCE, timesteps: int = 40) -> bool:
    before = [parameter.detach().clone() for parameter in model.policy.parameters()]
    model.learn(timesteps)
    return any(not th.equal(old, new) for old, new in zip(before, model.policy.parameters(), strict=True))


def lengths(model: REINFORCE) -> list[int]:
    return [info["l"] for info in model.ep_info_buffer or []]


# Limits: Gymnasium's wrapper is believed, and nothing else


class PaysAtTheEnd(gym.Env):
    """Ends its own episode one step after a number that it calls as Gymnasium's wrapper does, and pays its reward there."""

    observation_space, action_space, _max_episode_steps = WIDE, spaces.Discrete(2), 10

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.t = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        over = self.t > self._max_episode_steps
        return np.full(2, self.t / 11, np.float32), 100.0 if over else 0.0, over, False, {}


class CallsItsOwn(gym.Wrapper):
    """A wrapper with an attribute of the same name, as a curriculum may have it."""

    _max_episode_steps = 4


class Attribute(gym.Wrapper):
    def __init__(self, env: gym.Env, name: str, value: Any):
        super().__init__(env)
        setattr(self, name, value)


@pytest.mark.parametrize("venv_class", [DummyVecEnv, slow(SubprocVecEnv)])
@pytest.mark.parametrize(
    "wrap",
    [lambda env: env, CallsItsOwn, Monitor, lambda env: TimeLimit(env, 1000), lambda env: CallsItsOwn(TimeLimit(env, 1000))],
    ids=["bare", "wrapper", "monitor", "TimeLimit", "wrapper of TimeLimit"],
)
def test_no_reward_is_lost_to_a_number_that_another_object_calls_a_limit(
    wrap: Callable[[gym.Env], gym.Env], venv_class: Callable[..., VecEnv], recwarn: pytest.WarningsRecorder
) -> None:
    env = VecMonitor(venv_class([lambda: wrap(PaysAtTheEnd())] * 2))
    model = make(env).learn(88)
    env.close()
    assert {(info["r"], info["l"]) for info in model.ep_info_buffer or []} == {(100.0, 11)}
    assert not [warning for warning in recwarn if "horizon" in str(warning.message)]


def read_limits(env: VecEnv, horizon: int | None) -> tuple[list[int], bool]:
    limits = EpisodeLimits()
    cuts_expected = limits.read(env, horizon)
    return limits.horizons, cuts_expected


@pytest.mark.parametrize("venv_class", [DummyVecEnv, slow(SubprocVecEnv)])
def test_the_limit_of_each_time_limit_wrapper_is_found_below_other_wrappers(venv_class: Callable[..., VecEnv]) -> None:
    def limited(limit: int) -> Callable[[], gym.Env]:
        return lambda: Attribute(Monitor(TimeLimit(PaysAtTheEnd(), limit)), "other", 1)

    env = venv_class([limited(12_000), limited(20_000)])
    assert read_limits(env, None) == ([12_000, 20_000], False)
    assert read_limits(env, 15_000) == ([15_000, 15_000], True)
    env.close()


@pytest.mark.parametrize("venv_class", [DummyVecEnv, slow(SubprocVecEnv)])
def test_a_limit_that_is_hidden_by_another_number_is_unknown_and_no_error(venv_class: Callable[..., VecEnv]) -> None:
    env = venv_class([lambda: CallsItsOwn(TimeLimit(PaysAtTheEnd(), 50))] * 2)
    horizons, _ = read_limits(env, None)
    env.close()
    assert horizons == ([50, 50] if venv_class is DummyVecEnv else [10_000, 10_000])


def test_a_number_of_numpy_s_is_a_limit_too() -> None:
    limit = TimeLimit(Scripted((None,)), 7)
    limit._max_episode_steps = np.int64(6)
    assert set(lengths(make(limit).learn(36))) == {6}


class Curriculum(BaseCallback):
    """Changes the limit of an environment after the first rollout."""

    def __init__(self, change: Callable[[Any], object]):
        super().__init__()
        self.change = change

    def _on_rollout_end(self) -> None:
        self.change(self.training_env)

    def _on_step(self) -> bool:
        return True


@pytest.mark.parametrize("later", [20, 3])
@pytest.mark.parametrize("venv_class", [DummyVecEnv, slow(SubprocVecEnv)])
def test_a_limit_that_changes_in_the_midst_of_training_counts_from_the_next_rollout_on(
    venv_class: Callable[..., VecEnv], later: int
) -> None:
    env = venv_class([lambda: Monitor(TimeLimit(Scripted((None,)), 5))] * 2)

    def change(training_env: VecEnv) -> None:
        if isinstance(env, DummyVecEnv):
            for single in env.envs:
                single.env._max_episode_steps = later  # type: ignore[attr-defined]
        else:
            training_env.env_method("set_wrapper_attr", "_max_episode_steps", later)

    model = make(env).learn(160, Curriculum(change))
    env.close()
    assert lengths(model)[:8] == [5] * 8
    assert set(lengths(model)[8:]) == {later}


def test_a_horizon_that_is_set_by_hand_counts_from_the_next_rollout_on() -> None:
    model = make(Scripted((9,)), horizon=4)
    with pytest.warns(UserWarning, match="`horizon`"):
        model.learn(20, Curriculum(lambda env: setattr(model, "horizon", 9)))
    model.learn(20, reset_num_timesteps=False)
    assert lengths(model)[-1] == 9


# Vectorized environments that answer nothing but what A2C asks


class Simulator(VecEnv):
    """A simulator's own, which answers every further question with what a function returns or raises."""

    def __init__(self, answer: Callable[[], Any], n_envs: int = 2):
        self.answer = answer
        super().__init__(n_envs, WIDE, spaces.Discrete(2))

    def reset(self) -> Any:
        self.t = 0
        return np.zeros((self.num_envs, 2), np.float32)

    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions

    def step_wait(self) -> Any:
        self.t += 1
        over = self.t % 5 == 0
        infos: list[dict[str, Any]] = [
            {"terminal_observation": np.zeros(2, np.float32), "TimeLimit.truncated": True} if over else {}
        ] * self.num_envs
        rewards = self.actions.astype(np.float32)
        return np.full((self.num_envs, 2), self.t % 5, np.float32), rewards, np.full(self.num_envs, over), infos

    def close(self) -> None:
        pass

    def get_attr(self, attr_name: str, indices: Any = None) -> Any:
        if attr_name == "render_mode":  # which SB3's constructor asks for
            return [None] * self.num_envs
        return self.answer()

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        self.answer()

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> Any:
        return self.answer()

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> Any:
        return self.answer()

    def has_attr(self, attr_name: str) -> Any:
        return self.answer()


def raising(error: Exception) -> Callable[[], Any]:
    def answer() -> Any:
        raise error

    return answer


ANSWERS: dict[str, Callable[[], Any]] = {
    "nothing": lambda: None,
    "list of None": lambda: [None, None],
    "list of False": lambda: [False, False],
    "list of True": lambda: [True, True],
    "empty list": list,
    "too long": lambda: [True] * 7,
    "text": lambda: "unknown",
    "number": lambda: 3,
    "NotImplementedError": raising(NotImplementedError()),
    "AttributeError": raising(AttributeError("no such thing")),
    "KeyError": raising(KeyError("x")),
    "AssertionError": raising(AssertionError()),
    "ValueError": raising(ValueError("Monitor")),
}


@pytest.mark.parametrize("kwargs", [{}, {"complete_episodes": False}, {"horizon": 3}, {"baseline": "leave_one_out"}], ids=str)
@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.filterwarnings("ignore:An episode was cut")
def test_a_vectorized_environment_that_does_not_know_an_answer_trains(answer: str, kwargs: dict[str, Any]) -> None:
    assert moves(make(Simulator(ANSWERS[answer]), **kwargs))


@pytest.mark.parametrize("wrap", [lambda env: env, VecMonitor], ids=["bare", "VecMonitor"])
def test_cut_episodes_of_a_simulator_count_in_the_log_if_a_monitor_counts_them(wrap: Callable[[VecEnv], VecEnv]) -> None:
    model = make(wrap(Simulator(lambda: [False, False])), horizon=3)
    with pytest.warns(UserWarning, match="`horizon`"):
        model.learn(40)
    assert set(lengths(model)) == ({3} if wrap is VecMonitor else set())


class Pool:
    """An object that is no VecEnv at all, in the style of EnvPool."""

    num_envs, observation_space, action_space = 2, WIDE, spaces.Discrete(2)

    def reset(self) -> Any:
        self.t = 0
        return np.zeros((2, 2), np.float32)

    def step(self, actions: np.ndarray) -> Any:
        self.t += 1
        over = self.t % 5 == 0
        return np.full((2, 2), self.t % 5, np.float32), actions.astype(np.float32), np.full(2, over), [{}, {}]


class Adapter(VecEnvWrapper):
    def step_async(self, actions: np.ndarray) -> None:
        self.actions = actions

    def step_wait(self) -> Any:
        return self.venv.step(self.actions)

    def reset(self) -> Any:
        return self.venv.reset()


@pytest.mark.parametrize("wrap", [lambda env: env, VecMonitor], ids=["bare", "VecMonitor"])
@pytest.mark.parametrize("kwargs", [{}, {"complete_episodes": False}, {"horizon": 3}], ids=str)
@pytest.mark.filterwarnings("ignore:An episode was cut")
def test_a_wrapper_around_what_is_no_vectorized_environment_trains(
    kwargs: dict[str, Any], wrap: Callable[[VecEnv], VecEnv]
) -> None:
    assert moves(make(wrap(Adapter(Pool())), seed=None, **kwargs))  # type: ignore[arg-type]


class InLists(Adapter):
    """Gives its rewards in a list."""

    def step_wait(self) -> Any:
        obs, rewards, dones, infos = super().step_wait()
        return obs, rewards.tolist(), dones, tuple(infos)


def test_rewards_may_come_in_a_list() -> None:
    assert moves(A2C("MlpPolicy", InLists(Pool()), n_steps=20, device="cpu"))  # type: ignore[arg-type]
    assert moves(make(InLists(Pool()), seed=None))  # type: ignore[arg-type]


class ForbidsNothing(gym.Wrapper):
    """Has an attribute that only a monitor's would mean anything."""

    allow_early_resets = False


@pytest.mark.parametrize("venv_class", [DummyVecEnv, slow(SubprocVecEnv)])
def test_what_is_no_monitor_forbids_no_resets(venv_class: Callable[..., VecEnv]) -> None:
    env = venv_class([lambda: ForbidsNothing(Scripted((5,)))] * 2)
    assert moves(make(env))
    env.close()


@pytest.mark.parametrize("venv_class", [DummyVecEnv, SubprocVecEnv])
def test_a_monitor_that_forbids_resets_is_found_below_other_wrappers(venv_class: Callable[..., VecEnv]) -> None:
    env = venv_class([lambda: Attribute(Monitor(Scripted((5,)), allow_early_resets=False), "other", 1)] * 2)
    with pytest.raises(ValueError, match="allow_early_resets"):
        make(env).learn(20)
    env.close()


# Numbers that are never learned from


class ShowsAtTheEnd(gym.Env):
    """
    Shows something as the last observation of its episodes of five steps.

    :param last: What it shows
    :param truncated: Whether the episodes are truncated instead of terminated
    """

    observation_space, action_space = WIDE, spaces.Discrete(2)

    def __init__(self, last: Any, truncated: bool = False):
        self.last, self.truncated = last, truncated
        if isinstance(last, dict):
            self.observation_space = spaces.Dict(a=WIDE)  # type: ignore[assignment]

    def observation(self, obs: Any) -> Any:
        return {"a": obs} if isinstance(self.observation_space, spaces.Dict) else obs

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.t = 0
        return self.observation(np.zeros(2, np.float32)), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.t += 1
        over = self.t == 5
        obs = self.last if over else self.observation(np.full(2, self.t, np.float32))
        return obs, float(action), over and not self.truncated, over and self.truncated, {}


NAN = np.full(2, np.nan, np.float32)
INF = np.array([1.0, -np.inf], np.float32)


@pytest.mark.parametrize("last", [NAN, INF, {"a": NAN}, {"a": NAN, "b": "text"}], ids=["nan", "inf", "dict", "extra key"])
@pytest.mark.parametrize("kwargs", [{}, {"complete_episodes": False}, {"baseline": None}], ids=str)
def test_what_a_terminated_episode_shows_last_is_not_judged(last: Any, kwargs: dict[str, Any]) -> None:
    policy = "MultiInputPolicy" if isinstance(last, dict) else "MlpPolicy"
    assert moves(make(vec(ShowsAtTheEnd(last), ShowsAtTheEnd(last)), policy=policy, **kwargs))


@pytest.mark.parametrize(
    "kwargs", [{"bootstrap_on_truncation": False}, {"baseline": None}, {"baseline": "leave_one_out"}], ids=str
)
def test_what_a_truncated_episode_shows_last_is_not_judged_where_nothing_is_made_of_it(kwargs: dict[str, Any]) -> None:
    assert moves(make(vec(ShowsAtTheEnd(NAN, truncated=True), ShowsAtTheEnd(NAN, truncated=True)), **kwargs))


@pytest.mark.parametrize("last", [NAN, INF, {"a": NAN}], ids=["nan", "inf", "dict"])
@pytest.mark.parametrize("kwargs", [{}, {"complete_episodes": False}], ids=str)
def test_what_a_truncated_episode_shows_last_is_judged_where_it_is_bootstrapped(last: Any, kwargs: dict[str, Any]) -> None:
    policy = "MultiInputPolicy" if isinstance(last, dict) else "MlpPolicy"
    fine = {"a": np.zeros(2, np.float32)} if isinstance(last, dict) else np.zeros(2, np.float32)
    model = make(vec(ShowsAtTheEnd(fine, True), ShowsAtTheEnd(last, True)), policy=policy, **kwargs)
    before = [parameter.detach().clone() for parameter in model.policy.parameters()]
    number = "nan" if "nan" in str(last) else "-inf"
    with pytest.raises(
        ValueError, match=f"terminal observation.* must be finite, got {number} in environment 1 at timestep 5"
    ):
        model.learn(40)
    assert all(th.equal(old, new) for old, new in zip(before, model.policy.parameters(), strict=True))


@pytest.mark.parametrize("kwargs", [{}, {"complete_episodes": False}], ids=str)
def test_keys_that_the_space_does_not_have_are_passed_by(kwargs: dict[str, Any]) -> None:
    extra = {"a": np.ones(2, np.float32), "b": "text", "c": np.nan}
    assert moves(make(vec(ShowsAtTheEnd(extra, truncated=True)), policy="MultiInputPolicy", **kwargs))


class ExtraKeys(DummyVecEnv):
    """Hands on what a simulator shows besides its space."""

    def step_wait(self) -> Any:
        obs, rewards, dones, infos = super().step_wait()
        return {**obs, "extra": np.full(self.num_envs, np.nan)}, rewards, dones, infos

    def reset(self) -> Any:
        return {**super().reset(), "extra": np.full(self.num_envs, np.nan)}


class WithAnImage(ShowsAtTheEnd):
    def __init__(self) -> None:
        super().__init__({})
        self.observation_space = spaces.Dict(a=WIDE, image=spaces.Box(0, 255, (36, 36, 1), np.uint8))  # type: ignore[assignment]
        self.last = self.observation(np.zeros(2, np.float32))

    def observation(self, obs: Any) -> Any:
        return {"a": obs, "image": np.zeros((36, 36, 1), np.uint8)}


@pytest.mark.parametrize("env", [lambda: ShowsAtTheEnd({"a": NAN}), WithAnImage], ids=["vectors", "with an image"])
def test_further_keys_of_a_vectorized_environment_are_passed_by(env: Callable[[], gym.Env]) -> None:
    assert moves(make(ExtraKeys([env] * 2), policy="MultiInputPolicy"))


class Poisons(VecEnvWrapper):
    """Makes a number of the second environment NaN once the first ten vector steps are over."""

    def __init__(self, venv: VecEnv, what: str):
        super().__init__(venv)
        self.what, self.n_steps = what, 0

    def reset(self) -> Any:
        return self.venv.reset()

    def step_wait(self) -> Any:
        obs, rewards, dones, infos = self.venv.step_wait()
        self.n_steps += 1
        if self.n_steps == 10 and self.what == "reward":
            rewards = np.array([rewards[0], np.nan])
        return obs, rewards, dones, infos


def test_a_reward_that_is_not_recorded_is_not_judged() -> None:
    # The second environment has its episode after two steps, and waits for the first
    env = Poisons(vec(Scripted((12,)), Scripted((2,))), "reward")
    assert moves(make(env, n_episodes=1), 24)
    with pytest.raises(ValueError, match="The reward must be finite, got nan in environment 1 at timestep 1"):
        make(Poisons(vec(Scripted((12,)), Scripted((2,))), "reward"), n_steps=12).learn(24)


class ReplacesMissing(BaseFeaturesExtractor):
    """Knows what to do with a measurement that is missing."""

    def __init__(self, observation_space: spaces.Box):
        super().__init__(observation_space, 2)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return observations.nan_to_num(0.0)


class MissesSome(gym.ObservationWrapper):
    n_calls: ClassVar[int] = 0

    def observation(self, observation: np.ndarray) -> np.ndarray:
        MissesSome.n_calls += 1
        return np.where(MissesSome.n_calls % 3 == 0, np.nan, observation).astype(np.float32)


@pytest.mark.parametrize("cls", [A2C, REINFORCE])
@pytest.mark.parametrize("kwargs", [{}, {"complete_episodes": False}, {"baseline": "mean"}], ids=str)
def test_an_extractor_may_replace_what_is_missing(cls: Any, kwargs: dict[str, Any]) -> None:
    env = vec(MissesSome(Scripted((5,), truncated=True)), MissesSome(Scripted((3,), truncated=True)))
    arguments = {} if cls is A2C else kwargs
    assert moves(make(env, cls, **{**arguments, "policy_kwargs": {"features_extractor_class": ReplacesMissing}}))


def test_nan_that_reaches_the_networks_of_such_a_policy_is_named() -> None:
    class HandsOn(ReplacesMissing):
        def forward(self, observations: th.Tensor) -> th.Tensor:
            return observations * 1.0

    model = make(MissesSome(Scripted((5,))), policy_kwargs={"features_extractor_class": HandsOn})
    with pytest.raises(ValueError, match="The observation must be finite, got nan in environment 0"):
        model.learn(40)


# The log


class TellsOfInnerEpisodes(gym.Wrapper):
    """Makes one episode of two inner ones, each of which is told of where it ends, as a monitor within does it."""

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        if terminated:
            self.n_inner += 1
            if self.n_inner < 2:
                obs, _ = self.env.reset()
                terminated = False
        return obs, reward, terminated, truncated, info

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        self.n_inner = 0
        return self.env.reset(**kwargs)


@pytest.mark.parametrize("cls", [A2C, REINFORCE])
@pytest.mark.parametrize("n_envs", [1, 2])
def test_episodes_that_end_within_an_episode_count_in_the_log(cls: Any, n_envs: int) -> None:
    env = DummyVecEnv([lambda: TellsOfInnerEpisodes(Monitor(Scripted((2, 3))))] * n_envs)
    model = make(env, cls).learn(20 * n_envs)
    assert sorted(lengths(model)) == [2] * 4 * n_envs + [3] * 4 * n_envs


# Environments that differ


@pytest.mark.parametrize("venv_class", [DummyVecEnv, slow(SubprocVecEnv)])
@pytest.mark.parametrize("wrap", [lambda env: TimeLimit(env, 4), Monitor], ids=["TimeLimit", "Monitor"])
def test_some_environments_may_have_a_wrapper_that_the_others_lack(
    wrap: Callable[[gym.Env], gym.Env], venv_class: Callable[..., VecEnv]
) -> None:
    env = venv_class([lambda: PaysAtTheEnd(), lambda: wrap(PaysAtTheEnd())])
    expected = [10_000, 4] if wrap is not Monitor else [10_000, 10_000]
    assert read_limits(env, None)[0] == expected
    assert moves(make(env), 60)
    env.close()


class Doubles(VecEnvWrapper):
    """Makes two environments of each."""

    def __init__(self, venv: VecEnv):
        super().__init__(venv)
        self.num_envs = 2 * venv.num_envs

    def reset(self) -> Any:
        return np.repeat(self.venv.reset(), 2, axis=0)  # type: ignore[arg-type]

    def step_async(self, actions: np.ndarray) -> None:
        self.venv.step_async(actions[::2])

    def step_wait(self) -> Any:
        obs, rewards, dones, infos = self.venv.step_wait()
        return np.repeat(obs, 2, axis=0), np.repeat(rewards, 2), np.repeat(dones, 2), [i for i in infos for _ in range(2)]  # type: ignore[arg-type]


def test_a_wrapper_may_make_more_environments_of_those_that_it_has() -> None:
    env = vec(TimeLimit(Scripted((None,)), 5), TimeLimit(Scripted((None,)), 5))
    assert moves(make(Doubles(env), seed=None), 80)


@pytest.mark.parametrize("venv_class", [DummyVecEnv, slow(SubprocVecEnv)])
def test_a_limit_that_changes_at_the_start_of_a_rollout_counts_in_it(
    venv_class: Callable[..., VecEnv], recwarn: pytest.WarningsRecorder
) -> None:
    class Lengthens(BaseCallback):
        def _on_rollout_start(self) -> None:
            for single in env.envs if isinstance(env, DummyVecEnv) else ():
                single.env._max_episode_steps = 20  # type: ignore[attr-defined]
            if not isinstance(env, DummyVecEnv):
                env.env_method("set_wrapper_attr", "_max_episode_steps", 20)

        def _on_step(self) -> bool:
            return True

    env = venv_class([lambda: Monitor(TimeLimit(Scripted((None,)), 5))])
    model = make(env).learn(40, Lengthens())
    env.close()
    assert lengths(model) == [20, 20]
    assert not [warning for warning in recwarn if "horizon" in str(warning.message)]
