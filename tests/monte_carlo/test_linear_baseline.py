"""The baselines that are made of the other episodes: what they say, and that they leave the gradient as it is."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_reinforce import REINFORCE
from sb3_reinforce.callbacks import GradientMonitor
from sb3_reinforce.monte_carlo import baselines, linear
from sb3_reinforce.monte_carlo.episodes import Episodes
from tests.helpers import checkered, return_name
from tests.helpers.environments import Scripted, vec
from tests.helpers.tiny_mdp import TinyEnv, collect_estimates, deviation, exact_gradient, make_model

GAMMA = 0.9


def episodes_of(lengths: list[int], env_ids: list[int] | None = None) -> Episodes:
    ids = [0] * len(lengths) if env_ids is None else env_ids
    return Episodes(np.array(lengths), np.array(ids), np.zeros(len(lengths), dtype=int))


def noisy_rollout(lengths: list[int], env_ids: list[int]) -> tuple[np.ndarray, np.ndarray, Episodes]:
    rng = np.random.default_rng(3)
    episodes = episodes_of(lengths, env_ids)
    features = linear.linear_features(rng.normal(size=(episodes.n_timesteps, 2)), episodes.timesteps)
    return features, rng.normal(5.0, 2.0, episodes.n_timesteps), episodes


# The regression, by hand


def test_the_features_are_the_observation_its_squares_and_powers_of_the_time():
    features = linear.linear_features(np.array([[2.0, -3.0]]), np.array([50]))
    assert features.tolist() == [[2.0, -3.0, 4.0, 9.0, 0.5, 0.25, 0.125]]


def test_ridge_prediction_is_the_regression_on_the_samples_themselves():
    rng = np.random.default_rng(0)
    x, y, at = rng.normal(size=(50, 3)) * [1.0, 100.0, 0.01], rng.normal(size=50), rng.normal(size=(7, 3))
    z = np.column_stack([x, y, np.ones(50)])
    penalty = 0.3
    standard = (x - x.mean(axis=0)) / x.std(axis=0)
    slopes = np.linalg.solve(standard.T @ standard / 50 + penalty * np.eye(3), standard.T @ (y - y.mean()) / 50)
    expected = y.mean() + np.clip((at - x.mean(axis=0)) / x.std(axis=0) @ slopes, -3 * y.std(), 3 * y.std())
    assert np.allclose(linear.ridge_prediction(z.T @ z, at, penalty), expected)


def test_a_feature_that_does_not_vary_says_nothing():
    x, y = np.array([[1.0, 7.0], [2.0, 7.0], [3.0, 7.0]]), np.array([1.0, 2.0, 3.0])
    z = np.column_stack([x, y, np.ones(3)])
    assert np.allclose(linear.ridge_prediction(z.T @ z, np.array([[2.5, 1e6]]), 1e-9), 2.5)


def test_a_linear_return_is_predicted():
    episodes = episodes_of([30] * 100)
    observations = np.random.default_rng(1).normal(size=(3000, 2))
    returns = 4.0 + 2.0 * observations[:, 0] - 0.03 * episodes.timesteps
    predicted = linear.linear(linear.linear_features(observations, episodes.timesteps), returns, episodes, False)
    assert np.abs(predicted - returns).mean() < 0.05


@pytest.mark.parametrize("only_earlier", [False, True])
def test_each_episode_is_predicted_from_the_others_that_may_be_used(only_earlier):
    lengths, env_ids = [3, 5, 4, 6, 2], [0, 0, 1, 1, 1]
    features, returns, episodes = noisy_rollout(lengths, env_ids)
    found = linear.linear(features, returns, episodes, only_earlier)
    ids = episodes.episode_ids
    for i in range(len(lengths)):
        used = [j for j in range(len(lengths)) if j != i and not (only_earlier and env_ids[j] == env_ids[i] and j > i)]
        samples = np.isin(ids, used)
        z = np.column_stack([features[samples], returns[samples], np.ones(samples.sum())])
        expected = linear.ridge_prediction(z.T @ z, features[ids == i], 1.0 / len(used))
        assert np.allclose(found[ids == i], expected), i


@pytest.mark.parametrize("only_earlier", [False, True])
def test_an_episode_has_no_influence_on_its_own_baseline(only_earlier):
    features, returns, episodes = noisy_rollout([3, 5, 4, 6, 2], [0, 0, 1, 1, 1])
    before = linear.linear(features, returns, episodes, only_earlier)
    mine = episodes.episode_ids == 2
    returns = np.where(mine, 1e3 * returns, returns)
    assert np.allclose(linear.linear(features, returns, episodes, only_earlier)[mine], before[mine])


def test_where_there_is_no_other_episode_the_baseline_is_zero():
    features, returns, episodes = noisy_rollout([3, 5], [0, 0])
    assert not linear.linear(features, returns, episodes, True)[:3].any()
    features, returns, episodes = noisy_rollout([3], [0])
    assert not linear.linear(features, returns, episodes, False).any()
    assert len(linear.linear(np.zeros((0, 3)), np.zeros(0), episodes_of([]), False)) == 0


# Unbiased

ROLLOUTS: dict[str, dict[str, Any]] = {
    "episodes_of_one_env": {"n_envs": 1, "n_episodes": 4, "average_over": "episodes"},
    "episodes_of_three_envs": {"n_envs": 3, "n_episodes": 2, "average_over": "episodes"},
    "steps_of_one_env": {"n_envs": 1, "n_steps": 8, "average_over": "timesteps"},
    "steps_of_three_envs": {"n_envs": 3, "n_steps": 4, "average_over": "timesteps"},
}


@pytest.mark.parametrize(("reward_to_go", "rollout"), checkered([True, False], ROLLOUTS), ids=return_name)
def test_the_linear_baseline_leaves_the_gradient_as_it_is(reward_to_go, rollout):
    arguments = dict(ROLLOUTS[rollout])
    env = DummyVecEnv([lambda: TinyEnv(bonus=3.0)] * arguments.pop("n_envs"))
    model = make_model(
        env=env, baseline="linear", reward_to_go=reward_to_go, discount_state_distribution=True, gamma=GAMMA, **arguments
    )
    found = deviation(collect_estimates(model, 300), exact_gradient(GAMMA), model.average_over)
    assert found.relative_error < 0.25, "too few updates to tell right from wrong"
    assert found.z < 4.5


class LooksAhead(REINFORCE):
    """Takes the later episodes of an environment into the baseline of the earlier ones."""

    @property
    def only_earlier_episodes(self) -> bool:
        return False


def test_a_regression_on_episodes_that_exist_because_of_this_one_is_found_out():
    env = DummyVecEnv([lambda: TinyEnv(bonus=5.0)])
    arguments: dict[str, Any] = {"baseline": "linear", "discount_state_distribution": True, "gamma": GAMMA, "n_steps": 4}
    model = make_model(model_class=LooksAhead, env=env, **arguments)
    assert deviation(collect_estimates(model, 1000), exact_gradient(GAMMA), model.average_over).z > 6.0


def test_it_has_less_variance_than_the_mean_of_the_others():
    env = make_vec_env("CartPole-v1", 4, seed=0)
    # At a learning rate of 0 all updates are of the same policy
    kwargs = {"natural_gradient": False, "ent_coef": 0.0, "n_steps": 256, "seed": 0, "device": "cpu"}
    model = REINFORCE("MlpPolicy", env, 0.0, baseline="leave_one_out", gamma=0.99, **kwargs)
    monitor = GradientMonitor(every_n_updates=1, compare_baselines=True)
    model.learn(8 * 1024, callback=monitor)
    assert monitor.summary()["gradient/variance_ratio_linear"].mean() < 0.85


# In the algorithm

SPACES: dict[str, tuple[str, spaces.Space, int]] = {
    "vector": ("MlpPolicy", spaces.Box(-1, 1, (3,)), 3),
    "matrix": ("MlpPolicy", spaces.Box(-1, 1, (2, 3)), 6),
    "Discrete": ("MlpPolicy", spaces.Discrete(4), 4),
    "MultiDiscrete": ("MlpPolicy", spaces.MultiDiscrete([2, 3]), 5),
    "MultiBinary": ("MlpPolicy", spaces.MultiBinary(4), 4),
    "Dict": ("MultiInputPolicy", spaces.Dict({"a": spaces.Box(-1, 1, (3,)), "b": spaces.Discrete(2)}), 5),
}


@pytest.mark.parametrize("name", SPACES)
def test_every_space_of_numbers_is_regressed_on(name, monkeypatch):
    policy, space, n_numbers = SPACES[name]
    shapes = []
    fit = linear.linear
    monkeypatch.setattr(baselines, "linear", lambda features, *rest: shapes.append(features.shape) or fit(features, *rest))
    env = vec(*(Scripted([3, 4, 5], observation_space=space, reward=float) for _ in range(2)))
    model = REINFORCE(policy, env, baseline="linear", n_steps=10, policy_kwargs={"net_arch": [8]}, seed=0, device="cpu")
    model.learn(50)
    assert shapes and all(shape[1] == 2 * n_numbers + 3 for shape in shapes)
    assert all(parameter.isfinite().all() for parameter in model.policy.parameters())


def test_the_critic_is_left_alone_and_no_state_is_kept(tmp_path):
    model = REINFORCE("MlpPolicy", "CartPole-v1", baseline="linear", n_steps=100, seed=0, device="cpu")
    critic = {name: tensor.clone() for name, tensor in model.policy.value_net.state_dict().items()}
    model.learn(400)
    assert all(th.equal(tensor, critic[name]) for name, tensor in model.policy.value_net.state_dict().items())
    model.save(tmp_path / "model")
    loaded = REINFORCE.load(tmp_path / "model", env=model.get_env(), device="cpu")
    assert loaded.baseline == "linear"
    loaded.learn(200)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: REINFORCE("MlpPolicy", "CartPole-v1", baseline="optimal"), "'linear'"),
        (lambda: REINFORCE("MlpPolicy", "CartPole-v1", baseline="linear", n_episodes=1), "baseline='linear'.*two episodes"),
        (
            lambda: REINFORCE(
                "CnnPolicy",
                vec(Scripted([3], observation_space=spaces.Box(0, 255, (36, 36, 3), np.uint8))),
                baseline="linear",
            ),
            "at most 1024 numbers.*got 3888",
        ),
    ],
    ids=["left out", "one episode", "image"],
)
def test_what_cannot_be_is_refused(make: Callable[[], REINFORCE], message: str):
    with pytest.raises(ValueError, match=message):
        make()
