"""The process of ``tests.helpers.tiny_mdp`` with a third action, and a mask that depends on the state."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_reinforce import MaskableREINFORCE
from tests.helpers.plain import PLAIN
from tests.helpers.tiny_mdp import N_STATES, TRANSITIONS, VALUES, TinyEnv, Trajectory

N_ACTIONS = 3
#: What the allowed actions of each state do: the actions of the process without masks. State 1 leaves no choice, state 2 all
MEANINGS: list[dict[int, int]] = [{0: 0, 2: 1}, {1: 0}, {0: 0, 1: 1, 2: 0}, {1: 0, 2: 1}, {0: 1, 2: 0}]
MASKS = np.array([[action in meanings for action in range(N_ACTIONS)] for meanings in MEANINGS])
#: A forbidden action is the likeliest one in most states, so that a policy without masks is another one
WEIGHTS = np.array([[0.3, 0.9, 0.5, 1.1, -0.4], [1.2, 0.4, -0.3, 0.2, 1.3], [0.1, 0.8, -0.6, -0.2, 0.5]])
BIASES = np.array([0.2, -0.1, 0.3])


class MaskedEnv(TinyEnv):
    """The process as an environment, in which a forbidden action is an error."""

    def __init__(self) -> None:
        super().__init__()
        self.action_space = spaces.Discrete(N_ACTIONS)

    def action_masks(self) -> np.ndarray:
        return MASKS[self.state]

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        return super().step(MEANINGS[self.state][int(action)])


def trajectories() -> list[Trajectory]:
    """All episodes that the masks allow."""

    def extend(state: int, so_far: Trajectory) -> Iterator[Trajectory]:
        for action, meaning in MEANINGS[state].items():
            for outcome in TRANSITIONS[state, meaning]:
                longer = Trajectory(
                    [*so_far.states, state],
                    [*so_far.actions, action],
                    [*so_far.rewards, outcome.reward],
                    so_far.probability * outcome.probability,
                    None if outcome.terminated else outcome.next_state,
                )
                if outcome.terminated or outcome.truncated:
                    yield longer
                else:
                    yield from extend(outcome.next_state, longer)

    return list(extend(0, Trajectory([], [], [], 1.0, None)))


def exact_gradient(gamma: float, final_values: np.ndarray | None = None, masked: bool = True) -> np.ndarray:
    """
    The gradient of the expected return at the weights above.

    :param gamma: Discount factor
    :param final_values: What an episode that was cut goes on with
    :param masked: ``False``: the wrong one, of the log-probabilities of the policy without masks
    """
    weights, biases = (th.tensor(array, requires_grad=True) for array in (WEIGHTS, BIASES))
    logits = weights.T + biases
    table = th.log_softmax(th.where(th.tensor(MASKS), logits, -th.inf), dim=1)
    learned = table if masked else th.log_softmax(logits, dim=1)
    total = th.zeros((), dtype=th.float64)
    for episode in trajectories():
        value = episode.returns_to_go(gamma)[0]
        if final_values is not None and episode.final_state is not None:
            value += gamma ** len(episode.rewards) * final_values[episode.final_state]
        probability = episode.probability * table[episode.states, episode.actions].sum().exp().item()
        total = total + probability * value * learned[episode.states, episode.actions].sum()
    gradients = th.autograd.grad(total, [weights, biases])
    return np.concatenate([gradient.numpy().ravel() for gradient in gradients])


def objective(weights: np.ndarray, gamma: float) -> float:
    """The expected return of a masked policy, without PyTorch."""
    preferences = np.where(MASKS, np.exp(weights.T + BIASES), 0.0)
    table = preferences / preferences.sum(axis=1, keepdims=True)
    return sum(
        episode.probability * np.prod(table[episode.states, episode.actions]) * episode.returns_to_go(gamma)[0]
        for episode in trajectories()
    )


def make_model(
    n_envs: int, model_class: type[MaskableREINFORCE] = MaskableREINFORCE, policy: Any = "MlpPolicy", **arguments: Any
) -> MaskableREINFORCE:
    """A model that takes plain gradient ascent at rate 1: the step of the weights is the gradient estimate."""
    defaults: dict[str, Any] = {
        **PLAIN,
        "learning_rate": 1.0,
        "max_grad_norm": 1e6,
        "normalize_advantage": False,
        "n_critic_updates": 0,
        "policy_kwargs": {"net_arch": [], "optimizer_class": th.optim.SGD},
        "seed": 0,
        "device": "cpu",
    }
    model = model_class(policy, DummyVecEnv([MaskedEnv] * n_envs), **{**defaults, **arguments})
    state = model.policy.state_dict()
    state["action_net.weight"], state["action_net.bias"] = th.tensor(WEIGHTS), th.tensor(BIASES)
    state["value_net.weight"], state["value_net.bias"] = th.tensor(VALUES[None]), th.zeros(1)
    model.policy.load_state_dict(state)
    assert WEIGHTS.shape == (N_ACTIONS, N_STATES)
    return model
