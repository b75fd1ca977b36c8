"""
What the workers of ``test_distributed.py`` run, started by torchrun: ``python -m tests.distributed.job SCENARIO FOLDER``.
A user's script with the peculiarity that each worker writes down what it has in the end.
"""

import json
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecEnvWrapper, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from sb3_reinforce import REINFORCE, RecurrentREINFORCE
from sb3_reinforce.actor_critic.actor_critic import SeparableActorCritic
from sb3_reinforce.actor_critic.sampler import Observation, PolicySampler, Sample, Timestep
from sb3_reinforce.monte_carlo.baselines import Mean
from sb3_reinforce.recurrent.actor_critic import SeparableRecurrentActorCritic
from sb3_reinforce.update.policy_step import OptimizerStep

th.set_num_threads(1)


class Uneven(gym.Env):
    """Episodes of lengths, observations and rewards that follow from the number of the environment and of the episode."""

    def __init__(self, env_id: int, action_space: spaces.Space):
        self.env_id = env_id
        self.action_space = action_space
        self.observation_space = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.n_resets = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.rng = np.random.default_rng((self.env_id, self.n_resets))
        self.n_resets += 1
        self.left = int(self.rng.integers(1, 9 + 3 * self.env_id))
        self.is_truncated = bool(self.rng.integers(2))
        return self._observe(), {}

    def _observe(self) -> np.ndarray:
        return self.rng.normal(self.env_id, size=3).astype(np.float32)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        reward = float(self.rng.normal(self.env_id) + np.sum(action))
        return self._observe(), reward, self.left == 0 and not self.is_truncated, self.left == 0 and self.is_truncated, {}


class ActsByObservation(PolicySampler):
    """Actions that follow from the observations, so that it makes no difference which process they are drawn in."""

    evaluates = False

    def sample(self, obs: Observation, timestep: Timestep) -> Sample:
        assert isinstance(obs, np.ndarray)
        space = self.policy.action_space
        numbers = np.abs(obs[:, 0] * 1e4).astype(int)
        if isinstance(space, spaces.Discrete):
            return numbers % space.n, None, None
        return np.sin(np.outer(numbers, 1 + np.arange(space.shape[0]))).astype(np.float32), None, None


class RepeatableActorCritic(SeparableActorCritic):
    """Acts by the observations alone."""

    def sampler(self, env: Any, rng: np.random.Generator) -> PolicySampler:
        return ActsByObservation(self.policy)


class Repeatable(REINFORCE):
    """REINFORCE with actions that follow from the observations."""

    @property
    def actor_critic(self) -> RepeatableActorCritic:
        return RepeatableActorCritic(self.policy)


class RepeatableRecurrentActorCritic(SeparableRecurrentActorCritic):
    """Acts by the observations alone."""

    def sampler(self, env: Any, rng: np.random.Generator) -> PolicySampler:
        return ActsByObservation(self.policy)


class RepeatableRecurrent(RecurrentREINFORCE):
    """RecurrentREINFORCE with actions that follow from the observations."""

    @property
    def actor_critic(self) -> RepeatableRecurrentActorCritic:
        return RepeatableRecurrentActorCritic(self.policy, self.max_sequence_length)


def odd_baseline(returns: np.ndarray, timesteps: np.ndarray, episode_ids: np.ndarray) -> np.ndarray:
    return returns.mean() + 0.1 * timesteps - 0.01 * episode_ids


