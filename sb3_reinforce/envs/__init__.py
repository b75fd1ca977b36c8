"""The vector environments of Gymnasium and EnvPool as the ``VecEnv`` of Stable-Baselines3, for any of its algorithms."""

from sb3_reinforce.envs.envpool_vec_env import EnvPoolVecEnv
from sb3_reinforce.envs.gymnasium_vec_env import GymnasiumVecEnv
from sb3_reinforce.envs.make import make_vector_env

__all__ = ["EnvPoolVecEnv", "GymnasiumVecEnv", "make_vector_env"]
