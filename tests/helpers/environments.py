"""Small environments whose every step is known beforehand, for the tests."""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv


class Scripted(gym.Env):
    """
    Plays episodes of given lengths, one after the other and then again from the first, and remembers what happened.

    :param lengths: Length of each episode; ``None`` never ends
    :param observation_space: Space to draw observations from; by default the observation is
        (number of the episode, timestep)
    :param action_space: Space of the actions
    :param truncated: Whether the episodes are truncated instead of terminated
    :param reward: Reward as a function of the timestep
    """

    def __init__(
        self,
        lengths: Sequence[int | None] = (3,),
        observation_space: spaces.Space | None = None,
        action_space: spaces.Space | None = None,
        truncated: bool = False,
        reward: Callable[[int], float] = lambda timestep: 1.0,
    ):
        self.lengths = lengths
        self.draws_observations = observation_space is not None
        self.observation_space = observation_space or spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = action_space or spaces.Discrete(2)
        self.truncated = truncated
        self.reward = reward
        self.n_resets = 0
        self.timestep = 0
        self.received_actions: list[Any] = []
        self.shown_observations: list[Any] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.length = self.lengths[self.n_resets % len(self.lengths)]
        self.n_resets += 1
        self.timestep = 0
        return self._observe(), {}

    def _observe(self) -> Any:
        if self.draws_observations:
            obs = self.observation_space.sample()
        else:
            obs = np.array([self.n_resets, self.timestep], np.float32)
        self.shown_observations.append(obs)
        return obs

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.received_actions.append(np.array(action))
        reward = self.reward(self.timestep)
        self.timestep += 1
        done = self.timestep == self.length
        return self._observe(), reward, done and not self.truncated, done and self.truncated, {}


class Seeded(gym.Env):
    """
    Draws all that happens from the generator that ``reset(seed=...)`` seeds: observations, lengths, masks, and whether an
    episode is terminated or truncated.

    :param action_space: Space of the actions
    :param observation_space: Space to draw observations from; by default a vector of three numbers
    """

    def __init__(self, action_space: spaces.Space | None = None, observation_space: spaces.Space | None = None):
        self.action_space = action_space or spaces.Discrete(3)
        self.observation_space = observation_space or spaces.Box(-1, 1, (3,), np.float32)
        self.seeds: list[int | None] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.seeds.append(seed)
        self.left = int(self.np_random.integers(3, 15))
        return self._observe(), {}

    def _observe(self) -> Any:
        self.observation_space.seed(int(self.np_random.integers(2**31)))
        self.obs = self.observation_space.sample()
        return self.obs

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        reward = float(np.sum(action)) * float(self.np_random.normal(1.0)) + self.left % 3
        ends = self.left == 0
        is_truncated = ends and bool(self.np_random.integers(2))
        return self._observe(), reward, ends and not is_truncated, is_truncated, {}

    def action_masks(self) -> np.ndarray:
        mask = np.ones(self.action_space.n, dtype=bool)  # type: ignore[attr-defined]
        mask[self.left % len(mask)] = False
        return mask


class Declared(Scripted):
    """
    An environment that declares a limit in its ``spec`` but does not keep it.

    :param limit: The limit
    """

    def __init__(self, limit: int):
        super().__init__(lengths=(None,))
        self.spec = EnvSpec("Declared-v0", max_episode_steps=limit)


class Poisoned(gym.Wrapper):
    """
    Puts a number that is not finite into one step.

    :param env: The environment
    :param what: ``"reward"``, ``"observation"`` (of any step, the last one of an episode too) or ``"reset"``
    :param step: Which step since the environment was made, from 0 on (or which reset)
    :param value: The number
    """

    def __init__(self, env: gym.Env, what: str, step: int, value: float = np.nan):
        super().__init__(env)
        self.what, self.poisoned_step, self.value = what, step, value
        self.n_steps = self.n_resets = 0

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        obs, info = super().reset(**kwargs)
        self.n_resets += 1
        return (self._poison(obs) if self.what == "reset" and self.n_resets - 1 == self.poisoned_step else obs), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        obs, reward, terminated, truncated, info = super().step(action)  # type: ignore[misc]
        if self.n_steps == self.poisoned_step:
            obs = self._poison(obs) if self.what == "observation" else obs
            reward = self.value if self.what == "reward" else reward
        self.n_steps += 1
        return obs, float(reward), terminated, truncated, info

    def _poison(self, obs: Any) -> Any:
        if isinstance(obs, dict):
            return {**obs, "vector": self._poison(obs["vector"])}
        obs = obs.copy()
        obs.flat[-1] = self.value
        return obs


class Breaking(gym.Wrapper):
    """
    Raises once.

    :param env: The environment
    :param step: At which step since the environment was made, from 0 on
    :param error: What it raises
    """

    def __init__(self, env: gym.Env, step: int, error: BaseException):
        super().__init__(env)
        self.breaking_step, self.error = step, error
        self.n_steps = 0

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.n_steps += 1
        if self.n_steps - 1 == self.breaking_step:
            raise self.error
        return super().step(action)


def vec(*envs: gym.Env) -> DummyVecEnv:
    """
    :param envs: Environments
    :return: All of them in one, each with a monitor, as ``make_vec_env`` does it
    """
    return DummyVecEnv([lambda env=env: Monitor(env) for env in envs])  # type: ignore[misc]
