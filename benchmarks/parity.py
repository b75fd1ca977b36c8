"""
Whether two versions of the package learn the same: the same seeds, the same weights, bit for bit.

    python benchmarks/parity.py OTHER_CHECKOUT [--only NAME ...]

runs every configuration once with the package of this checkout and once with that of the other, each in a process of its own,
and names those whose weights (or measurements) differ. For changes of the structure, which must not change what is learned.
"""

import argparse
import os
import pickle
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces

CONFIGURATIONS: dict[str, Callable[[], Any]] = {}


def configuration(function: Callable[[], Any]) -> Callable[[], Any]:
    """
    :param function: Trains a model and returns arrays
    :return: The same, kept under its name
    """
    CONFIGURATIONS[function.__name__] = function
    return function


class Random(gym.Env):
    """Random observations and rewards, episodes of random lengths, some of them truncated."""

    def __init__(self, observation_space: spaces.Space, action_space: spaces.Space):
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.left = int(self.np_random.integers(2, 12))
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        truncated = bool(self.np_random.integers(2))
        done = self.left == 0
        return self.observation_space.sample(), float(self.np_random.normal()), done and not truncated, done and truncated, {}


IMAGE = spaces.Box(0, 255, (3, 36, 36), np.uint8)
VECTORS = spaces.Dict({"a": spaces.Box(-1, 1, (2,), np.float32), "b": spaces.Discrete(4)})
MIXED = spaces.Dict({"image": IMAGE, "vector": spaces.Box(-1, 1, (3,), np.float32)})
BOX = spaces.Box(-1, 1, (3,), np.float32)
CONTINUOUS = spaces.Box(-1, 1, (2,), np.float32)
DISCRETE = spaces.Discrete(3)


def weights_of(model: Any) -> np.ndarray:
    """
    :param model: A model
    :return: All its weights
    """
    return th.cat([p.detach().flatten() for p in model.policy.state_dict().values()]).numpy()


def make(policy: Any = "MlpPolicy", env: Any = "CartPole-v1", n_envs: int = 1, **arguments: Any) -> Any:
    """
    :param policy: Argument of REINFORCE
    :param env: Name of an environment, or observation and action space of a random one
    :param n_envs: Number of environments
    :param arguments: Further arguments
    :return: A model
    """
    from stable_baselines3.common.env_util import make_vec_env

    from sb3_reinforce import REINFORCE

    factory = env if isinstance(env, str) else lambda: Random(*env)
    vec_env = make_vec_env(factory, n_envs=n_envs, seed=3)
    # Those that have no defaults that any two checkouts share
    plain = {
        "natural_gradient": False,
        "normalize_returns": False,
        "ent_coef": 0.0,
        "learning_rate": 3.5e-3,
        "batch_size": 256,
    }
    return REINFORCE(policy, vec_env, **{"seed": 0, "device": "cpu", "n_steps": 64, **plain, **arguments})


def trained(n_timesteps: int = 400, callback: Any = None, **arguments: Any) -> np.ndarray:
    """
    :param n_timesteps: Budget
    :param callback: Argument of ``learn``
    :param arguments: See :func:`make`
    :return: The weights after learning
    """
    return weights_of(make(**arguments).learn(n_timesteps, callback=callback))


def half_of_mean(returns: np.ndarray, timesteps: np.ndarray, episode_ids: np.ndarray) -> np.ndarray:
    """A user's own baseline."""
    return np.full(len(returns), 0.5 * returns.mean())


