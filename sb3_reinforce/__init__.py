"""REINFORCE (Monte Carlo policy gradient) for Stable-Baselines3."""

from importlib.metadata import version

from sb3_reinforce.buffers import EpisodeDictRolloutBuffer, EpisodeRolloutBuffer
from sb3_reinforce.callbacks import GradientMonitor
from sb3_reinforce.policies import CnnPolicy, MlpPolicy, MultiInputPolicy
from sb3_reinforce.reinforce import REINFORCE

__version__ = version("sb3-reinforce")

__all__ = [
    "REINFORCE",
    "CnnPolicy",
    "EpisodeDictRolloutBuffer",
    "EpisodeRolloutBuffer",
    "GradientMonitor",
    "MlpPolicy",
    "MultiInputPolicy",
]
