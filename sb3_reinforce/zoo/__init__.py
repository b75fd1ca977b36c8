"""
RL Zoo (``rl_zoo3``) with REINFORCE in it: ``python -m sb3_reinforce.zoo VERB ...``, or ``sb3-reinforce-zoo VERB ...``.

A script of one's own, or a ``custom_envs.py``, that wants the algorithm in RL Zoo and nothing else calls :func:`register`.
"""

from sb3_reinforce.zoo.cli import main
from sb3_reinforce.zoo.registration import default_config, register

__all__ = ["default_config", "main", "register"]
