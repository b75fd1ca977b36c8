"""What the workers of ``test_masked_workers.py`` run, started by torchrun: ``python -m tests.maskable.job FOLDER``."""

import os
import pickle
import sys
from pathlib import Path

import numpy as np
import torch as th
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_reinforce import MaskableREINFORCE
from tests.helpers.environments import Scripted
from tests.maskable.environments import SPACES, Masked

if __name__ == "__main__":
    th.set_num_threads(1)
    rank, outcome = int(os.environ["RANK"]), {}
    for name, space in SPACES.items():
        env = DummyVecEnv([lambda space=space: Masked(space, ((4, 7, 2), (3, 5))[rank])] * 2)  # type: ignore[misc]
        model = MaskableREINFORCE("MlpPolicy", env, n_steps=20, seed=0, device="cpu", n_critic_updates=1).learn(200)
        weights = np.concatenate([parameter.detach().numpy().ravel() for parameter in model.policy.parameters()])
        outcome[name] = weights, model.rollout_buffer.observations, model.rollout_buffer.action_masks  # type: ignore[attr-defined]
    # Only one worker has an environment without masks: all of them end in its error
    kind = Scripted if rank else Masked
    env = DummyVecEnv([lambda: kind(lengths=(3,), action_space=SPACES["discrete"])])
    try:
        MaskableREINFORCE("MlpPolicy", env, n_steps=20, seed=0, device="cpu").learn(200)
    except Exception as error:
        outcome["error"] = f"{type(error).__name__}: {error}"
    (Path(sys.argv[1]) / f"{rank}.pkl").write_bytes(pickle.dumps(outcome))
