"""
The gradient estimate of a policy whose logits depend on the history, against the exact gradient of the enumerated process.

As in ``tests/reinforce/test_exact_gradient.py``, every update is plain gradient ascent at rate 1 from the same weights.
"""

from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_reinforce import MaskableRecurrentREINFORCE, RecurrentREINFORCE
from tests.helpers.plain import PLAIN
from tests.helpers.tiny_mdp import N_STATES, Estimates, TinyEnv, Trajectory, deviation, trajectories
from tests.recurrent.recurrent import flat, in_float64, lstm_outputs, stir

GAMMA = 0.9
#: Standard errors that the estimate of any of the 128 parameters may be off
BOUND = 4.7
#: The largest standard error, relative to the gradient, at which agreement means anything
POWER = 0.2
N_UPDATES = 120
#: Which actions a state allows
MASKS = np.array([[1, 1], [1, 0], [1, 1], [0, 1], [1, 1]], bool)


class MaskedTinyEnv(TinyEnv):
    def action_masks(self) -> np.ndarray:
        return MASKS[self.state]


def make_model(kind: Any = RecurrentREINFORCE, n_envs: int = 16, **arguments: Any) -> RecurrentREINFORCE:
    defaults: dict[str, Any] = {
        **PLAIN,
        "learning_rate": 1.0,
        "max_grad_norm": 1e6,
        "normalize_advantage": False,
        "n_critic_updates": 0,
        "vf_coef": 0.0,
        "gamma": GAMMA,
        "discount_state_distribution": True,
        "bootstrap_on_truncation": False,
        "policy_kwargs": {"net_arch": [], "lstm_hidden_size": 3, "optimizer_class": th.optim.SGD},
        "seed": 0,
        "device": "cpu",
    }
    env = DummyVecEnv([MaskedTinyEnv if kind is MaskableRecurrentREINFORCE else TinyEnv] * n_envs)
    model = kind("MlpLstmPolicy", env, **{**defaults, **arguments})
    stir(model.policy, 0.7)
    return model


def actor_of(policy: Any) -> list[th.nn.Parameter]:
    return [*policy.lstm_actor.parameters(), *policy.action_net.parameters()]


def log_probs(policy: Any, trajectory: Trajectory, masked: bool) -> th.Tensor:
    features = th.eye(N_STATES, dtype=th.float64)[trajectory.states]
    logits = policy.action_net(lstm_outputs(policy.lstm_actor, features))
    if masked:
        logits = logits.masked_fill(~th.from_numpy(MASKS[trajectory.states]), -1e9)
    return th.log_softmax(logits, 1)[range(len(trajectory.actions)), trajectory.actions]


def exact_gradient(model: RecurrentREINFORCE, masked: bool = False, final_values: bool = False) -> np.ndarray:
    policy = in_float64(model.policy)
    total, certain = th.zeros((), dtype=th.float64), 0.0
    for trajectory in trajectories():
        probability = trajectory.probability * log_probs(policy, trajectory, masked).sum().exp()
        value = trajectory.returns_to_go(model.gamma)[0]
        if final_values and trajectory.final_state is not None:
            states = th.eye(N_STATES, dtype=th.float64)[[*trajectory.states, trajectory.final_state]]
            last = policy.value_net(lstm_outputs(policy.lstm_critic, states))[-1, 0]
            value += model.gamma ** len(trajectory.rewards) * last.item()
        total, certain = total + probability * value, certain + float(probability.detach())
    assert certain == pytest.approx(1.0, abs=1e-9)
    return flat(th.autograd.grad(total, actor_of(policy))).numpy()


