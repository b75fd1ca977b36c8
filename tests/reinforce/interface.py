"""What the tests of the interface share."""

import copy
import csv
import pathlib
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback

from sb3_reinforce import REINFORCE
from tests.helpers.plain import PLAIN

SMALL = {"net_arch": [8]}


CONTINUOUS = spaces.Box(-1, 1, (2,))


def ramp(timestep: int) -> float:
    return float(timestep)


def make(env: Any = None, **kwargs: Any) -> REINFORCE:
    defaults = {**PLAIN, "learning_rate": 1e-2, "n_steps": 32, "seed": 0, "device": "cpu", "policy_kwargs": SMALL}
    return REINFORCE("MlpPolicy", "CartPole-v1" if env is None else env, **{**defaults, **kwargs})


def weights(model: REINFORCE) -> list[th.Tensor]:
    return [parameter.detach().clone() for parameter in model.policy.parameters()]


def equal(a: list[th.Tensor], b: list[th.Tensor]) -> bool:
    return all(th.equal(x, y) for x, y in zip(a, b, strict=True))


class Events(BaseCallback):
    """Writes down what happens, and stops at a step if asked."""

    def __init__(self, stop_at: int | None = None):
        super().__init__()
        self.stop_at = stop_at
        self.events: list[str] = []
        self.seen: list[dict[str, Any]] = []

    def _on_training_start(self) -> None:
        self.events.append("training start")

    def _on_rollout_start(self) -> None:
        self.events.append("rollout start")

    def _on_step(self) -> bool:
        self.events.append("step")
        self.seen.append({key: copy.deepcopy(self.locals[key]) for key in ("new_obs", "rewards", "dones", "infos", "actions")})
        return self.n_calls != self.stop_at

    def _on_rollout_end(self) -> None:
        self.events.append("rollout end")

    def _on_training_end(self) -> None:
        self.events.append("training end")


def read_csv(folder: pathlib.Path) -> list[dict[str, str]]:
    with open(folder / "progress.csv", newline="") as file:
        return list(csv.DictReader(file))
