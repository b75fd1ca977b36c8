"""The configurations for RL Zoo, and what its hyperparameter search draws."""

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

import gymnasium as gym
import pytest
from stable_baselines3.common.env_util import make_vec_env

from sb3_reinforce import REINFORCE
from tests.helpers import ROOT

pytestmark = pytest.mark.skipif(find_spec("rl_zoo3") is None, reason="RL Zoo (rl_zoo3) is not installed")

CONFIG = ROOT / "zoo_configs" / "reinforce.yml"
ENVIRONMENTS = """
CartPole-v1 Acrobot-v1 MountainCar-v0 MountainCarContinuous-v0 Pendulum-v1 LunarLander-v3 LunarLanderContinuous-v3
BipedalWalker-v3 HalfCheetah-v5 Hopper-v5 Walker2d-v5 Ant-v5 Swimmer-v5 Reacher-v5 Pusher-v5 InvertedPendulum-v5
InvertedDoublePendulum-v5 Humanoid-v5
PongNoFrameskip-v4 MinAtar/Asterix-v1 MinAtar/Breakout-v1 MinAtar/Freeway-v1 MinAtar/Seaquest-v1 MinAtar/SpaceInvaders-v1
""".split()


def entries() -> dict[str, dict[str, Any]]:
    import yaml

    return yaml.safe_load(CONFIG.read_text())


def test_entries() -> None:
    assert set(entries()) == {"default", "atari", "minatar", "mujoco", *ENVIRONMENTS}
    for name, entry in entries().items():
        assert {"n_timesteps", "policy"} <= set(entry), name
        if entry.get("normalize"):
            assert "gamma" in entry, f"{name}: RL Zoo scales rewards with the gamma of the entry"
    for line in CONFIG.read_text().splitlines():
        if line.startswith("# Tuned"):
            assert re.fullmatch(r"# Tuned: -?[\d.]+ \+- [\d.]+ \(\d+ seeds, [\de.]+ steps\)", line), line


@pytest.fixture(scope="module")
def constructed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What became of each entry in RL Zoo's own hands; all in one process, which is not this one: RL Zoo patches Gymnasium."""
    code = """
import json, sys
import gymnasium as gym
import sb3_reinforce.zoo
sb3_reinforce.zoo.register()
from rl_zoo3.exp_manager import ExperimentManager
from tests.helpers import ROOT
results = {}
for name in sys.argv[1:]:
    manager = ExperimentManager(None, "reinforce", name, "logs", eval_freq=-1, verbose=0)
    manager._save_config = lambda hyperparams: None
    try:
        model, _ = manager.setup_experiment()
        model.env.close()
        results[name] = type(model).__name__
    except (gym.error.DependencyNotInstalled, ImportError, gym.error.NameNotFound) as error:
        results[name] = f"{type(error).__name__}: {error}"
print(json.dumps(results))
"""
    names = ENVIRONMENTS + (["ALE/Breakout-v5"] if find_spec("ale_py") is not None else [])
    folder = tmp_path_factory.mktemp("entries")
    output = subprocess.run([sys.executable, "-c", code, *names], cwd=folder, capture_output=True, text=True, timeout=300)
    assert output.returncode == 0, output.stderr
    return json.loads(output.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", ["ALE/Breakout-v5", *ENVIRONMENTS])
def test_entry_constructs(name: str, constructed: dict[str, str]) -> None:
    result = constructed.get(name, "ale_py is not installed")
    if result != "REINFORCE":
        pytest.skip(result)


def random_trials(n_trials: int, n_actions: int, n_envs: int) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """What was drawn, as the arguments that the search uses and as the study stores it."""
    import optuna

    from sb3_reinforce.zoo.search import sample_reinforce_params

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    drawn = []
    for _ in range(n_trials):
        trial = study.ask()
        drawn.append((sample_reinforce_params(trial, n_actions, n_envs, {}), trial.params))
        study.tell(trial, 0.0)
    return drawn


@pytest.mark.parametrize("n_envs", [1, 3, 16, 200])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_search_draws_what_the_constructor_takes(env_id: str, n_envs: int) -> None:
    from sb3_reinforce.zoo.search import convert_reinforce_params

    env = make_vec_env(env_id, n_envs=n_envs)
    space = env.action_space
    entry = {
        "n_steps": 1,
        "n_episodes": 1,
        "horizon": 5,
        "average_over": "episodes",
        "use_sde": isinstance(space, gym.spaces.Box),
    }
    fixed = {"complete_episodes": False, "gae_lambda": 0.5, "baseline": "value", "reward_to_go": True, "n_steps": 1}
    seen: dict[str, set[str]] = {}
    for hyperparams, params in random_trials(60, 0 if env_id == "CartPole-v1" else 1, n_envs):
        assert convert_reinforce_params(params) == hyperparams
        assert (hyperparams["n_episodes"] is None) == (params["batch_unit"] == "steps")
        takes_lambda = params["baseline"] == "value" and params["reward_to_go"]
        assert hyperparams["gae_lambda"] == (params["gae_lambda"] if takes_lambda else 1.0)
        for start in ({}, entry, fixed):
            REINFORCE("MlpPolicy", env, device="cpu", _init_setup_model=False, **{**start, **hyperparams})
        for name, value in params.items():
            seen.setdefault(name, set()).add(str(value))
    assert seen["baseline"] == {"value", "leave_one_out", "mean", "none"}
    assert all(len(values) > 1 for values in seen.values())
    env.close()


def test_search_space_is_the_same_in_every_trial() -> None:
    """Otherwise the multivariate sampler would draw at random."""
    assert len({frozenset(params) for _, params in random_trials(40, 1, 4)}) == 1


def test_converter_refuses_other_trials() -> None:
    from sb3_reinforce.zoo.search import convert_reinforce_params

    with pytest.raises(ValueError, match="no 'baseline'"):
        convert_reinforce_params({"learning_rate": 0.1})
