"""Does it learn? Short runs here, the long ones are marked slow."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import pytest
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.envs import IdentityEnv, IdentityEnvBox, IdentityEnvMultiBinary, IdentityEnvMultiDiscrete
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_reinforce import REINFORCE
from tests.helpers import slow

IDENTITY: dict[str, tuple[Callable[[], gym.Env], int, dict[str, Any]]] = {
    "Discrete": (lambda: IdentityEnv(dim=4), 10_000, {}),
    "Box": (lambda: IdentityEnvBox(eps=0.5), 30_000, {"n_steps": 100, "policy_kwargs": {"log_std_init": -0.5}}),
    "MultiDiscrete": (lambda: IdentityEnvMultiDiscrete(dim=4), 15_000, {}),
    "MultiBinary": (lambda: IdentityEnvMultiBinary(dim=4), 15_000, {"n_steps": 256}),
}


@pytest.mark.parametrize("actions", ["Discrete", slow("Box"), "MultiDiscrete", "MultiBinary"])
def test_an_identity_is_learned_with_every_kind_of_action(actions: str) -> None:
    make_env, total_timesteps, kwargs = IDENTITY[actions]
    env = DummyVecEnv([make_env])
    # An action has no consequences beyond its own reward: a short-sighted agent learns from the least noise
    model = REINFORCE("MlpPolicy", env, gamma=0.0, seed=0, device="cpu", **kwargs).learn(total_timesteps)
    evaluate_policy(model, env, n_eval_episodes=20, reward_threshold=90, warn=False)


@pytest.mark.slow
def test_a_gaussian_policy_balances_a_pendulum_far_longer_than_a_random_one() -> None:
    env = make_vec_env("InvertedPendulum-v5", seed=100)
    model = REINFORCE("MlpPolicy", "InvertedPendulum-v5", seed=0, device="cpu")
    before, _ = evaluate_policy(model, env, n_eval_episodes=20, deterministic=False)
    model.learn(30_000)
    after, _ = evaluate_policy(model, env, n_eval_episodes=20, deterministic=False)
    assert before < 20 and after > 200


@pytest.mark.parametrize("baseline", [slow(None), slow("mean"), "leave_one_out", "value"])
@pytest.mark.parametrize("reward_to_go", [True, slow(False)])
def test_cartpole_improves_with_every_estimator(baseline: str | None, reward_to_go: bool) -> None:
    model = REINFORCE(
        "MlpPolicy", make_vec_env("CartPole-v1", 4, seed=0), n_steps=128, baseline=baseline, reward_to_go=reward_to_go, seed=0
    )
    model.learn(60_000)
    mean, _ = evaluate_policy(model, make_vec_env("CartPole-v1", seed=100), n_eval_episodes=20)
    assert mean > 100  # a random policy holds the pole for about 20 steps


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10))
def test_the_one_line_program_solves_cartpole(seed: int) -> None:
    model = REINFORCE("MlpPolicy", "CartPole-v1", seed=seed).learn()
    mean, _ = evaluate_policy(model, make_vec_env("CartPole-v1", seed=1000 + seed), n_eval_episodes=50)
    assert mean >= 475
