"""
The gradient estimate against the exact policy gradient of a process small enough to enumerate.

Every update here is plain gradient ascent at rate 1 from the same weights, so the step of the weights is the estimate itself.
Summed over the rollout it must on average be the number of episodes times the gradient. "On average" is a z-test of each
of the twelve coordinates; its bound of 4.5 standard errors is crossed by chance once in some ten thousand tests.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_reinforce import REINFORCE
from sb3_reinforce.rollout.recorder import CompleteEpisodes, Recorder
from tests.helpers import checkered, return_name, slow
from tests.helpers.tiny_mdp import (
    VALUES,
    WEIGHTS,
    Deviation,
    Estimates,
    LinearPolicy,
    TinyEnv,
    Trajectory,
    actor_parameters,
    collect_estimates,
    deviation,
    exact_gradient,
    expected_sum,
    make_model,
    objective,
    trajectories,
)

#: Standard errors that an estimate may lie from its expectation
BOUND = 4.5
#: The largest standard error, relative to the gradient, at which agreement means anything
POWER = 0.1
N_UPDATES = 400
GAMMA = 0.9
#: Where the powers of gamma must make a difference
SHORT_SIGHTED = 0.5


def by_timestep(returns: np.ndarray, timesteps: np.ndarray, episode_ids: np.ndarray) -> np.ndarray:
    """A baseline of the user's own that depends on nothing but the time."""
    return 2.0 - 0.7 * timesteps


def measure(
    gradient: np.ndarray,
    n_envs: int = 1,
    n_updates: int = N_UPDATES,
    model_class: type[REINFORCE] = REINFORCE,
    bonus: float = 0.0,
    **arguments: Any,
) -> Deviation:
    """How far REINFORCE with these arguments is from a gradient."""
    env = DummyVecEnv([lambda: TinyEnv(bonus)] * n_envs)
    model = make_model(n_envs, model_class, env, **arguments)
    return deviation(collect_estimates(model, n_updates), gradient, model.average_over)


def assert_agrees(found: Deviation) -> None:
    assert found.relative_error < POWER, "too few updates to tell right from wrong"
    assert found.z < BOUND


def assert_differs(found: Deviation) -> None:
    assert found.z > 1.5 * BOUND


# The reference itself


def test_the_episodes_are_all_there_is():
    policy = LinearPolicy()
    possible = trajectories()
    assert sum(policy.probability(trajectory).item() for trajectory in possible) == pytest.approx(1.0, abs=1e-12)
    assert {len(trajectory.rewards) for trajectory in possible} == {1, 2, 3, 4, 5}
    assert any(trajectory.final_state is not None for trajectory in possible)


def test_the_exact_gradient_is_the_slope_of_the_objective():
    step = 1e-6
    slopes = []
    for index in np.ndindex(*WEIGHTS.shape):
        shift = np.zeros_like(WEIGHTS)
        shift[index] = step
        above, below = (objective(LinearPolicy(WEIGHTS + sign * shift), GAMMA).item() for sign in (1, -1))
        slopes.append((above - below) / (2 * step))
    assert np.allclose(exact_gradient(GAMMA)[: WEIGHTS.size], slopes, atol=1e-8)


def test_the_policy_gradient_theorem_holds_in_the_enumeration():
    discounted = expected_sum(lambda episode: [GAMMA**t * g for t, g in enumerate(episode.returns_to_go(GAMMA))])
    assert np.allclose(discounted, exact_gradient(GAMMA), atol=1e-12)
    whole = expected_sum(lambda episode: [episode.returns_to_go(GAMMA)[0]] * len(episode.rewards))
    assert np.allclose(whole, exact_gradient(GAMMA), atol=1e-12)


# Every unbiased combination

BASELINES: dict[str, str | Callable[..., np.ndarray] | None] = {
    "none": None,
    "leave_one_out": "leave_one_out",
    "value": "value",
    "callable": by_timestep,
}
ROLLOUTS: dict[str, dict[str, Any]] = {
    "episodes_of_one_env": {"n_envs": 1, "n_episodes": 4, "average_over": "episodes"},
    "episodes_of_three_envs": {"n_envs": 3, "n_episodes": 2, "average_over": "episodes"},
    "steps_of_one_env": {"n_envs": 1, "n_steps": 6, "average_over": "timesteps"},
    "steps_of_three_envs": {"n_envs": 3, "n_steps": 3, "average_over": "timesteps"},
}


