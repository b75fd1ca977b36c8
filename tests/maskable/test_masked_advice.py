"""What a policy may still choose among is what its mask allows."""

import warnings

import numpy as np
import pytest
from gymnasium import spaces

from sb3_reinforce import EpisodeRolloutBuffer, MaskableREINFORCE
from sb3_reinforce.maskable.masks import MaskLayout
from tests.helpers.environments import Scripted


class OneChoice(Scripted):
    """Allows one action at all timesteps but every tenth, whose reward is random."""

    def __init__(self) -> None:
        super().__init__((20,), action_space=spaces.Discrete(50))
        self.rng = np.random.default_rng(0)
        self.reward = lambda timestep: float(self.rng.normal())

    def action_masks(self) -> np.ndarray:
        return np.arange(50) < (2 if self.timestep % 10 == 0 else 1)


def test_a_policy_whose_masks_leave_one_choice_is_not_called_certain() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = MaskableREINFORCE("MlpPolicy", OneChoice(), n_steps=100, seed=0).learn(6_000)
    assert model.largest_entropy == pytest.approx(0.1 * np.log(2))


def test_a_rollout_buffer_without_an_attribute_for_the_masks_holds_them_too() -> None:
    model = MaskableREINFORCE("MlpPolicy", OneChoice(), n_steps=100, seed=0, rollout_buffer_class=EpisodeRolloutBuffer)
    assert model.learn(200).largest_entropy == pytest.approx(0.1 * np.log(2))


@pytest.mark.parametrize(
    "space, mask, expected",
    [
        (spaces.Discrete(4), [1, 1, 0, 0], np.log(2)),
        (spaces.MultiDiscrete([2, 3]), [1, 1, 1, 1, 1], np.log(6)),
        (spaces.MultiBinary(2), [1, 0, 1, 1], np.log(2)),
    ],
    ids=["discrete", "multi-discrete", "multi-binary"],
)
def test_the_largest_entropy_is_that_of_the_allowed_actions(space: spaces.Space, mask: list[int], expected: float) -> None:
    assert MaskLayout(space).largest_entropy(np.array([mask], bool)) == pytest.approx(expected)
