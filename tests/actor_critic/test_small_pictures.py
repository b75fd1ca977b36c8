"""Pictures that SB3's convolutions cannot read are learned from like large ones."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import A2C
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecTransposeImage

from sb3_reinforce import REINFORCE, MaskableREINFORCE
from sb3_reinforce.extractors import SmallCNN
from tests.helpers.environments import vec

HEIGHT, WIDTH, CHANNELS = 5, 7, 2


class Lamp(gym.Env[np.ndarray, Any]):
    """A lamp is on in the left or in the right half of a small picture: say where."""

    action_space = spaces.Discrete(2)

    def __init__(self, dtype: Any = np.bool_) -> None:
        self.on = 255 if dtype is np.uint8 else 1
        self.observation_space = spaces.Box(0, self.on, (HEIGHT, WIDTH, CHANNELS), dtype)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.t = 0
        return self._observe(), {}

    def _observe(self) -> np.ndarray:
        self.side = int(self.np_random.integers(2))
        picture = np.zeros(self.observation_space.shape, self.observation_space.dtype)  # type: ignore[arg-type]
        picture[self.np_random.integers(HEIGHT), self.np_random.integers(3) + 4 * self.side, 1] = self.on
        return picture

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward, self.t = float(action == self.side), self.t + 1
        return self._observe(), reward, self.t == 8, False, {}

    def action_masks(self) -> np.ndarray:
        return np.ones(2, bool)


def test_where_the_light_is_in_a_small_picture_is_learned(tmp_path: Path) -> None:
    kwargs: dict[str, Any] = {"natural_gradient": False, "learning_rate": 3e-3, "n_critic_updates": 1}
    model = REINFORCE("SmallCnnPolicy", Lamp(), n_steps=128, seed=0, device="cpu", **kwargs).learn(6_000)
    assert evaluate_policy(model, vec(Lamp()), 20)[0] > 7
    model.save(tmp_path / "lamp")
    loaded = REINFORCE.load(tmp_path / "lamp", device="cpu")
    obs = Lamp().reset(seed=3)[0]
    assert loaded.predict(obs, deterministic=True)[0] == model.predict(obs, deterministic=True)[0]


def test_all_types_of_the_same_picture_have_the_same_features() -> None:
    def features(dtype: Any) -> th.Tensor:
        th.manual_seed(0)
        env = vec(Lamp(dtype))
        if dtype is np.uint8:
            env = VecTransposeImage(env)
        env.seed(1)
        policy = A2C("MlpPolicy", env, policy_kwargs={"features_extractor_class": SmallCNN}, device="cpu").policy
        return policy.extract_features(policy.obs_to_tensor(env.reset())[0])  # type: ignore[return-value]

    expected = features(np.bool_)
    assert expected.shape == (1, 128) and expected.abs().max() > 0
    for dtype in (np.uint8, np.float32):
        assert th.equal(features(dtype), expected)


def test_other_algorithms_read_small_pictures_too() -> None:
    kwargs = {"features_extractor_class": SmallCNN, "features_extractor_kwargs": {"features_dim": 32, "n_filters": 4}}
    A2C("MlpPolicy", Lamp(), policy_kwargs=kwargs, device="cpu").learn(20)
    model = MaskableREINFORCE("MlpPolicy", Lamp(), n_steps=16, policy_kwargs=kwargs, device="cpu").learn(32)
    assert model.policy.features_extractor.layers[0].weight.shape == (4, CHANNELS, 3, 3)


@pytest.mark.parametrize(
    ("space", "kwargs", "message"),
    [
        (spaces.Discrete(3), {}, r"`SmallCNN` reads pictures, .* got Discrete\(3\)"),
        (spaces.Box(0, 1, (4,)), {}, "`SmallCNN` reads pictures"),
        (spaces.Box(0, 1, (2, 9, 3)), {}, "at least 3 x 3 pixels, got 2 x 9 with the channels last"),
        (spaces.Box(0, 1, (4, 9, 2)), {"channels_first": True}, "got 9 x 2 with the channels first"),
    ],
)
def test_what_is_no_small_picture_is_named(space: spaces.Space, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SmallCNN(space, **kwargs)
