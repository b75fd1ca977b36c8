"""The minibatches of the critic grow with a large batch."""

from typing import Any

import pytest

from sb3_reinforce import REINFORCE
from sb3_reinforce.distributed.workers import Alone
from tests.helpers.environments import Scripted


@pytest.mark.parametrize(
    "n_steps, batch_size, largest",
    [(100, None, 50), (1_000, None, 63), (8_192, None, 128), (9_600, None, 150), (9_600, 64, 64)],
)
def test_the_critic_takes_at_most_64_steps_per_pass(
    n_steps: int, batch_size: int | None, largest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[list[int]] = []
    deal = Alone.minibatches

    def recorded(self: Alone, n_timesteps: int, batch_size: int) -> Any:
        found = list(deal(self, n_timesteps, batch_size))
        sizes.append([len(rows) for rows, _ in found])
        return iter(found)

    monkeypatch.setattr(Alone, "minibatches", recorded)
    env = Scripted((n_steps,), reward=lambda timestep: float(timestep % 3))
    REINFORCE("MlpPolicy", env, n_steps=n_steps, batch_size=batch_size, natural_gradient=False).learn(n_steps)
    assert len(sizes) == 5 and all(sum(of_pass) == n_steps and max(of_pass) == largest for of_pass in sizes)
    assert batch_size is not None or all(len(of_pass) <= 64 for of_pass in sizes)