def _add_arguments_alone() -> None:
    variants: dict[str, dict[str, Any]] = {}
    for name in (None, "mean", "leave_one_out", "linear", "value", half_of_mean):
        label = getattr(name, "__name__", name) or "none"
        for env_name, env in (("cartpole", {}), ("continuous", {"env": (BOX, CONTINUOUS), "n_envs": 3})):
            variants[f"baseline_{label}_{env_name}"] = {"baseline": name, **env}
            variants[f"baseline_{label}_{env_name}_whole"] = {"baseline": name, "reward_to_go": False, **env}
            variants[f"baseline_{label}_{env_name}_episodes"] = {"baseline": name, "n_episodes": 3, **env}
            variants[f"baseline_{label}_{env_name}_natural"] = {"baseline": name, "natural_gradient": True, **env}
    for name, arguments in {
        "horizon": {"horizon": 15, "n_envs": 2, "baseline": "leave_one_out", "n_episodes": 2},
        "average_over_episodes": {"average_over": "episodes", "n_episodes": 4},
        "discounted": {"discount_state_distribution": True, "normalize_advantage": False},
        "entropy": {"ent_coef": 0.01, "gamma": 0.9},
        "gae": {"gae_lambda": 0.9},
        "gae_eight": {"gae_lambda": 0.9, "n_envs": 8},
        "fixed": {"complete_episodes": False, "n_envs": 2},
        "fixed_gae": {"complete_episodes": False, "gae_lambda": 0.95},
        "no_bootstrap": {"bootstrap_on_truncation": False, "env": (BOX, DISCRETE)},
        "joint_alone": {"n_critic_updates": 0},
        "critic_alone": {"vf_coef": 0.0},
        "critic_rate": {"critic_learning_rate": 1e-3, "learning_rate": lambda progress: 1e-2 * progress},
        "relu_sgd": {"policy_kwargs": {"activation_fn": th.nn.ReLU, "optimizer_class": th.optim.SGD}},
        "adamw": {"policy_kwargs": {"optimizer_class": th.optim.AdamW, "optimizer_kwargs": {"weight_decay": 0.01}}},
        "two_extractors": {"policy_kwargs": {"share_features_extractor": False}},
        "two_extractors_natural": {"policy_kwargs": {"share_features_extractor": False}, "natural_gradient": True},
        "natural_sub_sampled": {"natural_gradient": True, "sub_sampling_factor": 3},
        "natural_pendulum": {"env": "Pendulum-v1", "natural_gradient": True, "n_timesteps": 600},
        "natural_gae": {"natural_gradient": True, "gae_lambda": 0.9, "target_kl": lambda progress: 0.02 * progress + 0.001},
        "natural_fixed": {"natural_gradient": True, "complete_episodes": False, "ent_coef": 0.01},
        "gsde": {"env": "Pendulum-v1", "use_sde": True},
        "gsde_often": {"env": (BOX, CONTINUOUS), "n_envs": 2, "use_sde": True, "sde_sample_freq": 4},
        "gsde_squashed": {"env": "Pendulum-v1", "use_sde": True, "policy_kwargs": {"squash_output": True}},
        "gsde_natural": {"env": "Pendulum-v1", "use_sde": True, "natural_gradient": True},
        "multi_discrete": {"env": (BOX, spaces.MultiDiscrete([2, 3])), "n_envs": 2},
        "multi_binary": {"env": (BOX, spaces.MultiBinary(3)), "natural_gradient": True},
        "discrete_observations": {"env": (spaces.Discrete(5), DISCRETE), "n_envs": 2},
        "dictionary": {"policy": "MultiInputPolicy", "env": (VECTORS, DISCRETE), "n_envs": 2},
        "dictionary_linear": {"policy": "MultiInputPolicy", "env": (VECTORS, DISCRETE), "baseline": "linear"},
        "dictionary_with_image": {"policy": "MultiInputPolicy", "env": (MIXED, CONTINUOUS), "n_timesteps": 150},
        "image": {"policy": "CnnPolicy", "env": (IMAGE, DISCRETE), "n_timesteps": 150},
        "image_natural": {"policy": "CnnPolicy", "env": (IMAGE, DISCRETE), "n_timesteps": 150, "natural_gradient": True},
    }.items():
        variants[name] = arguments
    for name, arguments in variants.items():
        CONFIGURATIONS[name] = lambda arguments=arguments: trained(**arguments)  # type: ignore[misc]


_add_arguments_alone()


def own_policy() -> type:
    """
    :return: A policy with a method of its own, and dropout
    """
    from stable_baselines3.common.policies import ActorCriticPolicy

    class Own(ActorCriticPolicy):
        def _build(self, lr_schedule: Any) -> None:
            super()._build(lr_schedule)
            self.mlp_extractor.policy_net.append(th.nn.Dropout(0.1))

        def forward(self, obs: Any, deterministic: bool = False) -> Any:
            return super().forward(obs, deterministic)

    return Own


@configuration
def own() -> np.ndarray:
    return trained(policy=own_policy())