@pytest.mark.parametrize(
    ("baseline", "reward_to_go", "rollout"), checkered(BASELINES, [True, False], ROLLOUTS), ids=return_name
)
def test_the_estimate_is_unbiased(baseline, reward_to_go, rollout):
    found = measure(
        exact_gradient(GAMMA),
        baseline=BASELINES[baseline],
        reward_to_go=reward_to_go,
        bootstrap_on_truncation=False,
        discount_state_distribution=True,
        gamma=GAMMA,
        **ROLLOUTS[rollout],
    )
    assert_agrees(found)


@pytest.mark.slow
@pytest.mark.parametrize("rollout", ROLLOUTS)
@pytest.mark.parametrize("reward_to_go", [True, False], ids=return_name)
@pytest.mark.parametrize("baseline", BASELINES)
def test_the_estimate_is_unbiased_under_a_strong_lens(baseline, reward_to_go, rollout):
    found = measure(
        exact_gradient(GAMMA),
        n_updates=20_000,
        baseline=BASELINES[baseline],
        reward_to_go=reward_to_go,
        bootstrap_on_truncation=False,
        discount_state_distribution=True,
        gamma=GAMMA,
        seed=1,
        **ROLLOUTS[rollout],
    )
    assert found.relative_error < POWER / 4
    assert_agrees(found)


@pytest.mark.parametrize("reward_to_go", [True, False], ids=return_name)
def test_the_undiscounted_estimate_is_unbiased(reward_to_go):
    found = measure(exact_gradient(1.0), n_envs=3, n_steps=3, baseline="leave_one_out", gamma=1.0, reward_to_go=reward_to_go)
    assert_agrees(found)


def test_without_the_factor_of_the_state_distribution_the_estimate_is_the_customary_one():
    customary = expected_sum(lambda episode: episode.returns_to_go(SHORT_SIGHTED))
    arguments = {"n_envs": 3, "n_episodes": 2, "average_over": "episodes", "baseline": None, "gamma": SHORT_SIGHTED}
    assert_agrees(measure(customary, **arguments))
    assert_differs(measure(exact_gradient(SHORT_SIGHTED), **arguments))


def test_one_episode_per_update_is_enough_for_an_unbiased_estimate():
    found = measure(
        exact_gradient(GAMMA),
        n_updates=2 * N_UPDATES,
        n_episodes=1,
        average_over="episodes",
        baseline="value",
        bootstrap_on_truncation=False,
        discount_state_distribution=True,
        gamma=GAMMA,
    )
    assert_agrees(found)


def test_learn_takes_the_same_steps():
    model = make_model(n_envs=2, n_episodes=2, average_over="episodes", baseline=None, reward_to_go=False, gamma=GAMMA)
    start, origin = model.get_parameters()["policy"], actor_parameters(model)
    start = {name: tensor.clone() for name, tensor in start.items()}
    steps = []
    for _ in range(400):
        model.learn(total_timesteps=1, log_interval=None)  # type: ignore[arg-type]
        steps.append(actor_parameters(model) - origin)
        model.policy.load_state_dict(start)
    estimates = Estimates(np.array(steps), np.full(400, 4), np.zeros(400))
    assert_agrees(deviation(estimates, exact_gradient(GAMMA), "episodes"))


class SetsTheWeights(BaseCallback):
    """Puts weights of its own into the policy at the start of a rollout: they choose action 1 in every state."""

    def _on_rollout_start(self) -> None:
        with th.no_grad():
            self.model.policy.action_net.bias.copy_(th.tensor([-100.0, 100.0]))

    def _on_step(self) -> bool:
        return True


def test_weights_that_a_callback_sets_at_the_start_of_a_rollout_are_acted_on():
    model = make_model(n_envs=2, n_episodes=5, baseline=None)
    model.learn(total_timesteps=1, callback=SetsTheWeights())
    assert (model.rollout_buffer.actions == 1).all()


# What a truncated episode is worth


def test_bootstrapping_adds_the_value_behind_a_truncation_to_the_objective():
    arguments = {"n_envs": 3, "n_episodes": 2, "average_over": "episodes", "discount_state_distribution": True, "gamma": GAMMA}
    found = measure(exact_gradient(GAMMA, final_values=VALUES), baseline="value", bootstrap_on_truncation=True, **arguments)
    assert_agrees(found)
    assert_differs(measure(exact_gradient(GAMMA), baseline="value", n_updates=N_UPDATES, **arguments))


@pytest.mark.parametrize(("horizon", "rollout"), checkered([1, 2, 3], ROLLOUTS))
@pytest.mark.filterwarnings("ignore:An episode was cut")
def test_with_a_horizon_the_estimate_is_that_of_the_cut_episodes(rollout, horizon):
    found = measure(
        exact_gradient(GAMMA, horizon=horizon),
        baseline="leave_one_out",
        horizon=horizon,
        discount_state_distribution=True,
        gamma=GAMMA,
        bonus=1.0,
        **ROLLOUTS[rollout],
    )
    assert_agrees(found)


