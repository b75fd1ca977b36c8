"""A run that stands still says so once, with what to do; a healthy run says nothing."""

import copy
import re
import warnings
from collections.abc import Callable
from itertools import count, cycle
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import RescaleAction, TransformReward
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_reinforce import REINFORCE
from sb3_reinforce.update import advice
from tests.helpers import no_warnings
from tests.helpers.environments import Scripted, vec

#: A part of each warning
NO_REWARD = "rewards of the first .* timesteps were zero"
EQUAL_RETURNS = "episodes had the same return"
CERTAIN = "nearly certain of its actions"
CRITIC = "explained less than nothing"
SCALE = "returns are of a size"
BOUNDS = "action bounds"


def warned(model: REINFORCE, n_timesteps: int, **kwargs: Any) -> list[str]:
    """
    :param model: A model
    :param n_timesteps: Timesteps of its training
    :return: The advice that it gives
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.learn(n_timesteps, **kwargs)
    return [str(warning.message) for warning in caught]


def matching(messages: list[str], pattern: str) -> list[str]:
    return [message for message in messages if re.search(pattern, message)]


def advised(messages: list[str]) -> list[str]:
    patterns = (NO_REWARD, EQUAL_RETURNS, CERTAIN, CRITIC, SCALE, BOUNDS)
    return [message for pattern in patterns for message in matching(messages, pattern)]


class Bandit(gym.Env):
    """
    One decision per episode.

    :param space: The actions
    :param reward: The reward of an action
    """

    def __init__(self, space: spaces.Space, reward: Callable[[Any], float]):
        self.observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
        self.action_space = space
        self.reward = reward

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.ones(1, np.float32), float(self.reward(action)), True, False, {}


def make(env: gym.Env, **kwargs: Any) -> REINFORCE:
    return REINFORCE("MlpPolicy", env, **{"n_steps": 500, "seed": 0, "device": "cpu", **kwargs})


def test_a_run_without_any_reward_says_so_once() -> None:
    model = make(Scripted(lengths=(50,), reward=lambda _: 0.0))
    assert not advised(warned(model, 9_000))
    found = matching(warned(model, 12_000, reset_num_timesteps=False), NO_REWARD)
    assert len(found) == 1 and "10,000 timesteps" in found[0] and "`use_sde`" in found[0]
    assert not advised(warned(model, 12_000))


def test_one_reward_is_enough_to_say_nothing() -> None:
    rewards = iter([0.0] * 4_000 + [1.0] + [0.0] * 20_000)
    assert not advised(warned(make(Scripted(lengths=(50,), reward=lambda _: next(rewards))), 15_000))


def test_a_run_whose_returns_are_all_equal_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advice, "EQUAL_TIMESTEPS", 5_000)
    model = make(Scripted(lengths=(200,), reward=lambda _: -1.0), baseline="mean")
    assert not advised(warned(model, 8_000))  # 42 episodes
    messages = warned(model, 4_000, reset_num_timesteps=False)
    assert len(matching(messages, EQUAL_RETURNS)) == 1 == len(advised(messages))
    assert "51 episodes had the same return of -200" in advised(messages)[0]


def test_one_other_return_is_enough_to_say_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advice, "EQUAL_TIMESTEPS", 5_000)
    env = Scripted(lengths=(200,) * 20 + (199,) + (200,) * 400, reward=lambda _: -1.0)
    assert not advised(warned(make(env, baseline="mean"), 15_000))


@pytest.mark.parametrize(("gamma", "expected"), [(0.99, 0), (1.0, 1)])
def test_a_goal_that_is_always_reached_is_something_to_learn_where_sooner_is_better(
    gamma: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(advice, "EQUAL_TIMESTEPS", 2_000)
    rewards = cycle([0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0])
    env = Scripted(lengths=(3, 4), reward=lambda _: next(rewards))
    assert len(advised(warned(make(env, gamma=gamma, n_episodes=100), 4_000))) == expected


def test_pieces_of_episodes_are_no_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    """All episodes are equal, whatever parts of them fixed rollouts hold."""
    monkeypatch.setattr(advice, "EQUAL_TIMESTEPS", 5_000)
    env = vec(*(Scripted(lengths=(50,), reward=lambda _: 1.0) for _ in range(2)))
    model = make(env, n_steps=120, complete_episodes=False, natural_gradient=False, learning_rate=1e-8)
    set_logits(model, 0.0, 15.0)
    messages = warned(model, 8_000)
    assert len(matching(messages, EQUAL_RETURNS)) == 1 == len(advised(messages))


def set_logits(model: REINFORCE, *logits: float) -> None:
    with th.no_grad():
        model.policy.action_net.weight.zero_()
        model.policy.action_net.bias.copy_(th.tensor(logits))


def test_a_policy_that_is_certain_too_early_says_so_once() -> None:
    rng = np.random.default_rng(0)
    model = make(Bandit(spaces.Discrete(2), lambda action: action + rng.normal()), natural_gradient=False, learning_rate=1e-8)
    set_logits(model, 0.0, 15.0)
    messages = warned(model, 5_000)
    assert len(matching(messages, CERTAIN)) == 1 == len(advised(messages))
    assert "`ent_coef`" in advised(messages)[0]
    assert not matching(warned(model, 5_000), CERTAIN)


def test_the_returns_of_single_episodes_are_compared_with_each_other() -> None:
    rng = np.random.default_rng(0)
    env = Bandit(spaces.Discrete(2), lambda action: action + rng.normal())
    model = make(env, n_episodes=1, natural_gradient=False, learning_rate=1e-8)
    set_logits(model, 0.0, 15.0)
    assert len(matching(warned(model, 200), CERTAIN)) == 1


@pytest.mark.parametrize("logits", [(0.0, 0.0), (0.0, 4.0)])
def test_a_policy_that_still_tries_says_nothing(logits: tuple[float, float]) -> None:
    rng = np.random.default_rng(0)
    model = make(Bandit(spaces.Discrete(2), lambda action: action + rng.normal()), natural_gradient=False, learning_rate=1e-8)
    set_logits(model, *logits)
    assert not advised(warned(model, 5_000))


def test_a_policy_that_is_certain_of_a_solved_task_says_nothing() -> None:
    model = make(Bandit(spaces.Discrete(2), float), natural_gradient=False, learning_rate=1e-8)
    set_logits(model, 0.0, 15.0)
    assert not advised(warned(model, 5_000))


@pytest.mark.parametrize(
    ("space", "logits"),
    [(spaces.MultiDiscrete([2, 3]), (0.0, 15.0, 0.0, 0.0, 15.0)), (spaces.MultiBinary(2), (15.0, -15.0))],
)
def test_certainty_is_measured_in_every_discrete_space(space: spaces.Space, logits: tuple[float, ...]) -> None:
    rng = np.random.default_rng(0)
    model = make(Bandit(space, lambda _: rng.normal()), natural_gradient=False, learning_rate=1e-8)
    set_logits(model, *logits)
    assert len(advised(warned(model, 5_000))) == 1


def test_a_deviation_that_is_gone_counts_as_certain() -> None:
    rng = np.random.default_rng(0)
    space = spaces.Box(-2.0, 2.0, (1,), np.float32)
    for log_std, expected in ((-8.0, 1), (-2.0, 0)):
        model = make(Bandit(space, lambda _: rng.normal()), learning_rate=1e-8)
        with th.no_grad():
            model.policy.log_std.fill_(log_std)
        assert len(matching(warned(model, 5_000), CERTAIN)) == expected


@pytest.mark.parametrize("bound", [100.0, np.finfo(np.float32).max])
def test_a_deviation_is_not_gone_because_the_bounds_are_far_apart(bound: float) -> None:
    rng = np.random.default_rng(0)
    space = spaces.Box(-np.float32(bound), np.float32(bound), (1,))
    for log_std, expected in ((-3.0, 0), (-8.0, 1)):
        model = make(Bandit(space, lambda _: rng.normal()), learning_rate=1e-8)
        with th.no_grad():
            model.policy.log_std.fill_(log_std)
        assert len(matching(warned(model, 3_000), CERTAIN)) == expected


@no_warnings
def test_a_run_without_real_bounds_is_healthy() -> None:
    """SB3 takes finite bounds only, so the largest numbers stand for none."""
    largest = np.finfo(np.float32).max
    rng = np.random.default_rng(0)
    make(Bandit(spaces.Box(-largest, largest, (1,)), lambda _: rng.normal())).learn(5_000)


def test_a_dimension_with_one_action_has_no_bounds_to_be_far_from() -> None:
    env = Bandit(spaces.Box(np.float32([-1.0, 0.0]), np.float32([1.0, 0.0])), lambda action: -float(abs(action).sum()))
    assert not advised(warned(make(env), 500))


def test_a_critic_that_makes_it_worse_says_so_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advice, "USELESS_UPDATES", 10)
    rng = np.random.default_rng(0)
    env = Scripted((2,), spaces.Box(-1.0, 1.0, (30,)), reward=lambda _: rng.normal())
    kwargs: dict[str, Any] = {"n_steps": 64, "n_critic_updates": 100, "batch_size": 64}
    messages = warned(make(env, **kwargs), 64 * 30)
    assert len(matching(messages, CRITIC)) == 1 and "`critic_learning_rate`" in matching(messages, CRITIC)[0]
    assert not matching(warned(make(env, **{**kwargs, "baseline": "leave_one_out"}), 64 * 30), CRITIC)
    # Returns that are nearly alike leave nothing to explain
    solved = Scripted((2,), spaces.Box(-1.0, 1.0, (30,)), reward=lambda _: 100.0 + rng.normal())
    assert not matching(warned(make(solved, **kwargs, gamma=0.0), 64 * 30), CRITIC)


@pytest.mark.parametrize(("scale", "expected"), [(1e-6, 1), (1.0, 0), (1e6, 1)])
def test_returns_of_a_scale_that_no_raw_critic_follows_are_named(scale: float, expected: int) -> None:
    def found(**kwargs: Any) -> int:
        env = TransformReward(gym.make("CartPole-v1"), lambda reward: scale * float(reward))
        return len(advised(warned(make(env, **kwargs), 2_000)))

    assert found(normalize_returns=False) == expected
    assert found(normalize_returns=True) == found(normalize_returns=False, baseline="linear") == 0


def test_returns_that_have_become_small_are_no_trouble() -> None:
    rewards = (10.0**-exponent for exponent in count(step=0.01))
    model = make(Bandit(spaces.Discrete(2), lambda _: next(rewards)), normalize_returns=False, n_steps=100)
    assert not advised(warned(model, 800))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(-0.01, 0.01, 1), (-100.0, 100.0, 1), (10.0, 12.0, 1), (-1.0, 1.0, 0), (-2.0, 2.0, 0), (0.0, 1.0, 0)],
)
def test_action_bounds_far_from_the_deviation_are_named(low: float, high: float, expected: int) -> None:
    env = Bandit(spaces.Box(np.float32(low), np.float32(high), (1,)), lambda action: -float(abs(action).sum()))
    model = make(env)
    found = advised(warned(model, 500))
    assert len(found) == expected
    assert all("RescaleAction" in message and "log_std_init" in message for message in found)
    assert not advised(warned(model, 500, reset_num_timesteps=False))
    if expected:
        assert not advised(warned(make(RescaleAction(env, -1.0, 1.0)), 500))


def test_a_first_deviation_that_fits_the_bounds_is_fine() -> None:
    env = Bandit(spaces.Box(-0.01, 0.01, (1,)), lambda action: -float(abs(action).sum()))
    assert not advised(warned(make(env, policy_kwargs={"log_std_init": -5.0}), 500))


def test_advice_is_switched_off_like_any_warning() -> None:
    env = Bandit(spaces.Box(-0.01, 0.01, (1,)), lambda action: 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=UserWarning, module="sb3_reinforce")
        make(env).learn(500)


def test_copies_and_files_of_a_model_watch_for_themselves(tmp_path: Path) -> None:
    env = Bandit(spaces.Box(-0.01, 0.01, (1,)), lambda action: 0.0)
    model = make(env)
    clone = copy.copy(model)
    assert clone._advisor is not model._advisor and clone._advisor.model is clone
    model.save(tmp_path / "model.zip")
    assert "_advisor" not in (tmp_path / "model.zip").read_bytes().decode("latin-1")
    assert matching(warned(REINFORCE.load(tmp_path / "model.zip", env), 500), BOUNDS)


def test_a_run_that_is_cut_into_pieces_by_files_is_watched_like_any_other(tmp_path: Path) -> None:
    def go_on(n_timesteps: int) -> list[str]:
        model = REINFORCE.load(tmp_path / "model", env, device="cpu")
        messages = warned(model, n_timesteps, reset_num_timesteps=False)
        model.save(tmp_path / "model")
        return advised(messages)

    env = Scripted(lengths=(50,), reward=lambda _: 0.0)
    make(env).save(tmp_path / "model")
    assert [len(go_on(6_000)) for _ in range(3)] == [0, 1, 0]


def test_a_model_that_has_found_a_reward_before_is_not_told_that_there_is_none(tmp_path: Path) -> None:
    rewards = iter([1.0] + [0.0] * 20_000)
    env = Scripted(lengths=(50,), reward=lambda _: next(rewards))
    make(env).learn(500).save(tmp_path / "model")
    assert not advised(warned(REINFORCE.load(tmp_path / "model", env, device="cpu"), 11_000))


def test_a_copy_does_not_silence_its_original() -> None:
    model = make(Bandit(spaces.Box(-0.01, 0.01, (1,)), lambda action: 0.0))
    clone = copy.copy(model)
    assert len(advised(warned(clone, 100))) == 1 == len(advised(warned(model, 100)))


def test_environments_with_fixed_rollouts_are_watched_too() -> None:
    model = make(Scripted(lengths=(50,), reward=lambda _: 0.0), complete_episodes=False)
    assert len(matching(warned(model, 12_000), NO_REWARD)) == 1


def test_the_returns_of_episodes_are_the_sums_of_their_rewards() -> None:
    model = make(vec(Scripted((2, 3)), Scripted((4,))), n_steps=4)
    model.learn(1)
    buffer = model.rollout_buffer
    assert sorted(advice.episode_totals(buffer.rewards, buffer.episodes)) == [2.0, 3.0, 4.0]


class StateDependent(ActorCriticPolicy):
    """Its deviation is a function of the state, under the name that SB3 gives to a parameter."""

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.log_std = th.nn.Parameter(th.zeros(3, 2))

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Any:
        mean = self.action_net(latent_pi)
        return self.action_dist.proba_distribution(mean, self.log_std.mean().expand_as(mean))


def test_a_deviation_of_an_unknown_shape_is_no_hindrance() -> None:
    env = Bandit(spaces.Box(-0.01, 0.01, (1,)), lambda action: 0.0)
    model = REINFORCE(StateDependent, env, n_steps=100, seed=0, device="cpu")
    assert not advised(warned(model, 200))
