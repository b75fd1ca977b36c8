"""The hyperparameters of a run, and the model and environments that are made of them."""

import argparse
import copy
import inspect
import json
import re
import tempfile
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium as gym
import yaml
from gymnasium.envs.registration import WrapperSpec

from benchmarks.learning.plan import ATARI, DELAYED, MONTE_CARLO, OURS, Run

#: What runs of version 0.1 were made with whose entries do not say so: the constructor's defaults at that time
FORMER_DEFAULTS = {
    "learning_rate": "lin_1.0e-2_1.0e-4",
    "n_steps": 512,
    "batch_size": 256,
    "ent_coef": 0.0,
    "normalize_returns": False,
    "natural_gradient": False,
}


class DelayedReward(gym.Wrapper):
    """
    Nothing during the episode, and the sum of its rewards in its last step.

    :param env: The environment, its time limit included
    """

    def __init__(self, env: gym.Env):
        super().__init__(env)
        self.total = 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.total = 0.0
        return self.env.reset(seed=seed, options=options)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        self.total += float(reward)
        return observation, self.total if terminated or truncated else 0.0, terminated, truncated, info


def register_env(env_id: str) -> None:
    """
    :param env_id: An environment. Where its name says so, it becomes the one that it is derived from with delayed rewards
    """
    from sb3_reinforce.zoo.minatar import register_games

    register_games()
    if env_id in ATARI and find_spec("ale_py") is not None:
        gym.register_envs(import_module("ale_py"))
    if not env_id.startswith(DELAYED) or env_id in gym.registry:
        return
    spec = copy.deepcopy(gym.spec(env_id.removeprefix(DELAYED)))
    gym.register(
        env_id,
        entry_point=spec.entry_point,
        max_episode_steps=spec.max_episode_steps,
        # Around the time limit, as the last step has to be known
        additional_wrappers=(WrapperSpec(DelayedReward.__name__, f"{__name__}:{DelayedReward.__name__}", {}),),
        kwargs=spec.kwargs,
    )


def zoo_algo(algo: str) -> str:
    """
    :param algo: An algorithm or a variant of it
    :return: Its name in RL Zoo
    """
    return algo.partition("_")[0]


def read_yaml(path: Path) -> dict[str, Any]:
    """
    :param path: A file
    :return: What it holds; nothing if it does not exist
    """
    return (yaml.safe_load(path.read_text()) or {}) if path.exists() else {}


def config_file(algo: str) -> Path:
    """
    :param algo: The name of an algorithm in RL Zoo
    :return: The file with its entries
    """
    if algo == OURS:
        from sb3_reinforce.zoo import default_config

        return default_config()
    zoo = find_spec("rl_zoo3")
    if zoo is None or not zoo.submodule_search_locations:
        raise ImportError('RL Zoo is not installed, please run `pip install "sb3-reinforce[benchmark]"`.')
    return Path(zoo.submodule_search_locations[0]) / "hyperparams" / f"{algo}.yml"


def matching_entry(entries: dict[str, Any], env_id: str) -> str | None:
    """
    :param entries: The entries of an algorithm
    :param env_id: An environment
    :return: Which entry is for it: its own, else the one of its nearest older version, if any
    """
    name, number = env_id.rsplit("-v", 1)
    versions = [int(match[1]) for key in entries if (match := re.fullmatch(rf"{re.escape(name)}-v(\d+)", key))]
    older = [candidate for candidate in versions if candidate <= int(number)]
    return f"{name}-v{max(older)}" if older else None


def find_entry(algo: str, env_id: str) -> tuple[str, dict[str, Any]]:
    """
    :param algo: An algorithm or a variant of it
    :param env_id: An environment
    :return: Where its hyperparameters are from, and those, in RL Zoo's form
    """
    plain = env_id.removeprefix(DELAYED)
    others = Path(__file__).with_name("learning_others.yml")
    own = read_yaml(others).get(algo, {})
    path = others if plain in own else config_file(zoo_algo(algo))
    entries = own if plain in own else read_yaml(path)
    key = matching_entry(entries, plain)
    if key is None:
        source, entry = "SB3's defaults with VecNormalize", {"policy": "MlpPolicy", "n_timesteps": 0, "normalize": True}
    else:
        source, entry = f"{path.name}: {key}", dict(entries[key])
    if algo == MONTE_CARLO:
        overrides = read_yaml(Path(__file__).with_name("learning_mc.yml"))
        own = {**overrides.get(plain, {}), **overrides.get(env_id, {})}
        entry = {**entry, "complete_episodes": True, **own, "gae_lambda": 1.0}
        source += ", with overrides of learning_mc.yml" if own else ", with gae_lambda 1"
    if env_id != plain:
        entry.pop("horizon", None)  # the reward comes after it
        source, entry["gamma"] = f"{source}; discount 1", 1.0
    return source, entry


def is_of_today(entry: dict[str, Any], algo: str, env_id: str, version: str | None = None) -> bool:
    """
    :param entry: The hyperparameters of a run, as its file has them
    :param algo: An algorithm or a variant of it
    :param env_id: An environment
    :param version: The version of this package that it was made with
    :return: Whether it would have the same hyperparameters today
    """
    today = json.loads(json.dumps(find_entry(algo, env_id)[1], default=str))
    if zoo_algo(algo) != OURS:
        return entry == today
    from sb3_reinforce import REINFORCE

    defaults = {name: parameter.default for name, parameter in inspect.signature(REINFORCE).parameters.items()}
    at_that_time = {**defaults, **FORMER_DEFAULTS} if (version or "0.1").startswith("0.1") else defaults
    then, now = ({**former, **given} for former, given in ((at_that_time, entry), (defaults, today)))
    ignored = {"n_timesteps"} | ({"n_steps"} if now["n_episodes"] is not None else set())
    return {name: then.get(name) for name in then.keys() - ignored} == {name: now.get(name) for name in now.keys() - ignored}


def build(run: Run) -> tuple[Any, Any]:
    """
    :param run: What to run
    :return: The model and RL Zoo's ``ExperimentManager``, which makes the environments
    """
    from rl_zoo3 import import_envs  # noqa: F401
    from rl_zoo3.exp_manager import ExperimentManager
    from rl_zoo3.utils import ALGOS as CLASSES

    algo = zoo_algo(run.algo)
    if algo == OURS:
        from sb3_reinforce.zoo import register

        register()
    register_env(run.env_id)
    _, entry = find_entry(run.algo, run.env_id)
    # VecNormalize scales rewards with the discount factor of the entry. Where that has none, it is the algorithm's default
    entry.setdefault("gamma", inspect.signature(CLASSES[algo]).parameters["gamma"].default)
    with tempfile.TemporaryDirectory() as nowhere:
        manager = ExperimentManager(
            argparse.Namespace(), algo, run.env_id, nowhere, n_timesteps=run.budget, eval_freq=-1, seed=run.seed, verbose=0
        )
    # Its own `setup_experiment` does the same, and keeps folders besides
    kwargs, manager.env_wrapper, manager.callbacks, manager.vec_env_wrapper = manager._preprocess_hyperparams(entry)
    env = manager.create_envs(manager.n_envs, no_log=True)
    return CLASSES[algo](env=env, seed=run.seed, device="cpu", verbose=0, **kwargs), manager
