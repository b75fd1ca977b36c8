"""A baseline of the user's own is one class, whose instance is the argument ``baseline``."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_reinforce import REINFORCE, Baseline
from sb3_reinforce.monte_carlo.baselines import EpisodeReturns, Value
from tests.helpers import checkered, return_name
from tests.helpers.environments import Scripted, vec
from tests.helpers.tiny_mdp import TinyEnv, collect_estimates, deviation, exact_gradient, make_model


class MeanOfState(Baseline):
    """For each observation the mean return of the other episodes that came to it; 0 where there is none."""

    of_others = True

    def features(self, rollout: Any) -> np.ndarray:
        return rollout.flat_observations().argmax(axis=1)

    def __call__(self, episodes: EpisodeReturns) -> np.ndarray:
        ids, states = episodes.episodes.episode_ids, episodes.features
        assert states is not None and states.shape == ids.shape
        others = (states[:, None] == states) & (ids[:, None] != ids)
        if episodes.only_earlier_episodes:
            env_ids = episodes.episodes.env_ids[ids]
            others &= (env_ids[:, None] != env_ids) | (ids < ids[:, None])
        return others @ episodes.returns / np.maximum(others.sum(axis=1), 1)


class Returns(Baseline):
    """Returns what it was made with."""

    def __init__(self, result: Any):
        self.result = result

    def __call__(self, episodes: EpisodeReturns) -> Any:
        episodes.returns[:] = 0.0  # what it is given is its own
        return self.result


class Picky(Returns):
    def check(self, env: Any, observation_size: int) -> None:
        if env.num_envs > 1:
            raise ValueError(f"`Picky` takes one environment, got {env.num_envs}.")
        assert observation_size == 2


@pytest.mark.parametrize(
    ("kwargs", "reward_to_go"), checkered([{"n_episodes": 4}, {"n_steps": 12}], [True, False]), ids=return_name
)
def test_one_that_looks_at_observations_is_unbiased(kwargs: dict[str, Any], reward_to_go: bool) -> None:
    arguments = {"baseline": MeanOfState(), "reward_to_go": reward_to_go, "discount_state_distribution": True, **kwargs}
    model = make_model(2, env=DummyVecEnv([TinyEnv] * 2), average_over="episodes", **arguments)
    found = deviation(collect_estimates(model, 1000), exact_gradient(0.9), model.average_over)
    assert found.z < 4.0 and found.relative_error < 0.1


def test_one_of_others_needs_two_episodes() -> None:
    with pytest.raises(ValueError, match="needs at least two episodes per update"):
        REINFORCE("MlpPolicy", "CartPole-v1", baseline=MeanOfState(), n_episodes=1)


def test_it_is_saved_with_the_model(tmp_path: Path) -> None:
    model = make_model(baseline=MeanOfState(), n_episodes=2).learn(20)
    model.save(tmp_path / "model")
    loaded = REINFORCE.load(tmp_path / "model", env=model.env, device="cpu")
    assert isinstance(loaded.baseline, MeanOfState)
    loaded.learn(20)


def test_it_is_asked_about_the_environments() -> None:
    baseline = Picky(np.zeros(3))
    REINFORCE("MlpPolicy", vec(Scripted()), baseline=baseline)
    with pytest.raises(ValueError, match="takes one environment, got 2"):
        REINFORCE("MlpPolicy", vec(Scripted(), Scripted()), baseline=baseline)


@pytest.mark.parametrize("result", [None, np.zeros(2), np.full(3, np.nan), "mean"], ids=str)
def test_what_is_no_baseline_is_found_out_before_the_weights_change(result: Any) -> None:
    model = REINFORCE("MlpPolicy", vec(Scripted((3,))), baseline=Returns(result), n_episodes=1)
    with pytest.raises(ValueError, match="The `baseline` Returns returned"):
        model.learn(3)
    assert model._n_updates == 0


def test_a_class_in_the_place_of_an_instance_is_refused() -> None:
    with pytest.raises(ValueError, match=r"an instance of a `Baseline`.*got <class"):
        REINFORCE("MlpPolicy", "CartPole-v1", baseline=MeanOfState)  # type: ignore[arg-type]


def test_the_rewards_are_as_they_were() -> None:
    model = REINFORCE("MlpPolicy", vec(Scripted((3,))), baseline=Returns(np.zeros(3)), n_episodes=1, gamma=1.0).learn(3)
    assert model.rollout_buffer.returns.tolist() == [3.0, 2.0, 1.0] == model.rollout_buffer.advantages.tolist()


def test_the_critic_as_an_object_is_the_critic_by_name() -> None:
    def returns_of(baseline: Any) -> np.ndarray:
        arguments = {"n_steps": 32, "gae_lambda": 0.9, "complete_episodes": False, "seed": 0, "device": "cpu"}
        return REINFORCE("MlpPolicy", "CartPole-v1", baseline=baseline, **arguments).learn(100).rollout_buffer.returns

    np.testing.assert_array_equal(returns_of(Value()), returns_of("value"))
