"""
What the workers of ``test_faults.py`` run, started by torchrun: ``-m tests.distributed.faulty FOLDER FAULT STEP VICTIM``.
It goes on from the last checkpoint, and one of the workers has a fault at a step.
"""

import os
import resource
import signal
import sys
from datetime import timedelta
from pathlib import Path

import gymnasium as gym
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback
from stable_baselines3.common.env_util import make_vec_env

from examples.distributed import newest_checkpoint
from sb3_reinforce import REINFORCE

#: After this many seconds the workers no longer wait for one that does not answer
TIME_OUT = 8
N_TIMESTEPS = 12_000


class Breaks(gym.Wrapper):
    """An environment that raises when it is told so."""

    broken = False

    def step(self, action):  # type: ignore[no-untyped-def]
        if Breaks.broken:
            raise ZeroDivisionError("the moon is full")
        return super().step(action)


class FaultAt(BaseCallback):
    """A fault of this worker at a step."""

    def __init__(self, fault: str, step: int):
        super().__init__()
        self.fault, self.step = fault, step

    def _on_step(self) -> bool:
        if self.n_calls == self.step:
            if self.fault in ("kill", "stop"):
                os.kill(os.getpid(), signal.SIGKILL if self.fault == "kill" else signal.SIGSTOP)
            elif self.fault == "disk":  # as if it had no more space
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000))
            else:
                Breaks.broken = True
        return True


def main(folder: Path, fault: str, step: int, victim: int) -> None:
    th.set_num_threads(1)
    th.distributed.init_process_group("gloo", timeout=timedelta(seconds=TIME_OUT))
    rank = th.distributed.get_rank()
    env = make_vec_env("CartPole-v1", wrapper_class=Breaks)
    checkpoint = newest_checkpoint(folder)
    if checkpoint is None:
        model = REINFORCE("MlpPolicy", env, seed=7, device="cpu")
    else:
        model = REINFORCE.load(checkpoint, env=env, device="cpu")
    callbacks: list[BaseCallback] = [CheckpointCallback(150, str(folder))]
    if rank == victim:
        callbacks.append(FaultAt(fault, step))
    model.learn(N_TIMESTEPS - model.num_timesteps, callback=callbacks, reset_num_timesteps=False)
    if rank == 0:
        model.save(folder / "end")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
