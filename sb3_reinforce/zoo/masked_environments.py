"""Environments with masks of actions, for the entries in ``zoo_configs``: RL Zoo has none."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class WalledGrid(gym.Env[np.ndarray, Any]):
    """
    A grid of 9 by 9 cells with inner walls. Each step costs 0.01, and the goal in the last corner, which can be reached, is
    worth 1. The masks forbid steps into walls; without them such a step does nothing.

    The observation holds the agent's position, as numbers from 0 to 1, and which of its neighbours are free.

    :param new_walls: Whether the walls are drawn anew for each episode; else they are always the same
    """

    SIZE = 9
    MOVES = ((0, 1), (1, 0), (0, -1), (-1, 0))
    MAX_STEPS = 200
    N_WALLS = 24

    def __init__(self, new_walls: bool = False) -> None:
        self.new_walls = new_walls
        self.observation_space = spaces.Box(0.0, 1.0, (6,), np.float32)
        self.action_space = spaces.Discrete(len(self.MOVES))
        self._free = np.ones((self.SIZE, self.SIZE), bool)
        self._position = (0, 0)
        self._draw_walls(np.random.default_rng(0))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self._position = (0, 0)
        if self.new_walls:
            self._draw_walls(self.np_random)
        return self._observe(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        if self.action_masks()[action]:
            move = self.MOVES[action]
            self._position = (self._position[0] + move[0], self._position[1] + move[1])
        at_goal = self._position == (self.SIZE - 1, self.SIZE - 1)
        return self._observe(), 1.0 if at_goal else -0.01, at_goal, False, {}

    def action_masks(self) -> np.ndarray:
        """
        :return: Which moves do not end in a wall, shape ``(4,)``, bool
        """
        row, column = self._position
        return np.array([self._is_free(row + move[0], column + move[1]) for move in self.MOVES])

    def _observe(self) -> np.ndarray:
        position = np.array(self._position, np.float32) / (self.SIZE - 1)
        return np.concatenate([position, self.action_masks().astype(np.float32)])

    def _is_free(self, row: int, column: int) -> bool:
        return 0 <= row < self.SIZE and 0 <= column < self.SIZE and bool(self._free[row, column])

    def _draw_walls(self, rng: np.random.Generator) -> None:
        while True:
            self._free[:] = True
            self._free.flat[rng.choice(np.arange(1, self.SIZE**2 - 1), self.N_WALLS, replace=False)] = False
            if self._goal_is_reachable():
                return

    def _goal_is_reachable(self) -> bool:
        reached, todo = {(0, 0)}, [(0, 0)]
        while todo:
            row, column = todo.pop()
            for move in self.MOVES:
                cell = row + move[0], column + move[1]
                if cell not in reached and self._is_free(*cell):
                    reached.add(cell)
                    todo.append(cell)
        return (self.SIZE - 1, self.SIZE - 1) in reached


class InfoMasks(gym.Wrapper[Any, Any, Any, Any]):
    """
    The masks that an environment puts into its infos as ``action_mask``, such as Gymnasium's Taxi, as sb3-contrib wants them.

    :param env: The environment
    """

    def __init__(self, env: gym.Env[Any, Any]):
        super().__init__(env)
        self._mask: np.ndarray | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        obs, info = self.env.reset(seed=seed, options=options)
        self._mask = np.asarray(info["action_mask"], bool)
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = self.env.step(action)
        self._mask = np.asarray(info["action_mask"], bool)
        return obs, reward, terminated, truncated, info

    def action_masks(self) -> np.ndarray:
        """
        :return: The mask of the state that the environment is in, shape ``(n_actions,)``, bool
        :raises RuntimeError: If the environment was not reset
        """
        if self._mask is None:
            raise RuntimeError("The environment must be reset before it has a mask.")
        return self._mask


def register_environments() -> None:
    """Register the environments with Gymnasium. Further calls change nothing."""
    if "WalledGrid-v0" not in gym.registry:
        entry_point = f"{WalledGrid.__module__}:{WalledGrid.__name__}"
        gym.register("WalledGrid-v0", entry_point=entry_point, max_episode_steps=WalledGrid.MAX_STEPS)
    if "InvalidActions-v0" not in gym.registry:
        # sb3-contrib's test environment: the observation says which of 80 actions pays, and 60 others are not allowed
        entry_point = "sb3_contrib.common.envs:InvalidActionEnvDiscrete"
        gym.register("InvalidActions-v0", entry_point=entry_point, kwargs={"dim": 80, "n_invalid_actions": 60})
