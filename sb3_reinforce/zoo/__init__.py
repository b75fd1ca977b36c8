"""
RL Zoo (``rl_zoo3``) with REINFORCE in it: ``python -m sb3_reinforce.zoo VERB ...``, or ``sb3-reinforce-zoo VERB ...``.

If you only want the algorithm in RL Zoo, call :func:`register` in a script of your own or in ``custom_envs.py``.
"""

from sb3_reinforce.zoo.cli import main
from sb3_reinforce.zoo.registration import default_config, register

__all__ = ["default_config", "main", "register"]