@pytest.mark.filterwarnings("ignore:An episode was cut")
def test_a_cut_at_the_horizon_is_bootstrapped_like_any_truncation():
    found = measure(
        exact_gradient(GAMMA, horizon=2, final_values=VALUES),
        n_envs=2,
        n_steps=4,
        baseline="value",
        horizon=2,
        discount_state_distribution=True,
        gamma=GAMMA,
    )
    assert_agrees(found)


@pytest.mark.filterwarnings("ignore:An episode was cut")
def test_leave_one_out_is_unbiased_where_a_horizon_cuts():
    model = make_model(
        env=DummyVecEnv([lambda: TinyEnv(bonus=5.0)]),
        horizon=3,
        n_episodes=3,
        average_over="episodes",
        baseline="leave_one_out",
        discount_state_distribution=True,
        gamma=GAMMA,
    )
    estimates = collect_estimates(model, 2 * N_UPDATES)
    assert estimates.n_episodes.min() < 3, "nothing was cut"
    assert_agrees(deviation(estimates, exact_gradient(GAMMA, horizon=3), "episodes"))


# The mean of the batch contains the sample itself: biased, by a known amount


@pytest.mark.parametrize("n_episodes", [2, 5])
def test_the_mean_of_whole_episodes_shrinks_the_gradient_by_one_share(n_episodes):
    arguments = {"n_episodes": n_episodes, "average_over": "episodes", "baseline": "mean", "reward_to_go": False}
    shrunk = (1 - 1 / n_episodes) * exact_gradient(GAMMA)
    assert_agrees(measure(shrunk, n_updates=2 * N_UPDATES, gamma=GAMMA, **arguments))
    if n_episodes == 2:
        assert_differs(measure(exact_gradient(GAMMA), gamma=GAMMA, **arguments))


def test_the_mean_of_returns_to_go_is_taken_over_the_timesteps_of_the_batch():
    def weigh(episode: Trajectory, other: Trajectory) -> list[float]:
        returns = episode.returns_to_go(GAMMA)
        mean = np.mean(returns + other.returns_to_go(GAMMA))
        return [GAMMA**t * (g - mean) for t, g in enumerate(returns)]

    found = measure(
        expected_sum(weigh, n_episodes=2),
        n_envs=2,
        n_updates=2 * N_UPDATES,
        n_episodes=1,
        average_over="episodes",
        baseline="mean",
        discount_state_distribution=True,
        gamma=GAMMA,
    )
    assert_agrees(found)


# Wrong rules, which the check above must find out


class KeepSome(REINFORCE):
    """Plays rollouts of its own recorder, and drops the episodes that the recorder did not see the end of."""

    recorder_class: ClassVar[type[Recorder]]

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.n_kept: list[int] = []
        start_episodes = self._player.start_recorder

        def start_recorder(env: Any, n_rollout_steps: int) -> Recorder:
            start_episodes(env, n_rollout_steps)
            self.recorder = self.recorder_class(env.num_envs, n_rollout_steps, None, [100] * env.num_envs)
            return self.recorder

        self._player.start_recorder = start_recorder  # type: ignore[method-assign]

    def collect_rollouts(self, env: Any, callback: Any, rollout_buffer: Any, n_rollout_steps: int) -> bool:
        goes_on = super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        if goes_on:
            kept = np.array([not episode.unfinished for episode in self.recorder.result()[1]])
            rollout_buffer.advantages = rollout_buffer.advantages * kept[rollout_buffer.episode_ids]
            self.n_kept.append(int(kept.sum()))
        return goes_on


class _StopsEverywhere(CompleteEpisodes):
    """Ends all environments at once, whatever their episodes are at."""

    def advance(self, dones: np.ndarray, infos: Any, new_obs: Any) -> None:
        self.n_vector_steps += 1
        for env_id in np.flatnonzero(dones).tolist():
            self._end_episode(env_id, None)
        if self.enough():
            for env_id in np.flatnonzero(~dones).tolist():
                self._end_episode(env_id, None, unfinished=True)
            self.recording = self.recording[:0]

    def enough(self) -> bool:
        raise NotImplementedError()


class FirstToFinish(_StopsEverywhere):
    """The rollout is over when as many episodes as there are environments have finished."""

    def enough(self) -> bool:
        return len(self.episodes) >= self.n_envs


class DropsRunning(_StopsEverywhere):
    """The rollout is over after ``n_steps``, and what is still running is lost."""

    def enough(self) -> bool:
        return self.n_vector_steps >= self.n_steps


