"""The tasks: one set to choose defaults on, and one that is only reported on."""

from collections.abc import Callable
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit, TransformObservation
from stable_baselines3.common.envs import IdentityEnv, IdentityEnvBox, IdentityEnvMultiBinary, IdentityEnvMultiDiscrete


class Task(NamedTuple):
    """
    :param make: Makes an environment
    :param n_eval_episodes: Episodes of the final evaluation: more where a return says little
    """

    make: Callable[[], gym.Env[Any, Any]]
    n_eval_episodes: int = 20


class Knapsack(gym.Env[np.ndarray, np.ndarray]):
    """
    One decision: which of the items to take. The reward is their value if they are not too heavy, else zero.
    """

    N_ITEMS = 8

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0.0, 1.0, (2 * self.N_ITEMS,), np.float32)
        self.action_space = spaces.MultiBinary(self.N_ITEMS)
        self.items = np.zeros((2, self.N_ITEMS), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.items = self.np_random.random((2, self.N_ITEMS), dtype=np.float32)
        return self.items.flatten(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        weights, values = self.items
        fits = float(weights @ action) <= 0.5 * float(weights.sum())
        return self.items.flatten(), float(values @ action) if fits else 0.0, True, False, {}


class GoalGrid(gym.Env[np.ndarray, int]):
    """
    A square room of 8 by 8, a start in one corner, a goal in the other: a reward of one at the goal, none elsewhere.
    """

    SIZE = 8
    MOVES = ((0, 1), (1, 0), (0, -1), (-1, 0))

    def __init__(self) -> None:
        self.observation_space = spaces.MultiDiscrete([self.SIZE, self.SIZE])
        self.action_space = spaces.Discrete(len(self.MOVES))
        self.position = np.zeros(2, np.int64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.position = np.zeros(2, np.int64)
        return self.position.copy(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.position = np.clip(self.position + self.MOVES[action], 0, self.SIZE - 1)
        at_goal = bool((self.position == self.SIZE - 1).all())
        return self.position.copy(), float(at_goal), at_goal, False, {}


def of_name(env_id: str) -> Callable[[], gym.Env[Any, Any]]:
    """
    :param env_id: The name of an environment
    :return: What makes it
    """
    return lambda: gym.make(env_id)


def blackjack() -> gym.Env[Any, Any]:
    """
    :return: Blackjack, whose observation is a tuple, as SB3 takes it
    """
    space = spaces.MultiDiscrete([32, 11, 2])
    return TransformObservation(gym.make("Blackjack-v1"), np.asarray, space)


NAMED = (
    "CartPole-v1",
    "Acrobot-v1",
    "Pendulum-v1",
    "LunarLander-v3",
    "LunarLanderContinuous-v3",
    "InvertedPendulum-v5",
    "InvertedDoublePendulum-v5",
    "Reacher-v5",
    "Hopper-v5",
    "Swimmer-v5",
)
#: On these the defaults were chosen
CHOOSE: dict[str, Task] = {
    **{env_id: Task(of_name(env_id)) for env_id in NAMED},
    "Identity": Task(lambda: IdentityEnv(4)),
    "IdentityBox": Task(lambda: IdentityEnvBox()),
    "IdentityMultiDiscrete": Task(lambda: IdentityEnvMultiDiscrete(4)),
    "IdentityMultiBinary": Task(lambda: IdentityEnvMultiBinary(4)),
    "FrozenLake-v1": Task(of_name("FrozenLake-v1"), 200),
    "Blackjack-v1": Task(blackjack, 2_000),
    "Taxi-v4": Task(of_name("Taxi-v4")),
}
#: Of those the ones with continuous actions
CONTINUOUS = {
    "Pendulum-v1",
    "LunarLanderContinuous-v3",
    "InvertedPendulum-v5",
    "InvertedDoublePendulum-v5",
    "Reacher-v5",
    "Hopper-v5",
    "Swimmer-v5",
    "IdentityBox",
}
#: These were not looked at before the defaults stood
UNTOUCHED: dict[str, Task] = {
    "MountainCarContinuous-v0": Task(of_name("MountainCarContinuous-v0")),
    "HalfCheetah-v5": Task(of_name("HalfCheetah-v5")),
    "Walker2d-v5": Task(of_name("Walker2d-v5")),
    "BipedalWalker-v3": Task(of_name("BipedalWalker-v3")),
    "CliffWalking-v1": Task(lambda: TimeLimit(gym.make("CliffWalking-v1"), 200)),
    "Knapsack": Task(Knapsack, 1_000),
    "GoalGrid": Task(lambda: TimeLimit(GoalGrid(), 100)),
}
TASKS = CHOOSE | UNTOUCHED