@configuration
def own_without_critic() -> np.ndarray:
    return trained(policy=own_policy(), baseline=None)


@configuration
def own_natural() -> np.ndarray:
    return trained(policy=own_policy(), natural_gradient=True, env=(BOX, CONTINUOUS))


@configuration
def sb3_buffer() -> np.ndarray:
    from stable_baselines3.common.buffers import RolloutBuffer

    return trained(complete_episodes=False, rollout_buffer_class=RolloutBuffer, n_envs=2)


@configuration
def sb3_buffer_over_episodes() -> np.ndarray:
    from stable_baselines3.common.buffers import RolloutBuffer

    return trained(complete_episodes=False, rollout_buffer_class=RolloutBuffer, average_over="episodes", natural_gradient=True)


@configuration
def sb3_dictionary_buffer() -> np.ndarray:
    from stable_baselines3.common.buffers import DictRolloutBuffer

    arguments = {"policy": "MultiInputPolicy", "env": (VECTORS, CONTINUOUS), "n_envs": 2}
    return trained(complete_episodes=False, rollout_buffer_class=DictRolloutBuffer, **arguments)


@configuration
def own_buffer() -> np.ndarray:
    from sb3_reinforce.buffers import EpisodeRolloutBuffer

    class Clipped(EpisodeRolloutBuffer):
        def add(self, obs: Any, action: Any, reward: Any, *args: Any, **kwargs: Any) -> None:
            super().add(obs, action, np.clip(reward, -0.5, 0.5), *args, **kwargs)

    return trained(rollout_buffer_class=Clipped, env=(BOX, DISCRETE), n_envs=2)


@configuration
def monitored() -> np.ndarray:
    return _monitored({})


@configuration
def monitored_without_critic() -> np.ndarray:
    return _monitored({"baseline": "mean", "average_over": "episodes", "n_episodes": 5, "env": (BOX, CONTINUOUS)})


@configuration
def monitored_sb3_buffer() -> np.ndarray:
    from stable_baselines3.common.buffers import RolloutBuffer

    return _monitored({"complete_episodes": False, "rollout_buffer_class": RolloutBuffer, "n_envs": 2})


def _monitored(arguments: dict[str, Any]) -> np.ndarray:
    from sb3_reinforce import GradientMonitor

    monitor = GradientMonitor(1, compare_baselines=True)
    weights = trained(callback=monitor, **arguments)
    return np.concatenate([weights, *[list(record.values()) for record in monitor._records]])


@configuration
def normalized() -> np.ndarray:
    from stable_baselines3.common.vec_env import VecNormalize

    model = make(env="Pendulum-v1", n_envs=2)
    model.set_env(VecNormalize(model.env))
    return weights_of(model.learn(900))


@configuration
def resumed() -> np.ndarray:
    model = make(n_envs=2).learn(300)
    model.natural_gradient, model.gamma = True, 0.95
    return weights_of(model.learn(300, reset_num_timesteps=False))


@configuration
def saved_and_loaded() -> np.ndarray:
    from sb3_reinforce import REINFORCE

    with tempfile.TemporaryDirectory() as folder:
        model = make(env=(BOX, CONTINUOUS), natural_gradient=True).learn(200)
        model.save(f"{folder}/model")
        loaded = REINFORCE.load(f"{folder}/model", env=model.env)
    loaded.set_random_seed(5)
    return weights_of(loaded.learn(200, reset_num_timesteps=False))


@configuration
def copied() -> np.ndarray:
    model = pickle.loads(pickle.dumps(make(env=(BOX, DISCRETE)).learn(100)))
    return weights_of(model.learn(200, reset_num_timesteps=False))


@configuration
def replaced_policy_and_optimizer() -> np.ndarray:
    model = make().learn(100)
    model.policy.optimizer = th.optim.RMSprop(model.policy.parameters(), lr=1e-3)
    return weights_of(model.learn(200, reset_num_timesteps=False))


@configuration
def stopped_by_callback() -> np.ndarray:
    model = make(n_envs=2)
    model.learn(1000, callback=lambda locals_, _: locals_["self"].num_timesteps < 330)
    return weights_of(model.learn(200, reset_num_timesteps=False))