class FirstToFinishREINFORCE(KeepSome):
    recorder_class = FirstToFinish


class DropsRunningREINFORCE(KeepSome):
    recorder_class = DropsRunning


@pytest.mark.parametrize("model_class", [FirstToFinishREINFORCE, DropsRunningREINFORCE])
def test_a_batch_of_the_episodes_that_happen_to_be_finished_is_found_out(model_class):
    model = make_model(4, model_class, n_steps=4, baseline=None, discount_state_distribution=True, gamma=GAMMA)
    estimates = collect_estimates(model, N_UPDATES)
    assert 0 < np.mean(model.n_kept) < estimates.n_episodes.mean(), "nothing was dropped"
    estimates = estimates._replace(n_episodes=np.array(model.n_kept[: len(estimates.steps)]))
    assert_differs(deviation(estimates, exact_gradient(GAMMA), "timesteps"))


class LooksAhead(REINFORCE):
    """Takes the later episodes of an environment into the baseline of the earlier ones."""

    @property
    def only_earlier_episodes(self) -> bool:
        return False


@pytest.mark.parametrize(
    "arguments",
    [{"n_steps": 3}, slow({"n_episodes": 3, "horizon": 2, "average_over": "episodes"})],
    ids=["steps", "episodes_with_a_cut"],
)
@pytest.mark.filterwarnings("ignore:An episode was cut")
def test_a_baseline_of_episodes_that_exist_because_of_this_one_is_found_out(arguments):
    common = {"baseline": "leave_one_out", "discount_state_distribution": True, "gamma": GAMMA, "bonus": 3.0}
    gradient = exact_gradient(GAMMA, horizon=arguments.get("horizon"))
    assert_differs(measure(gradient, n_updates=1000, model_class=LooksAhead, **arguments, **common))
    assert_agrees(measure(gradient, n_updates=1000, **arguments, **common))


class FitsTheCriticFirst(REINFORCE):
    """Regresses the critic on the rollout, and then subtracts it from the very returns it was fitted to."""

    def collect_rollouts(self, env: Any, callback: Any, rollout_buffer: Any, n_rollout_steps: int) -> bool:
        goes_on = super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
        if goes_on:
            states, returns = rollout_buffer.observations.astype(int).ravel(), rollout_buffer.returns
            visits = np.maximum(np.bincount(states), 1)
            fitted = np.bincount(states, weights=returns) / visits
            rollout_buffer.advantages = (returns - fitted[states]).astype(np.float32)
        return goes_on


def test_a_critic_that_was_fitted_to_the_batch_first_is_found_out():
    arguments = {"n_episodes": 4, "average_over": "episodes", "baseline": "value", "bootstrap_on_truncation": False}
    found = measure(
        exact_gradient(GAMMA), model_class=FitsTheCriticFirst, discount_state_distribution=True, gamma=GAMMA, **arguments
    )
    assert_differs(found)


# A callable baseline that gives "returns minus something" puts that something in the place of the advantage


def discounted_twice(returns: np.ndarray, timesteps: np.ndarray, episode_ids: np.ndarray) -> np.ndarray:
    return returns - SHORT_SIGHTED**timesteps * returns


def product_of_means(returns: np.ndarray, timesteps: np.ndarray, episode_ids: np.ndarray) -> np.ndarray:
    return returns - returns.mean()


def over_the_episodes_length(returns: np.ndarray, timesteps: np.ndarray, episode_ids: np.ndarray) -> np.ndarray:
    return returns - returns / np.bincount(episode_ids.astype(int))[episode_ids.astype(int)]


@pytest.mark.parametrize("wrong", [discounted_twice, product_of_means, over_the_episodes_length])
def test_wrong_weights_of_whole_episodes_are_found_out(wrong):
    arguments = {"n_episodes": 4, "average_over": "episodes", "reward_to_go": False, "gamma": SHORT_SIGHTED}
    assert_differs(measure(exact_gradient(SHORT_SIGHTED), baseline=wrong, **arguments))


def test_an_average_over_the_timesteps_is_not_an_average_over_the_episodes():
    model = make_model(n_episodes=1, average_over="timesteps", baseline=None, reward_to_go=False, gamma=GAMMA)
    estimates = collect_estimates(model, 2 * N_UPDATES)
    mean_length = estimates.n_timesteps.mean() / estimates.n_episodes.mean()
    assert_agrees(deviation(estimates, exact_gradient(GAMMA), "timesteps"))
    as_if_averaged = estimates._replace(steps=estimates.steps * mean_length)
    assert_differs(deviation(as_if_averaged, exact_gradient(GAMMA), "episodes"))
