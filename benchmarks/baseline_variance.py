"""
How much of the gradient's variance does each baseline leave? Measured at fixed weights, at several stages of the training,
on batches of the same episodes for all baselines.

Advantages are raw (not normalized), and the sum is divided by the number of episodes. The table gives the trace of the
covariance of the estimate, averaged over the batches, relative to that of ``leave_one_out`` with reward-to-go. It measures
a candidate too that did not earn its place in the package: ``optimal``, the constant that minimises the variance.

    python -m benchmarks.baseline_variance [--quick] [--out DIR] [--tasks CartPole-v1 ...]
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env

from benchmarks.common import PLAIN, markdown  # first: one thread
from sb3_reinforce import REINFORCE
from sb3_reinforce.callbacks.noise import divide, divisor_shares, group_gradients, measure_noise
from sb3_reinforce.monte_carlo.baselines import make_baseline
from sb3_reinforce.monte_carlo.returns import returns_to_go, whole_episode_returns
from sb3_reinforce.rollout.advantages import advantages_under

N_ENVS, N_EPISODES = 8, 4
BASELINES = (None, "mean", "leave_one_out", "linear", "value")
#: Timesteps of training before each stage, and the discount factor
TASKS: dict[str, tuple[tuple[int, ...], float]] = {
    "CartPole-v1": ((0, 15_000, 60_000), 0.99),
    "LunarLander-v3": ((0, 50_000, 150_000), 0.99),
    "Knapsack": ((0, 10_000, 60_000), 1.0),
}


class Knapsack(gym.Env):
    """
    Twenty things come by, each to be packed or left behind, and how much they are worth together is told at the end.

    The observation is the weight and the value of the thing, the room that is left and the number of things to come.
    """

    n_things = 20
    observation_space = spaces.Box(0.0, 1.0, (4,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.weights, self.values = self.np_random.random((2, self.n_things))
        self.room, self.packed, self.t = 1.0, 0.0, 0
        return self._observe(), {}

    def _observe(self) -> np.ndarray:
        thing = min(self.t, self.n_things - 1)
        return np.array([self.weights[thing], self.values[thing], self.room, 1 - self.t / self.n_things], np.float32)

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        weight = self.weights[self.t] / 4
        if action == 1 and weight <= self.room:
            self.room -= weight
            self.packed += self.values[self.t]
        self.t += 1
        done = self.t == self.n_things
        return self._observe(), float(self.packed) if done else 0.0, done, False, {}


def optimal_baseline(scores: np.ndarray, weighted: np.ndarray) -> np.ndarray:
    r"""
    For each episode the constant baseline that minimises the variance of the estimate, from the other episodes.

    With :math:`s = \sum_t \nabla \log \pi(a_t|s_t)` and :math:`u = \sum_t G_t \nabla \log \pi(a_t|s_t)` of an episode, the
    trace of the covariance of :math:`u - b s` is least at :math:`b = E[u \cdot s] / E[|s|^2]`, which for the returns of whole
    episodes is :math:`E[|s|^2 G] / E[|s|^2]` (Greensmith, Bartlett and Baxter, 2004, JMLR 5).

    :param scores: :math:`s`, shape ``(n_episodes, n_parameters)``
    :param weighted: :math:`u`, shape ``(n_episodes, n_parameters)``
    :return: Shape ``(n_episodes,)``
    """
    products, squares = (weighted * scores).sum(axis=1), (scores**2).sum(axis=1)
    return (products.sum() - products) / np.maximum(squares.sum() - squares, 1e-12)


def advantages_of_all(model: REINFORCE) -> dict[str, np.ndarray]:
    """
    :param model: A model that has just collected a rollout
    :return: The advantages of its batch under each baseline, with returns-to-go and with those of whole episodes
    """
    buffer: Any = model.rollout_buffer
    batch, episodes = model.batch(), buffer.episodes
    singles, _ = divide(episodes, len(episodes.lengths))
    returns = returns_to_go(buffer.rewards, model.gamma, episodes)
    whole = whole_episode_returns(returns, episodes)
    weights = th.as_tensor(np.stack([np.ones_like(returns), returns, whole]), dtype=th.float32)
    parameters = model.actor_critic.actor_parameters(batch)
    gradients = group_gradients(model.actor_critic, batch, weights, singles, parameters)
    scores, weighted, weighted_whole = th.stack(list(gradients), dim=1).double().numpy()
    result = {}
    for suffix, target, sums in (("", returns, weighted), (", whole episodes", whole, weighted_whole)):
        for name in BASELINES:
            result[f"{name or 'none'}{suffix}"] = advantages_under(buffer, make_baseline(name), suffix == "", False)
        result[f"optimal{suffix}"] = target - np.repeat(optimal_baseline(scores, sums), episodes.lengths)
    return result


def measure(model: REINFORCE, n_batches: int) -> dict[str, Any]:
    """
    :param model: A model, whose weights stay as they are
    :param n_batches: Number of batches
    :return: Mean return, and the mean trace of the covariance under each baseline with its standard error, relative to
        that of ``leave_one_out``
    """
    _, callback = model._setup_learn(1)
    traces: dict[str, list[float]] = {}
    returns = []
    for _ in range(n_batches):
        assert model.env is not None
        model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
        advantages = advantages_of_all(model)
        batch, episodes = model.batch(), model.rollout_buffer.episodes
        n_episodes = len(episodes)
        stacked = th.as_tensor(np.stack(list(advantages.values())) / n_episodes, dtype=th.float32)
        shares = np.stack([divisor_shares(a, episodes, "episodes", False) for a in advantages.values()])
        groups, sizes = divide(episodes, n_episodes)
        parameters = model.actor_critic.actor_parameters(batch)
        noises = measure_noise(model.actor_critic, batch, stacked, shares, groups, sizes, parameters)
        for name, noise in zip(advantages, noises, strict=True):
            traces.setdefault(name, []).append(noise.covariance_trace)
        returns.append(float(np.sum(model.rollout_buffer.rewards)) / n_episodes)
    reference = np.mean(traces["leave_one_out"])
    return {
        "return": float(np.mean(returns)),
        "ratios": {name: float(np.mean(values) / reference) for name, values in traces.items()},
        "errors": {name: paired_error(np.array(values), np.array(traces["leave_one_out"])) for name, values in traces.items()},
    }


def paired_error(values: np.ndarray, reference: np.ndarray) -> float:
    """
    :param values: Traces under a baseline, batch by batch
    :param reference: Those under the reference, of the same batches
    :return: Standard error of the ratio of their means
    """
    ratio = values.mean() / reference.mean()
    residuals = (values - ratio * reference) / reference.mean()
    return float(residuals.std(ddof=1) / np.sqrt(len(values)))


def table(results: dict[str, Any], suffix: str) -> str:
    """
    :param results: The measurements
    :param suffix: Which half of them
    :return: A table in Markdown
    """
    names = [name or "none" for name in BASELINES] + ["optimal"]
    rows = []
    for key, result in results.items():
        cells = [f"{result['ratios'][name + suffix]:.2f} ± {result['errors'][name + suffix]:.2f}" for name in names]
        rows.append([f"{key} ({result['return']:.0f})", *cells])
    return markdown(["task, steps of training (mean return)", *names], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few batches at the first stage: a smoke test, no measurement")
    parser.add_argument("--batches", type=int, default=40, help="batches per stage")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS), help="tasks to measure")
    parser.add_argument("--out", type=Path, default=Path("output"), help="folder for baseline_variance.json")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    th.set_num_threads(1)
    results: dict[str, Any] = {}
    for task in args.tasks:
        stages, gamma = TASKS[task]
        env: str | Callable[[], gym.Env] = Knapsack if task == "Knapsack" else task
        model = REINFORCE(
            "MlpPolicy",
            make_vec_env(env, N_ENVS, seed=0),
            seed=0,
            device="cpu",
            **{**PLAIN, "learning_rate": 3e-3, "n_episodes": N_EPISODES, "gamma": gamma},
        )
        trained = 0  # the model's own count has the steps of the measurements, too
        for stage in stages[:1] if args.quick else stages:
            if stage > trained:
                model.learn(stage - trained)
                trained = stage
            results[f"{task}, {stage:,}"] = measure(model, 2 if args.quick else args.batches)
            print(f"{task}, {stage:,}: {results[f'{task}, {stage:,}']['ratios']}", flush=True)
            (args.out / "baseline_variance.json").write_text(json.dumps(results, indent=1))
    print(f"\nReward-to-go\n\n{table(results, '')}\n\nReturns of whole episodes\n\n{table(results, ', whole episodes')}")


if __name__ == "__main__":
    main()
