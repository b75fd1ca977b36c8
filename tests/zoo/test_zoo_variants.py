"""RL Zoo's verbs with masks and memory. The environment refuses actions that its mask forbids, whoever plays."""

from importlib.util import find_spec
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.env_checker import check_env

from sb3_reinforce import MaskableREINFORCE
from sb3_reinforce.zoo.masked_environments import InfoMasks, WalledGrid
from tests.helpers import slow
from tests.zoo.test_zoo import zoo

pytestmark = pytest.mark.skipif(find_spec("rl_zoo3") is None, reason="RL Zoo (rl_zoo3) is not installed")

STRICT = """
import gymnasium as gym
import numpy as np
from gymnasium import spaces

class Strict(gym.Env):
    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}

    def __init__(self, render_mode=None):
        self.render_mode = render_mode
        self.observation_space = spaces.Box(0.0, 20.0, (1,), np.float32)
        self.action_space = spaces.Discrete(5)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.timestep = int(self.np_random.integers(10))
        self.end = self.timestep + 8
        return np.array([self.timestep], np.float32), {}

    def step(self, action):
        assert self.action_masks()[action], f"the action {action} is forbidden"
        self.timestep += 1
        return np.array([self.timestep], np.float32), float(action), self.timestep == self.end, False, {}

    def action_masks(self):
        return np.arange(5) % 5 == self.timestep % 5

    def render(self):
        return np.zeros((64, 64, 3), np.uint8)

gym.register("Strict-v0", entry_point=Strict, max_episode_steps=50)
"""
ALGOS = {"reinforce_mask": "MlpPolicy", "reinforce_mask_lstm": "MlpLstmPolicy", "reinforce_lstm": "MlpLstmPolicy"}


@pytest.mark.parametrize("algo", [slow("reinforce_mask"), "reinforce_mask_lstm", slow("reinforce_lstm")])
def test_training_evaluation_playing_and_videos_carry_masks_and_states(algo: str, tmp_path: Path) -> None:
    env = "Strict-v0"
    if algo == "reinforce_lstm":
        env = "CartPoleNoVel-v1"
    (tmp_path / "custom_envs.py").write_text(STRICT)
    common = ["--algo", algo, "--env", env]
    tiny = ["-n", "400", "--eval-freq", "200", "--eval-episodes", "2", "--n-eval-envs", "2"]
    small = ["-params", "n_envs:2", "n_steps:50"]
    if "lstm" in algo:
        small.append("policy_kwargs:dict(lstm_hidden_size=8)")
    trained = zoo("train", *common, *tiny, *small, folder=tmp_path)
    assert "Eval num_timesteps" in trained
    played = zoo("enjoy", *common, "-f", "logs/", "--no-render", "-n", "300", folder=tmp_path)
    assert "Mean reward" in played and "without masks" not in played
    recorded = zoo("record_video", *common, "-f", "logs/", "-n", "20", folder=tmp_path)
    assert "without masks" not in recorded
    assert list((tmp_path / f"logs/{algo}/{env}_1/videos").glob("*.mp4"))


@pytest.mark.parametrize("algo", ["reinforce_mask", slow("reinforce_lstm")])
def test_a_search_draws_evaluates_and_can_be_trained_from(algo: str, tmp_path: Path) -> None:
    (tmp_path / "custom_envs.py").write_text(STRICT)
    common = ["--algo", algo, "--env", "Strict-v0"]
    if algo == "reinforce_lstm":
        common = ["--algo", algo, "--env", "CartPoleNoVel-v1"]
    study = ["--storage", "study.log", "--study-name", "one"]
    search = ["-n", "300", "-optimize", "--n-trials", "2", "--n-evaluations", "2", "--eval-episodes", "1", "--no-optim-plots"]
    zoo("train", *common, *search, *study, folder=tmp_path)
    output = zoo("train", *common, "-n", "300", "--eval-freq", "-1", *study, "--trial-id", "best", folder=tmp_path)
    assert "Loading from Optuna study..." in output
    (config,) = (tmp_path / f"logs/{algo}").glob("*/*/config.yml")
    assert ("lstm_hidden_size" in config.read_text()) is (algo == "reinforce_lstm")


def test_a_misspelled_argument_of_a_variant_is_named(tmp_path: Path) -> None:
    common = ["--algo", "reinforce_lstm", "--env", "CartPoleNoVel-v1", "-n", "100"]
    output = zoo("train", *common, "-params", "max_sequence_lenght:3", folder=tmp_path, status=1)
    assert "max_sequence_lenght" in output and "max_sequence_length" in output


def test_the_entry_of_an_environment_that_is_registered_here_trains(tmp_path: Path) -> None:
    zoo("train", "--algo", "reinforce_mask", "--env", "InvalidActions-v0", "-n", "2000", "-f", "logs/", folder=tmp_path)
    model = MaskableREINFORCE.load(next(tmp_path.glob("logs/reinforce_mask/InvalidActions-v0_1/InvalidActions-v0.zip")))
    assert (model.gamma, model.action_space.n) == (0.0, 80)


@pytest.mark.parametrize("new_walls", [False, True])
def test_the_walls_of_the_grid_are_its_masks(new_walls: bool) -> None:
    env = WalledGrid(new_walls)
    check_env(env)
    env.reset(seed=0)
    first = env._free.copy()
    env.reset(seed=1)
    assert (env._free != first).any() == new_walls
    for seed in range(20):
        env.reset(seed=seed)
        assert env._goal_is_reachable()
        for _ in range(100):
            masks, before = env.action_masks(), env._position
            action = int(env.np_random.integers(4))
            _, _, terminated, _, _ = env.step(action)
            assert (env._position != before) == masks[action]
            if terminated:
                break


def test_masks_of_infos_are_those_of_the_present_state() -> None:
    name = next(name for name in ("Taxi-v3", "Taxi-v4") if name in gym.registry)
    env = InfoMasks(gym.make(name))
    obs, _ = env.reset(seed=0)
    for _ in range(50):
        expected = np.asarray(env.unwrapped.action_mask(obs), bool)  # type: ignore[attr-defined]
        np.testing.assert_array_equal(env.action_masks(), expected)
        obs, _, terminated, truncated, _ = env.step(int(np.flatnonzero(expected)[0]))
        if terminated or truncated:
            break
