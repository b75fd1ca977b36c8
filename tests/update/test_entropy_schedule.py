"""An entropy bonus that changes during a run."""

import io
import math
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from sb3_reinforce import REINFORCE
from tests.update.natural import ACTIONS, episodes


def make(**kwargs: Any) -> REINFORCE:
    return REINFORCE("MlpPolicy", episodes(ACTIONS["discrete"]), n_steps=16, seed=0, device="cpu", **kwargs)


def flat(model: REINFORCE) -> th.Tensor:
    return th.cat([parameter.detach().flatten() for parameter in model.policy.parameters()])


class SetByHand(BaseCallback):
    """What users of other algorithms do: the coefficient before each update."""

    model: REINFORCE

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.model.ent_coef = 0.5 - 0.7 * (1 - min(self.model.num_timesteps / 100, 1))


@pytest.mark.parametrize("natural_gradient", [True, False])
def test_a_schedule_gives_each_update_its_coefficient(natural_gradient: bool) -> None:
    by_schedule = make(ent_coef=lambda left: 0.5 - 0.7 * left, natural_gradient=natural_gradient).learn(100)
    by_hand = make(ent_coef=0.0, natural_gradient=natural_gradient).learn(100, callback=SetByHand())
    assert by_schedule._n_updates > 3
    assert th.equal(flat(by_schedule), flat(by_hand))
    constant = make(ent_coef=0.5, natural_gradient=natural_gradient).learn(100)
    assert not th.allclose(flat(by_schedule), flat(constant))


def test_the_coefficient_in_use_is_logged_and_told() -> None:
    model = make(ent_coef=lambda left: th.tensor([0.1 * left])).learn(100)
    assert model.logger.name_to_value["train/ent_coef"] == model.entropy_coefficient == 0.0
    model = make(ent_coef=lambda left: 0.25 + left).learn(16, reset_num_timesteps=False)
    assert model.entropy_coefficient == pytest.approx(0.25 + model._current_progress_remaining)
    assert "train/ent_coef" not in make(ent_coef=0.1).learn(16).logger.name_to_value


@pytest.mark.parametrize("bad", [math.nan, math.inf, "0.1", None, np.array([0.1, 0.1])])
def test_a_bad_coefficient_of_a_schedule_is_named_before_anything_is_played(bad: Any) -> None:
    model = make(ent_coef=lambda left: bad if left == 0.0 else 0.1)
    with pytest.raises(ValueError, match="`ent_coef` must be a finite number, got"):
        model.learn(16)
    assert model.num_timesteps == 0


def test_a_schedule_is_saved_with_the_model() -> None:
    file = io.BytesIO()
    make(ent_coef=lambda left: 0.5 * left).save(file)
    file.seek(0)
    loaded = REINFORCE.load(file, env=episodes(ACTIONS["discrete"]), device="cpu")
    assert callable(loaded.ent_coef) and loaded.entropy_coefficient == 0.5 * loaded._current_progress_remaining
    loaded.learn(32)
