"""
Vector environments that reset an environment only in the step after its episode's end.

In that step the action is ignored, and there is no reward: it is no timestep of any episode.
"""

from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import VecEnv

from sb3_reinforce.envs.adapter import VectorEnvAdapter
from sb3_reinforce.envs.envpool_vec_env import EnvPoolVecEnv
from sb3_reinforce.envs.gymnasium_vec_env import GymnasiumVecEnv
from sb3_reinforce.rollout.wrappers import innermost


def as_vec_env(env: Any) -> Any:
    """
    :param env: An environment, or several
    :return: A ``VecEnv`` if these are a vector environment of Gymnasium or EnvPool
    """
    if isinstance(env, VecEnv):
        return env
    if type(env).__module__.startswith("envpool"):
        return EnvPoolVecEnv(env)
    return GymnasiumVecEnv(env) if isinstance(env, gym.vector.VectorEnv) else env


class DeadSteps:
    """
    Which steps of the environments are dead.

    :param env: The environments
    """

    def __init__(self, env: VecEnv):
        inner = innermost(env)
        self._adapter = inner if isinstance(inner, VectorEnvAdapter) else None
        if self._adapter is not None:
            self._adapter.warns_of_dead_steps = False  # they are left out here

    def coming(self) -> np.ndarray | None:
        """
        :return: The environments whose next step is dead; ``None`` if there are none
        """
        return None if self._adapter is None else self._adapter.next_dead