@configuration
def rewards_of_a_callback() -> np.ndarray:
    from stable_baselines3.common.callbacks import BaseCallback

    class Bonus(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            buffer = self.model.rollout_buffer
            buffer.rewards = buffer.rewards + 0.1 * np.arange(len(buffer.rewards), dtype=np.float32) % 1
            buffer.compute_returns_and_advantage(last_values=self.locals["values"], dones=self.locals["dones"])

    return np.concatenate([trained(callback=Bonus()), trained(callback=Bonus(), baseline="leave_one_out", n_envs=2)])


@configuration
def two_workers() -> np.ndarray:
    return _of_workers("value")


@configuration
def two_workers_natural() -> np.ndarray:
    return _of_workers("natural")


@configuration
def two_workers_of_others() -> np.ndarray:
    return _of_workers("leave_one_out")


def _of_workers(kind: str) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
        subprocess.run(
            [*command, __file__, "--work", sys.argv[2], f"{folder}/weights", "--worker", kind],
            check=True,
            capture_output=True,
        )
        return np.concatenate([np.load(f"{folder}/weights.{rank}.npy") for rank in range(2)])


def work_together(file: str, kind: str) -> None:
    """
    What each of two workers does.

    :param file: Where to leave the weights
    :param kind: Which arguments
    """
    arguments: dict[str, Any] = {
        "value": {"env": (BOX, CONTINUOUS), "n_envs": 2, "ent_coef": 0.01},
        "natural": {"natural_gradient": True, "baseline": "linear"},
        "leave_one_out": {"baseline": "leave_one_out", "average_over": "episodes", "n_episodes": 3},
    }[kind]
    weights = trained(**arguments)
    np.save(f"{file}.{os.environ['RANK']}.npy", weights)


def work(checkout: str, file: str, names: list[str]) -> None:
    """
    Run configurations with the package of a checkout.

    :param checkout: The folder
    :param file: Where to leave the results
    :param names: Which configurations
    """
    import sb3_reinforce

    assert sb3_reinforce.__file__.startswith(str(Path(checkout).resolve())), sb3_reinforce.__file__
    results = {}
    for name in names:
        try:
            results[name] = CONFIGURATIONS[name]()
        except Exception as error:
            results[name] = f"{type(error).__name__}: {error}"
    Path(file).write_bytes(pickle.dumps(results))


def main() -> None:
    """Compare this checkout with another."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("other", nargs="?", help="folder of the other checkout")
    parser.add_argument("--only", nargs="*", default=[], help="parts of the names of the configurations to run")
    parser.add_argument("--keep", help="file for the other checkout's results, which are read from it if it exists")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    names = [name for name in CONFIGURATIONS if not args.only or any(part in name for part in args.only)]
    warnings.simplefilter("ignore")
    th.set_num_threads(1)
    if args.work:
        sys.path.insert(0, args.work[0])
        return work_together(args.work[1], args.worker) if args.worker else work(*args.work, names)
    with tempfile.TemporaryDirectory() as folder:
        kept = Path(args.keep) if args.keep else Path(folder, "other")
        files = {str(Path(__file__).resolve().parents[1]): Path(folder, "this"), args.other: kept}
        processes = [
            subprocess.Popen([sys.executable, __file__, "--work", checkout, str(file), "--only", *args.only])
            for checkout, file in files.items()
            if not file.exists()
        ]
        if any(process.wait() for process in processes):
            sys.exit("A process failed.")
        ours, theirs = (pickle.loads(file.read_bytes()) for file in files.values())
    different = [name for name in ours if not same(ours[name], theirs.get(name))]
    for name in different:
        print(f"{name}: {describe(ours[name], theirs.get(name))}")
    print(f"{len(ours) - len(different)} of {len(ours)} configurations end with the same weights, bit for bit.")
    sys.exit(bool(different))


def same(a: Any, b: Any) -> bool:
    """
    :param a: A result
    :param b: Another
    :return: Whether they are the same arrays
    """
    return isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and np.array_equal(a, b, equal_nan=True)


def describe(a: Any, b: Any) -> str:
    """
    :param a: A result
    :param b: Another
    :return: How they differ
    """
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.shape == b.shape:
        return f"largest difference {np.nanmax(np.abs(a - b)):.3g}"
    return f"{a if isinstance(a, str) else np.shape(a)} here, {b if isinstance(b, str) else np.shape(b)} there"


if __name__ == "__main__":
    main()
