"""REINFORCE (Monte Carlo policy gradient) for Stable-Baselines3."""

from sb3_reinforce.buffers import EpisodeDictRolloutBuffer, EpisodeRolloutBuffer
from sb3_reinforce.callbacks import GradientMonitor
from sb3_reinforce.maskable.reinforce import MaskableREINFORCE
from sb3_reinforce.monte_carlo.baselines import Baseline
from sb3_reinforce.policies import CnnPolicy, MlpPolicy, MultiInputPolicy, SmallCnnPolicy
from sb3_reinforce.recurrent.maskable import MaskableRecurrentREINFORCE
from sb3_reinforce.recurrent.reinforce import RecurrentREINFORCE
from sb3_reinforce.reinforce import REINFORCE
from sb3_reinforce.update.policy_step import PolicyStep
from sb3_reinforce.version import __version__ as __version__

__all__ = [
    "REINFORCE",
    "Baseline",
    "CnnPolicy",
    "EpisodeDictRolloutBuffer",
    "EpisodeRolloutBuffer",
    "GradientMonitor",
    "MaskableREINFORCE",
    "MaskableRecurrentREINFORCE",
    "MlpPolicy",
    "MultiInputPolicy",
    "PolicyStep",
    "RecurrentREINFORCE",
    "SmallCnnPolicy",
]