SGD = {"policy_kwargs": {"optimizer_class": th.optim.SGD}, "learning_rate": 0.5, "n_critic_updates": 0}
NATURAL = {"natural_gradient": True, "n_critic_updates": 0, "cg_max_steps": 100, "target_kl": 0.1}
#: Everything of which one process with all environments must make the same update
UPDATES: dict[str, dict[str, Any]] = {
    "default": {"n_critic_updates": 3, "batch_size": 100_000},
    # Whose gradients are fewer numbers than the data, and are sent
    "critic of few parameters": {
        "policy_kwargs": {"net_arch": {"pi": [8], "vf": [4]}},
        "n_critic_updates": 1,
        "batch_size": 100_000,
    },
    "normalized returns": {"n_critic_updates": 3, "batch_size": 100_000, "normalize_returns": True},
    "normalized returns of a new critic": {**SGD, "normalize_returns": True, "n_critic_updates": 2, "batch_size": 100_000},
    "sgd": SGD,
    "clipped": {**SGD, "max_grad_norm": 0.01},
    "not normalized": {**SGD, "normalize_advantage": False, "max_grad_norm": 100.0, "ent_coef": 0.1},
    "episodes": {**SGD, "average_over": "episodes", "normalize_advantage": False, "max_grad_norm": 100.0},
    "quota of episodes": {**SGD, "n_episodes": 3, "normalize_advantage": False, "baseline": "leave_one_out"},
    "discounted": {**SGD, "discount_state_distribution": True},
    "gae": {**SGD, "gae_lambda": 0.9, "vf_coef": 2.0},
    "no baseline": {**SGD, "baseline": None, "normalize_advantage": False, "max_grad_norm": 100.0},
    "mean": {**SGD, "baseline": "mean", "normalize_advantage": False},
    "leave one out": {**SGD, "baseline": "leave_one_out", "normalize_advantage": False},
    "leave one out of wholes": {**SGD, "baseline": "leave_one_out", "reward_to_go": False},
    "linear": {**SGD, "baseline": "linear", "normalize_advantage": False},
    "callable": {**SGD, "baseline": odd_baseline, "normalize_advantage": False},
    "fixed length": {**SGD, "complete_episodes": False},
    "natural": NATURAL,
    "natural, sub-sampled": {**NATURAL, "sub_sampling_factor": 3},
    "natural, of one timestep": {**NATURAL, "sub_sampling_factor": 1000},
    "critic in torch": {
        "policy_kwargs": {"optimizer_class": th.optim.SGD, "activation_fn": th.nn.ELU},
        "learning_rate": 0.1,
        "n_critic_updates": 3,
        "batch_size": 100_000,
    },
}
LSTM = {"lstm_hidden_size": 6, "net_arch": [], "optimizer_class": th.optim.SGD}
UPDATES["recurrent"] = {"policy_kwargs": LSTM, "n_critic_updates": 2, "batch_size": 100_000}
UPDATES["recurrent, in pieces"] = {
    "policy_kwargs": LSTM,
    "n_critic_updates": 1,
    "batch_size": 100_000,
    "max_sequence_length": 3,
}
UPDATES["recurrent, natural"] = {**NATURAL, "policy_kwargs": LSTM, "normalize_advantage": False}
ACTION_SPACES = {"discrete": spaces.Discrete(3), "box": spaces.Box(-1, 1, (2,), np.float32)}


def env_ids(rank: int, size: int) -> list[int]:
    """Worker 0 has one environment, worker 1 two, and so on."""
    first = sum(range(1, rank + 1))
    return list(range(first, first + rank + 1))


def repeatable_model(ids: list[int], name: str, space: str) -> REINFORCE:
    env = DummyVecEnv([lambda i=i: Monitor(Uneven(i, ACTION_SPACES[space])) for i in ids])  # type: ignore[misc]
    kind, policy = (RepeatableRecurrent, "MlpLstmPolicy") if "recurrent" in name else (Repeatable, "MlpPolicy")
    model = kind(policy, env, seed=3, n_steps=20, device="cpu", **{"learning_rate": 0.1, **UPDATES[name]})
    if type(model.policy.optimizer) is th.optim.Adam:
        # A new critic begins at the mean, where Adam would magnify the rounding errors of a gradient of zero
        with th.no_grad():
            model.policy.value_net.weight.fill_(0.5)
    return model


def weights(model: OnPolicyAlgorithm) -> np.ndarray:
    return np.concatenate([tensor.numpy().ravel() for tensor in model.policy.state_dict().values()])