def estimates_of(model: RecurrentREINFORCE, n_updates: int) -> Estimates:
    _, callback = model._setup_learn(1)
    start = [parameter.detach().clone() for parameter in model.policy.parameters()]
    origin, steps, sizes = flat(actor_of(model.policy)), [], []
    for _ in range(n_updates):
        assert model.env is not None and model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
        model.train()
        steps.append((flat(actor_of(model.policy)) - origin).numpy())
        sizes.append((model.rollout_buffer.episode_ids[-1] + 1, len(model.rollout_buffer.rewards)))  # type: ignore[attr-defined]
        with th.no_grad():
            for parameter, before in zip(model.policy.parameters(), start, strict=True):
                parameter.copy_(before)
    n_episodes, n_timesteps = np.array(sizes).T
    return Estimates(np.array(steps), n_episodes, n_timesteps)


def by_timestep(returns: np.ndarray, timesteps: np.ndarray, episode_ids: np.ndarray) -> np.ndarray:
    return 1.0 - 0.7 * timesteps


BASELINES: dict[str, Any] = {
    "none": None,
    "leave_one_out": "leave_one_out",
    "linear": "linear",
    "value": "value",
    "callable": by_timestep,
}
STEPS: dict[str, Any] = {"n_steps": 4}
EPISODES: dict[str, Any] = {"n_episodes": 2, "average_over": "episodes"}


@pytest.mark.parametrize(
    ("baseline", "rollout"),
    [*((name, STEPS) for name in BASELINES), ("leave_one_out", EPISODES), ("value", EPISODES)],
    ids=lambda value: value if isinstance(value, str) else next(iter(value)),
)
def test_the_estimate_is_unbiased(baseline: str, rollout: dict[str, Any]) -> None:
    model = make_model(baseline=BASELINES[baseline], **rollout)
    found = deviation(estimates_of(model, N_UPDATES), exact_gradient(model), model.average_over)
    assert found.relative_error < POWER and found.z < BOUND


def test_the_estimate_with_returns_of_whole_episodes_is_unbiased() -> None:
    model = make_model(baseline="leave_one_out", reward_to_go=False, **EPISODES)
    found = deviation(estimates_of(model, N_UPDATES), exact_gradient(model), "episodes")
    assert found.relative_error < POWER and found.z < BOUND


@pytest.mark.parametrize("baseline", ["leave_one_out", "value"])
def test_the_estimate_with_masks_and_memory_is_unbiased(baseline: str) -> None:
    model = make_model(MaskableRecurrentREINFORCE, baseline=baseline, **STEPS)
    estimates = estimates_of(model, N_UPDATES)
    found = deviation(estimates, exact_gradient(model, masked=True), "timesteps")
    assert found.relative_error < POWER and found.z < BOUND
    assert deviation(estimates, exact_gradient(make_model(**STEPS)), "timesteps").z > 1.5 * BOUND


def test_what_follows_a_truncation_is_what_the_critic_says_who_remembers_the_episode() -> None:
    model = make_model(baseline="value", bootstrap_on_truncation=True, **STEPS)
    with th.no_grad():
        model.policy.value_net.weight.mul_(4.0)
    estimates = estimates_of(model, 2 * N_UPDATES)
    found = deviation(estimates, exact_gradient(model, final_values=True), "timesteps")
    assert found.relative_error < POWER and found.z < BOUND
    assert deviation(estimates, exact_gradient(model), "timesteps").z > 1.5 * BOUND


def test_a_gradient_that_forgets_the_episode_is_found_out() -> None:
    model = make_model(baseline="leave_one_out", max_sequence_length=1, **STEPS)
    assert deviation(estimates_of(model, N_UPDATES), exact_gradient(model), "timesteps").z > 1.5 * BOUND


class LeavesTheStates(RecurrentREINFORCE):
    """Evaluates every timestep as if an episode began with it."""

    @property
    def actor_critic(self) -> Any:
        found = super().actor_critic
        found._lengths = lambda piece: np.ones(len(piece), int)  # type: ignore[attr-defined]
        return found


def test_an_update_that_does_not_know_the_states_is_found_out() -> None:
    model = make_model(LeavesTheStates, baseline="leave_one_out", **STEPS)
    assert deviation(estimates_of(model, N_UPDATES), exact_gradient(model), "timesteps").z > 1.5 * BOUND
