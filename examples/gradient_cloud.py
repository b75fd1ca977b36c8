"""
What does the gradient estimate of a single episode look like, and what shrinks the cloud of many? Writes an interactive HTML
page, which needs no server and no network.

    python examples/gradient_cloud.py --out output
"""

import argparse
import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback

from sb3_reinforce import REINFORCE
from sb3_reinforce.callbacks.gradient_monitor import coming_batch
from sb3_reinforce.callbacks.noise import divide, group_gradients
from sb3_reinforce.distributed import ALONE
from sb3_reinforce.monte_carlo.baselines import make_baseline
from sb3_reinforce.rollout.advantages import advantages_under

HOME, MARKET = 0, 1
LEFT, RIGHT = 0, 1
#: The mean reward of each turn, by place and action, and the standard deviation of the luck that is added
REWARDS = np.array([[8.0, 11.0], [6.0, 4.0]])
LUCK = 1.5
#: How much the policy prefers to turn right, as log-odds at each place: the two parameters of the picture
PREFERENCES = np.array([0.3, -0.2])
BASELINES: dict[str, str | None] = {
    "none": None,
    "mean": "mean",
    "leave_one_out": "leave_one_out",
    "linear": "linear",
    "value": "value",
}
TEMPLATE = Path(__file__).with_name("gradient_cloud_template.html")


class Walk(gym.Env[int, int]):
    """
    A walk with one or two turns. Half of the walks start at home and pass the market, the others start at the market.
    """

    observation_space = spaces.Discrete(2)
    action_space = spaces.Discrete(2)
    place = HOME

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.place = HOME if self.np_random.random() < 0.5 else MARKET
        return self.place, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        reward = REWARDS[self.place, int(action)] + LUCK * self.np_random.normal()
        ended = self.place == MARKET
        self.place = MARKET
        return self.place, float(reward), ended, False, {}


def exact_gradient() -> np.ndarray:
    """
    :return: The gradient of the expected return with respect to the two preferences: the sum over all walks, differentiated
    """
    preferences = th.tensor(PREFERENCES, requires_grad=True)
    log_probs = th.nn.functional.logsigmoid(th.stack([-preferences, preferences], dim=1))  # of left and right
    expected = th.zeros((), dtype=th.float64)
    for start, first, last in itertools.product((HOME, MARKET), (LEFT, RIGHT), (LEFT, RIGHT)):
        if start == MARKET and first == RIGHT:
            continue  # there is no first turn: count the walk once
        turns = [(HOME, first), (MARKET, last)][start:]
        probability = 0.5 * th.stack([log_probs[turn] for turn in turns]).sum().exp()
        expected = expected + probability * sum(REWARDS[turn] for turn in turns)
    return th.autograd.grad(expected, preferences)[0].numpy()


class Cloud(BaseCallback):
    """Computes the gradient of each episode of a rollout, as it would be with each kind of return and each baseline."""

    def __init__(self) -> None:
        super().__init__()
        self.data: dict[str, Any] = {}

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        model = self.model
        assert isinstance(model, REINFORCE)
        buffer, batch = model.rollout_buffer, coming_batch(model)
        episodes = buffer.episodes  # type: ignore[attr-defined]
        names, advantages = [], []
        for reward_to_go, (name, baseline) in itertools.product((False, True), BASELINES.items()):
            names.append(f"{'to_go' if reward_to_go else 'whole'}/{name}")
            found = advantages_under(
                buffer,  # type: ignore[arg-type]
                make_baseline(baseline),
                reward_to_go,
                model.only_earlier_episodes,
            )
            advantages.append(found)
        # The weights of an average over episodes, each of which is an average of its own here
        tensors = [th.as_tensor(found, dtype=th.float32) for found in advantages]
        weights = th.stack([model.weights(replace(batch, advantages=tensor), ALONE) for tensor in tensors]) * len(episodes)
        groups, _ = divide(episodes, max_groups=len(episodes))
        parts = group_gradients(model.actor_critic, batch, weights, groups, [model.policy.action_net.weight])
        # Of a softmax over two actions, the row of "right" holds the derivatives by the log-odds
        gradients = th.stack(list(parts)).reshape(len(episodes), len(names), 2, 2)[:, :, RIGHT].double().numpy()
        rows = [slice(group.start, group.stop) for group in groups]
        self.data = {
            "places": [buffer.observations[row].astype(int).ravel().tolist() for row in rows],
            "actions": [buffer.actions[row].astype(int).ravel().tolist() for row in rows],
            "rewards": [np.round(buffer.rewards[row].astype(np.float64), 1).ravel().tolist() for row in rows],
            "advantages": {
                name: [np.round(found[row], 1).tolist() for row in rows] for name, found in zip(names, advantages, strict=True)
            },
            "gradients": {name: np.round(gradients[:, i], 2).tolist() for i, name in enumerate(names)},
        }


def measure(n_episodes: int, seed: int) -> dict[str, Any]:
    """
    :param n_episodes: Number of episodes
    :param seed: Seed
    :return: What the page shows
    """
    model = REINFORCE(
        "MlpPolicy",
        Walk(),
        n_episodes=n_episodes,
        gamma=1.0,
        average_over="episodes",
        normalize_advantage=False,
        natural_gradient=False,
        learning_rate=0.02,
        policy_kwargs={"net_arch": []},
        seed=seed,
        device="cpu",
    )
    actor = model.policy.action_net
    with th.no_grad():
        actor.weight.copy_(th.tensor(np.stack([np.zeros(2), PREFERENCES])))
        actor.bias.zero_()
    actor.requires_grad_(False)
    model.learn(20 * n_episodes)  # the critic alone
    actor.requires_grad_(True)
    cloud = Cloud()
    model.learn(1, callback=cloud)  # one rollout
    return {"exact": np.round(exact_gradient(), 4).tolist(), **cloud.data}


def write(data: dict[str, Any], path: Path) -> None:
    """
    :param data: What the page shows
    :param path: The page to write
    """
    text = TEMPLATE.read_text(encoding="utf-8")
    path.write_text(text.replace("/* data */ null", json.dumps(data, separators=(",", ":"))), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=512, help="number of episodes")
    parser.add_argument("--seed", type=int, default=0, help="seed of the episodes")
    parser.add_argument("--out", type=Path, default=Path("output"), help="folder to write the page to")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    th.set_num_threads(1)
    data = measure(args.episodes, args.seed)
    print(f"Exact gradient: {data['exact']}")
    print(f"{'returns / baseline':24}{'mean of the episodes':>24}{'variance':>10}")
    for name, points in data["gradients"].items():
        mean, variance = np.mean(points, axis=0), float(np.var(points, axis=0).sum())
        print(f"{name:24}{np.array2string(mean, precision=2, floatmode='fixed'):>24}{variance:10.2f}")
    path = args.out / "gradient_cloud.html"
    write(data, path)
    print(f"Wrote {path}: open it in a browser.")


if __name__ == "__main__":
    main()