def updates(rank: int, size: int) -> dict[str, Any]:
    result = {}
    for name in UPDATES:
        for space in ACTION_SPACES:
            model = repeatable_model(env_ids(rank, size), name, space).learn(1)
            result[f"{name}, {space}"] = {
                "weights": weights(model),
                "num_timesteps": model.num_timesteps,
                "logged": dict(model.logger.name_to_value),
                "returns": sorted(info["r"] for info in model.ep_info_buffer),
            }
    return result


class Writes(BaseCallback):
    """Remembers the episodes' first observations and where training stood."""

    def __init__(self) -> None:
        super().__init__()
        self.first_observations: list[float] = []
        self.rates: list[float] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        self.first_observations.append(float(self.model.rollout_buffer.observations[0, 0]))  # type: ignore[attr-defined]
        self.rates.append(self.model.lr_schedule(self.model._current_progress_remaining))


def training(rank: int, size: int) -> dict[str, Any]:
    folder = Path(sys.argv[2])
    env = make_vec_env("CartPole-v1", n_envs=rank + 1)
    writes = Writes()
    checkpoints = CheckpointCallback(600, str(folder / "checkpoints"))
    evaluation = EvalCallback(make_vec_env("CartPole-v1"), eval_freq=500, n_eval_episodes=1, log_path=str(folder / "log"))
    only_one = Writes()
    only_one.ranks = (1,)  # type: ignore[attr-defined]
    model = REINFORCE("MlpPolicy", env, seed=7, n_steps=128, tensorboard_log=str(folder / "tensorboard"), device="cpu")
    model.learn(4_000, callback=[writes, only_one, checkpoints, evaluation], progress_bar=True)
    first = weights(model)
    if rank == 0:
        model.save(folder / "rank_0")
    model.save(folder / "model")  # by all of them, as an unchanged script does
    model.learn(2_000, reset_num_timesteps=False)
    return {
        "first": first,
        "weights": weights(model),
        "num_timesteps": model.num_timesteps,
        "n_updates": model._n_updates,
        "first_observations": writes.first_observations,
        "only_one": len(only_one.first_observations),
        "rates": writes.rates,
        "seed": model.seed,
    }


class SavesAt(BaseCallback):
    """Saves the model in the midst of a rollout, on rank 0."""

    ranks = (0,)

    def __init__(self, step: int, path: Path):
        super().__init__()
        self.step, self.path = step, path

    def _on_step(self) -> bool:
        if self.n_calls == self.step:
            self.model.save(self.path)
        return True


