"""
A Markov decision process so small that its policy gradient can be computed by enumeration,
and what collects REINFORCE's estimates of it: the steps that its updates take from the same weights.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_reinforce import REINFORCE
from tests.helpers.plain import PLAIN


class Outcome(NamedTuple):
    """What one action may lead to."""

    probability: float
    next_state: int
    reward: float
    terminated: bool = False
    truncated: bool = False


N_STATES, N_ACTIONS = 5, 2

#: Episodes last one to five steps, the long ones are worth more, and two branches end in a truncation
TRANSITIONS: dict[tuple[int, int], list[Outcome]] = {
    (0, 0): [Outcome(1.0, 4, -1.0, terminated=True)],
    (0, 1): [Outcome(0.5, 1, -0.5), Outcome(0.5, 2, 0.3)],
    (1, 0): [Outcome(1.0, 2, 2.0)],
    (1, 1): [Outcome(1.0, 3, -1.0, truncated=True)],
    (2, 0): [Outcome(1.0, 3, 0.5)],
    (2, 1): [Outcome(1.0, 0, 1.5, terminated=True)],
    (3, 0): [Outcome(0.7, 4, 1.0), Outcome(0.3, 1, 2.0, truncated=True)],
    (3, 1): [Outcome(1.0, 4, 3.0, terminated=True)],
    (4, 0): [Outcome(1.0, 0, 4.0, terminated=True)],
    (4, 1): [Outcome(1.0, 2, -2.0, truncated=True)],
}

#: The policy is linear in the one-hot state: these are its weights and biases
WEIGHTS = np.array([[0.3, -0.2, 0.5, 0.1, -0.4], [0.6, 0.4, -0.3, 0.2, 0.3]])
BIASES = np.array([0.2, -0.1])
#: A critic that is neither right nor constant
VALUES = np.array([0.8, -2.0, 1.7, 2.5, -1.1])


class TinyEnv(gym.Env):
    """
    The process above, as an environment.

    :param bonus: What every episode's first step is worth besides; no action changes it, and it changes no gradient
    """

    def __init__(self, bonus: float = 0.0) -> None:
        self.bonus = bonus
        self.observation_space = spaces.Discrete(N_STATES)
        self.action_space = spaces.Discrete(N_ACTIONS)
        self.state = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = 0
        return self.state, {}

    def step(self, action: int) -> tuple[int, float, bool, bool, dict[str, Any]]:
        outcomes = TRANSITIONS[self.state, int(action)]
        first = outcomes[0]
        outcome = first if len(outcomes) == 1 or self.np_random.random() < first.probability else outcomes[1]
        reward = outcome.reward + (self.bonus if self.state == 0 else 0.0)
        self.state = outcome.next_state
        return self.state, reward, outcome.terminated, outcome.truncated, {}


class Trajectory(NamedTuple):
    """
    An episode that can happen.

    :param probability: Product of the probabilities of the environment's part in it (not of the actions')
    :param final_state: The state that it was cut in, ``None`` if it terminated
    """

    states: list[int]
    actions: list[int]
    rewards: list[float]
    probability: float
    final_state: int | None

    def returns_to_go(self, gamma: float) -> list[float]:
        """The return from each timestep on, straight from its definition."""
        return [sum(gamma ** (k - t) * self.rewards[k] for k in range(t, len(self.rewards))) for t in range(len(self.rewards))]


def trajectories(horizon: int | None = None, start: int = 0) -> list[Trajectory]:
    """All episodes from a state, each cut after ``horizon`` steps."""

    def extend(state: int, so_far: Trajectory) -> Iterator[Trajectory]:
        for action in range(N_ACTIONS):
            for outcome in TRANSITIONS[state, action]:
                longer = Trajectory(
                    [*so_far.states, state],
                    [*so_far.actions, action],
                    [*so_far.rewards, outcome.reward],
                    so_far.probability * outcome.probability,
                    None if outcome.terminated else outcome.next_state,
                )
                if outcome.terminated or outcome.truncated or len(longer.states) == horizon:
                    yield longer
                else:
                    yield from extend(outcome.next_state, longer)

    return list(extend(start, Trajectory([], [], [], 1.0, None)))


class LinearPolicy:
    """The policy of the tests, written down a second time: float64, and nothing of SB3's."""

    def __init__(self, weights: np.ndarray = WEIGHTS, biases: np.ndarray = BIASES):
        self.weights = th.tensor(weights, dtype=th.float64, requires_grad=True)
        self.biases = th.tensor(biases, dtype=th.float64, requires_grad=True)

    def log_probs(self, trajectory: Trajectory) -> th.Tensor:
        """Log-probability of each action of an episode."""
        log_table = th.log_softmax(self.weights.T + self.biases, dim=1)
        return log_table[trajectory.states, trajectory.actions]

    def probability(self, trajectory: Trajectory) -> th.Tensor:
        """Probability of an episode."""
        return trajectory.probability * self.log_probs(trajectory).sum().exp()

    def gradient(self, scalar: th.Tensor) -> np.ndarray:
        """Gradient with respect to weights and biases, as one vector."""
        return np.concatenate([part.numpy().ravel() for part in th.autograd.grad(scalar, [self.weights, self.biases])])


