"""What has been seen at the start of an episode is remembered to its end."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_reinforce import RecurrentREINFORCE


class Recall(gym.Env[np.ndarray, int]):
    """The first observation says which action pays, some timesteps later."""

    def __init__(self, delay: int) -> None:
        self.delay = delay
        self.observation_space = spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.timestep, self.right = 0, int(self.np_random.integers(2))
        return np.array([2 * self.right - 1, 0], np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        ends, pays = self.timestep == self.delay, action == self.right
        self.timestep += 1
        return np.array([0, self.timestep == self.delay], np.float32), float(ends and pays), ends, False, {}


@pytest.mark.parametrize("delay, n_steps, longest_memory", [(3, 8_000, None), (10, 20_000, 20)])
def test_a_memory_task_is_learned(delay: int, n_steps: int, longest_memory: int | None) -> None:
    env = make_vec_env(lambda: Recall(delay), 8, seed=0)
    policy_kwargs = {"lstm_hidden_size": 16, "longest_memory": longest_memory}
    model = RecurrentREINFORCE("MlpLstmPolicy", env, seed=0, policy_kwargs=policy_kwargs).learn(n_steps)
    mean, _ = evaluate_policy(model, make_vec_env(lambda: Recall(delay), 1, seed=1), n_eval_episodes=40)
    assert mean > 0.9


def test_the_gates_remember_for_times_up_to_the_longest(tmp_path: Any) -> None:
    model = RecurrentREINFORCE(
        "MlpLstmPolicy", Recall(3), seed=0, policy_kwargs={"lstm_hidden_size": 200, "longest_memory": 50, "n_lstm_layers": 2}
    )
    for lstm in (model.policy.lstm_actor, model.policy.lstm_critic):
        for layer in range(2):
            forget = getattr(lstm, f"bias_ih_l{layer}")[200:400] + getattr(lstm, f"bias_hh_l{layer}")[200:400]
            times = 1 / (1 - th.sigmoid(forget))
            assert 2 <= times.min() < 5 and 45 < times.max() <= 50
    model.policy.save(tmp_path / "policy")
    assert type(model.policy).load(tmp_path / "policy").longest_memory == 50
    with pytest.raises(ValueError, match=r"longest_memory.*at least 2, got 1"):
        RecurrentREINFORCE("MlpLstmPolicy", Recall(3), policy_kwargs={"longest_memory": 1})
    with pytest.raises(ValueError, match=r"longest_memory.*biases, got 9"):
        RecurrentREINFORCE("MlpLstmPolicy", Recall(3), policy_kwargs={"longest_memory": 9, "lstm_kwargs": {"bias": False}})