def taken_up(rank: int, size: int) -> dict[str, Any]:
    """A run, and the same run taken up from a file that rank 0 has saved in the midst of a rollout, and from its own end."""
    folder, total = Path(sys.argv[2]), 3_000

    def env() -> VecEnv:
        return VecNormalize(make_vec_env("CartPole-v1", n_envs=rank + 1))

    def state(model: REINFORCE) -> dict[str, Any]:
        statistics = model.get_vec_normalize_env()
        assert statistics is not None
        found = {"weights": weights(model), "mean": statistics.obs_rms.mean, "var": statistics.obs_rms.var}  # type: ignore
        return {**found, "num_timesteps": model.num_timesteps, "n_updates": model._n_updates}

    def ended(path: Path) -> dict[str, Any]:
        model = REINFORCE.load(path, env=env(), device="cpu")
        return state(model.learn(total - model.num_timesteps, reset_num_timesteps=False))

    arguments: dict[str, Any] = {"seed": 7, "n_steps": 128, "device": "cpu"}
    whole = REINFORCE("MlpPolicy", env(), **arguments).learn(total, callback=SavesAt(400, folder / "middle"))
    half = REINFORCE("MlpPolicy", env(), **arguments).learn(total // 2)
    if rank == 0:
        half.save(folder / "half")
    half.workers.gather(rank)  # the file is there
    pieces = half.learn(total - half.num_timesteps, reset_num_timesteps=False)
    taken_up = {"middle": ended(folder / "middle"), "half": ended(folder / "half"), "pieces": state(pieces)}
    return {"whole": state(whole), **taken_up}


def mixed(rank: int, size: int) -> dict[str, Any]:
    """Workers of which one has loaded a model or has a seed, and groups whose run is taken up in the first rollout."""
    folder, total = Path(sys.argv[2]), 600
    result = {}

    def cartpoles() -> VecEnv:
        return VecNormalize(make_vec_env("CartPole-v1", n_envs=2))

    def new(**arguments: Any) -> REINFORCE:
        return REINFORCE("MlpPolicy", cartpoles(), **{"seed": 7, "n_steps": 20, "device": "cpu", **arguments})

    result["whole"] = weights(new().learn(total, callback=SavesAt(50, folder / "middle")))
    model = REINFORCE.load(folder / "middle", env=cartpoles(), device="cpu") if rank == 0 else new()
    n_left = total - model.workers.joined(model.device).gather(model.num_timesteps)[0]
    result["rank 0 loads"] = weights(model.learn(n_left, reset_num_timesteps=False))
    for seeded in range(size):
        result[f"seed on rank {seeded} alone"] = weights(new(seed=7 if rank == seeded else None).learn(100))
    groups = {"n_episodes": 1, "group_size": 2, "n_steps": None}
    result["groups"] = weights(new(**groups).learn(total, callback=SavesAt(3, folder / "groups")))
    model = REINFORCE.load(folder / "groups", env=cartpoles(), device="cpu")
    result["groups, taken up"] = weights(model.learn(total - model.num_timesteps, reset_num_timesteps=False))
    return result


def edges(rank: int, size: int) -> dict[str, Any]:
    """Small things, one after the other, to start one job for all of them."""
    result: dict[str, Any] = {}

    # A model that only rank 0 has resumed
    model = REINFORCE("MlpPolicy", make_vec_env("CartPole-v1"), n_steps=64, seed=rank, device="cpu")
    if rank == 0:
        model.policy.load_state_dict({key: value + 0.1 for key, value in model.policy.state_dict().items()})
        model._n_updates = 5
        for parameter in model.policy.parameters():
            parameter.grad = th.ones_like(parameter)
        model.policy.optimizer.step()
    at_start = AtRollouts()
    model.learn(1, callback=at_start)
    moments = [state["exp_avg"].numpy().ravel() for state in model.policy.optimizer.state.values()]
    result["resumed"] = {
        "weights at start": at_start.starts[0],
        "moments": np.concatenate(moments),
        "n_updates": model._n_updates,
        "repairs": model.workers.n_repairs,
        "rate": model.policy.optimizer.param_groups[0]["lr"],
    }

    # More episodes per rollout than the window of the log holds
    env = DummyVecEnv([lambda: Monitor(Constant(rank))])
    REINFORCE("MlpPolicy", env, n_episodes=128, device="cpu").learn(1)
    model = REINFORCE("MlpPolicy", env, n_episodes=128, device="cpu").learn(1)
    result["mean return"] = float(np.mean([info["r"] for info in model.ep_info_buffer]))

    # Only rank 0 has found a reward before
    env = DummyVecEnv([lambda: Constant(0)])
    model = REINFORCE("MlpPolicy", env, n_episodes=2, natural_gradient=True, device="cpu")
    model._reward_found = rank == 0
    model.learn(1)
    result["reward found"] = model._reward_found, weights(model)

    # The same, where the natural step is chosen while the model learns
    model = REINFORCE("MlpPolicy", env, n_episodes=2, natural_gradient=False, device="cpu")
    model._reward_found = rank == 0
    model.learn(1, callback=TurnsNatural())
    result["reward found later"] = model._reward_found, weights(model)

    # Hardly any timesteps, of very different numbers, in minibatches of one
    env = DummyVecEnv([lambda: Uneven(0, ACTION_SPACES["discrete"])])
    model = REINFORCE("MlpPolicy", env, n_steps=1 + 30 * rank, batch_size=1, natural_gradient=False, device="cpu").learn(1)
    steps = {float(state["step"]) for state in model.policy.optimizer.state.values()}
    result["minibatches"] = {"steps": sorted(steps), "n": model.workers.totals(0, 0)[0], "weights": weights(model)}

    # Other environments, which have the same seed everywhere
    starts = Writes()
    model = REINFORCE("MlpPolicy", make_vec_env("CartPole-v1", seed=5), n_steps=64, device="cpu")
    model.learn(1, callback=starts)
    model.set_env(make_vec_env("CartPole-v1", seed=5))
    model.learn(1, callback=starts, reset_num_timesteps=False)
    result["first observations"] = starts.first_observations

    # SB3's own buffer
    at_end = AtRollouts()
    model = REINFORCE(
        "MlpPolicy",
        make_vec_env("CartPole-v1", rank + 1),
        n_steps=64,
        complete_episodes=False,
        rollout_buffer_class=RolloutBuffer,
        device="cpu",
    ).learn(1, callback=CallbackList([at_end]))
    result["timesteps"] = (*at_end.timesteps, model.num_timesteps)

    # A subclass with numbers of its own
    model = small_model(rank)
    model.number = rank  # type: ignore[attr-defined]
    model.learn(1)
    # A process group that has been left, so often that one finds the other's old address if it can
    for _ in range(10):
        th.distributed.destroy_process_group()
        model.learn(1)
    result["again"] = weights(model)
    return result


class Constant(gym.Env):
    """Episodes of one step, with a constant reward."""

    def __init__(self, reward: float):
        self.reward = float(reward)
        self.observation_space = spaces.Box(-1, 1, (1,), np.float32)
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.zeros(1, np.float32), self.reward, True, False, {}


class AtRollouts(BaseCallback):
    """Where the model stands at the beginning and the end of each rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.starts: list[np.ndarray] = []
        self.ends: list[np.ndarray] = []
        self.timesteps: list[int] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self.starts.append(weights(self.model))  # type: ignore[arg-type]

    def _on_rollout_end(self) -> None:
        self.ends.append(weights(self.model))  # type: ignore[arg-type]
        self.timesteps += [self.num_timesteps, self.model.num_timesteps]


class Stops(BaseCallback):
    """Stops on one rank, in the middle of its third rollout."""

    def __init__(self, rank: int, act: Callable[[], bool]):
        super().__init__()
        self.rank = rank
        self.act = act

    def _on_step(self) -> bool:
        return self.rank != 1 or self.n_calls < 250 or self.act()


def small_model(rank: int) -> REINFORCE:
    return REINFORCE("MlpPolicy", make_vec_env("CartPole-v1", 1 + rank), n_steps=100, seed=1, device="cpu")


def stop(rank: int, size: int) -> dict[str, Any]:
    model = small_model(rank)
    model.learn(100_000, callback=Stops(rank, lambda: False))
    return {"weights": weights(model), "num_timesteps": model.num_timesteps, "n_updates": model._n_updates}


def raise_error() -> bool:
    raise ZeroDivisionError("the moon is full")


def exception(rank: int, size: int) -> dict[str, Any]:
    model = small_model(rank)
    try:
        model.learn(100_000, callback=Stops(rank, raise_error))
    except Exception as error:
        # torchrun ends the others as soon as one has ended in an error: all write their story first
        return {"error": f"{type(error).__name__}: {error}", "n_updates": model._n_updates}
    return {}


def early(rank: int, size: int) -> dict[str, Any]:
    model = small_model(rank)
    if rank == 1:
        model.gamma = 5.0
    errors = []
    for _ in range(2):  # what failed before is not what fails now
        try:
            model.learn(500)
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")
        if rank == 1:
            model.gamma = 0.99
            model.policy.value_net.weight.requires_grad_(False)
    model.policy.value_net.weight.requires_grad_(True)
    model.learn(500)
    return {"errors": errors, "weights": weights(model)}


def uncaught(rank: int, size: int) -> dict[str, Any]:
    small_model(rank).learn(100_000, callback=Stops(rank, raise_error))
    return {}


def kill_itself() -> bool:
    os.kill(os.getpid(), signal.SIGKILL)
    return True


def killed(rank: int, size: int) -> dict[str, Any]:
    start = time.monotonic()
    try:
        small_model(rank).learn(100_000, callback=Stops(rank, kill_itself))
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}", "seconds": time.monotonic() - start}
    return {}


class TurnsNatural(BaseCallback):
    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self.model.natural_gradient = True  # type: ignore[attr-defined]


class OwnStep(OptimizerStep):
    """A policy step of the user's own."""


def different(rank: int, size: int) -> dict[str, Any]:
    def error_of(model: REINFORCE) -> str:
        try:
            model.learn(1_000)
        except ValueError as error:
            return str(error)
        return ""

    result = {"error": error_of(REINFORCE("MlpPolicy", "CartPole-v1", gamma=0.9 + 0.01 * rank, device="cpu"))}
    baseline = [None, Mean()][rank]
    result["baseline"] = error_of(REINFORCE("MlpPolicy", "CartPole-v1", baseline=baseline, device="cpu"))
    model = REINFORCE("MlpPolicy", "CartPole-v1", device="cpu")
    model.policy_step_class = [None, OwnStep][rank]
    return {**result, "policy step": error_of(model)}


class Remembers(VecEnvWrapper):
    """Writes down everything that the normalizer sees."""

    def __init__(self, env: VecEnv):
        super().__init__(env)
        self.seen: list[np.ndarray] = []
        self.n_steps = 0

    def reset(self) -> np.ndarray:
        obs = self.venv.reset()
        self.seen.append(obs)  # type: ignore[arg-type]
        return obs  # type: ignore[return-value]

    def step_wait(self) -> VecEnvStepReturn:
        obs, rewards, dones, infos = self.venv.step_wait()
        self.seen.append(obs)  # type: ignore[arg-type]
        self.n_steps += self.num_envs
        return obs, rewards, dones, infos


def normalizer(rank: int, size: int) -> dict[str, Any]:
    remembers = Remembers(make_vec_env("Pendulum-v1", rank + 1))
    env = VecNormalize(remembers)
    REINFORCE("MlpPolicy", env, n_steps=200, seed=0, device="cpu").learn(3_000)
    obs, ret = env.obs_rms, env.ret_rms
    return {
        "seen": np.concatenate(remembers.seen),
        "n_steps": remembers.n_steps,
        "obs": (obs.mean, obs.var, obs.count),  # type: ignore[union-attr]
        "ret": (ret.mean, ret.var, ret.count),
    }


def batch_norm(rank: int, size: int) -> dict[str, Any]:
    class Extractor(FlattenExtractor):
        def __init__(self, observation_space: spaces.Space):
            super().__init__(observation_space)
            self.norm = th.nn.BatchNorm1d(4)

        def forward(self, observations: th.Tensor) -> th.Tensor:
            return self.norm(super().forward(observations))

    model = REINFORCE(
        "MlpPolicy",
        make_vec_env("CartPole-v1", 2),
        n_steps=64,
        policy_kwargs={"features_extractor_class": Extractor},
        device="cpu",
    )
    at_ends = AtRollouts()
    model.learn(1_000, callback=at_ends)
    return {"ends": np.array([*at_ends.ends, weights(model)])}


def cartpole(rank: int, size: int) -> dict[str, Any]:
    # As many timesteps per update, of all workers, as a single one has by default, with which every seed solves it
    model = REINFORCE("MlpPolicy", "CartPole-v1", n_steps=256, seed=0, device="cpu").learn()
    mean, _ = evaluate_policy(model, make_vec_env("CartPole-v1", seed=9), n_eval_episodes=10)
    return {"mean": mean}


SCENARIOS = {
    function.__name__: function
    for function in (
        updates,
        training,
        stop,
        exception,
        uncaught,
        killed,
        different,
        normalizer,
        batch_norm,
        cartpole,
        edges,
        early,
        taken_up,
        mixed,
    )
}

if __name__ == "__main__":
    this_rank, n_workers = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    outcome = SCENARIOS[sys.argv[1]](this_rank, n_workers)
    target = Path(sys.argv[2]) / f"{this_rank}.pkl"
    target.with_suffix(".part").write_bytes(pickle.dumps(outcome))
    target.with_suffix(".part").rename(target)
    print(json.dumps({"rank": this_rank, "done": True}))