def objective(
    policy: LinearPolicy, gamma: float, horizon: int | None = None, final_values: np.ndarray | None = None
) -> th.Tensor:
    """The expected return J, as a sum over all episodes. A cut one goes on with ``final_values``, if given."""
    total = th.zeros((), dtype=th.float64)
    for trajectory in trajectories(horizon):
        value = trajectory.returns_to_go(gamma)[0]
        if final_values is not None and trajectory.final_state is not None:
            value += gamma ** len(trajectory.rewards) * final_values[trajectory.final_state]
        total = total + policy.probability(trajectory) * value
    return total


def exact_gradient(gamma: float, horizon: int | None = None, final_values: np.ndarray | None = None) -> np.ndarray:
    """The gradient of J at the weights above."""
    policy = LinearPolicy()
    return policy.gradient(objective(policy, gamma, horizon, final_values))


def expected_sum(weigh: Callable[..., list[float]], n_episodes: int = 1, horizon: int | None = None) -> np.ndarray:
    """
    The expectation of the sum over one episode's timesteps of ``weight * grad log pi``.

    :param weigh: Takes that episode and ``n_episodes - 1`` independent others; gives the weight of each of its timesteps
    """
    policy, possible = LinearPolicy(), trajectories(horizon)
    probabilities = [policy.probability(trajectory).item() for trajectory in possible]
    total = th.zeros((), dtype=th.float64)
    for indices in np.ndindex(*[len(possible)] * n_episodes):
        probability = np.prod([probabilities[i] for i in indices])
        weights = th.tensor(weigh(*[possible[i] for i in indices]), dtype=th.float64)
        total = total + probability * (weights * policy.log_probs(possible[indices[0]])).sum()
    return policy.gradient(total)


class Estimates(NamedTuple):
    """
    What many updates from the same weights were.

    :param steps: The steps of the actor's parameters, shape ``(n_updates, n_parameters)``
    :param n_episodes: Number of recorded episodes of each update
    :param n_timesteps: Number of recorded timesteps of each update
    """

    steps: np.ndarray
    n_episodes: np.ndarray
    n_timesteps: np.ndarray


def make_model(
    n_envs: int = 1, model_class: type[REINFORCE] = REINFORCE, env: DummyVecEnv | None = None, **arguments: Any
) -> REINFORCE:
    """REINFORCE on the process, with plain gradient ascent at rate 1: the step of the weights is the gradient estimate."""
    defaults: dict[str, Any] = {
        **PLAIN,
        "learning_rate": 1.0,
        "max_grad_norm": 1e6,
        "normalize_advantage": False,
        "n_critic_updates": 0,
        "gamma": 0.9,
        "policy_kwargs": {"net_arch": [], "optimizer_class": th.optim.SGD},
        "seed": 0,
        "device": "cpu",
    }
    model = model_class("MlpPolicy", env or DummyVecEnv([TinyEnv] * n_envs), **{**defaults, **arguments})
    state = model.policy.state_dict()
    state["action_net.weight"], state["action_net.bias"] = th.tensor(WEIGHTS), th.tensor(BIASES)
    state["value_net.weight"], state["value_net.bias"] = th.tensor(VALUES[None]), th.zeros(1)
    model.policy.load_state_dict(state)
    return model


def collect_estimates(model: REINFORCE, n_updates: int) -> Estimates:
    """Many updates of a model, each from its present weights."""
    _, callback = model._setup_learn(total_timesteps=1)
    start = [parameter.detach().clone() for parameter in model.policy.parameters()]
    origin, steps, sizes = actor_parameters(model), [], []
    for _ in range(n_updates):
        assert model.env is not None
        assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
        model.train()
        steps.append(actor_parameters(model) - origin)
        sizes.append((model.rollout_buffer.episode_ids[-1] + 1, len(model.rollout_buffer.episode_ids)))  # type: ignore
        with th.no_grad():
            for parameter, before in zip(model.policy.parameters(), start, strict=True):
                parameter.copy_(before)
    n_episodes, n_timesteps = np.array(sizes).T
    return Estimates(np.array(steps), n_episodes, n_timesteps)


def actor_parameters(model: REINFORCE) -> np.ndarray:
    """Weights and biases of the policy, as one vector."""
    parameters = [parameter.detach().flatten().double() for parameter in model.policy.action_net.parameters()]
    return th.cat(parameters).numpy()


class Deviation(NamedTuple):
    """
    How far estimates are from a gradient.

    :param z: The largest deviation of a coordinate, in standard errors
    :param relative_error: The largest standard error, relative to the largest coordinate of the gradient
    """

    z: float
    relative_error: float


def deviation(estimates: Estimates, gradient: np.ndarray, divided_by: str) -> Deviation:
    """
    Compare summed estimates with the gradient per episode times the number of episodes: by Wald's identity the difference
    is zero in expectation, whatever stopped the rollouts, as long as it did not look ahead.

    :param estimates: The estimates
    :param gradient: The gradient per episode
    :param divided_by: What the sums were divided by, ``"episodes"`` or ``"timesteps"``
    """
    sizes = estimates.n_episodes if divided_by == "episodes" else estimates.n_timesteps
    differences = estimates.steps * sizes[:, None] - estimates.n_episodes[:, None] * gradient
    errors = differences.std(axis=0, ddof=1) / np.sqrt(len(differences))
    # Weights that no episode touches have no variance at all
    z = np.abs(differences.mean(axis=0)) / np.maximum(errors, 1e-6)
    return Deviation(float(z.max()), float(errors.max() / estimates.n_episodes.mean() / np.abs(gradient).max()))
