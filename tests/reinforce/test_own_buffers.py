"""Rollout buffers of the user's own, of SB3's classes and of ours."""

from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_reinforce import REINFORCE, EpisodeRolloutBuffer
from tests.helpers.environments import Scripted, vec
from tests.reinforce.interface import CONTINUOUS, SMALL, Events, equal, make, ramp, weights


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
