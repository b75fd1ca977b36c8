"""Several attempts at the same instance: environments that start from the same seed, and baselines within their groups."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecNormalize

from sb3_reinforce import REINFORCE, GradientMonitor
from sb3_reinforce.rollout import player
from tests.helpers import no_warnings, return_name
from tests.helpers.tiny_mdp import N_STATES, LinearPolicy, TinyEnv, collect_estimates, deviation, make_model, trajectories

GAMMA = 0.9
BOUND, POWER = 4.5, 0.1


class RandomStart(TinyEnv):
    """The process from a random state. Its noise comes from the seed, so a group shares it."""

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        super().reset(seed=seed)
        self.state = int(self.np_random.integers(N_STATES))
        return self.state, {}


class Instance(gym.Env[np.ndarray, int]):
    """One decision: the return says more about the instance, two random numbers, than about the action."""

    def __init__(self, ignores_seeds: bool = False) -> None:
        self.observation_space = spaces.Box(-10, 10, (2,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.ignores_seeds = ignores_seeds
        self.seeds: list[int | None] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.seeds.append(seed)
        rng = np.random.default_rng() if self.ignores_seeds else self.np_random
        self.pair = rng.normal(size=2).astype(np.float32)
        return self.pair, {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return self.pair, float(3.0 * self.pair[0] + 0.5 * action), True, False, {}


def exact_gradient_from_random_starts() -> np.ndarray:
    policy = LinearPolicy()
    total = th.zeros((), dtype=th.float64)
    for start in range(N_STATES):
        for trajectory in trajectories(start=start):
            total = total + policy.probability(trajectory) * trajectory.returns_to_go(GAMMA)[0] / N_STATES
    return policy.gradient(total)


def measure(n_updates: int = 400, **arguments: Any) -> Any:
    model = make_model(
        env=DummyVecEnv([RandomStart] * 6),
        **{
            "n_episodes": 1,
            "group_size": 3,
            "average_over": "episodes",
            "gamma": GAMMA,
            "bootstrap_on_truncation": False,
            "discount_state_distribution": True,
            **arguments,
        },
    )
    return deviation(collect_estimates(model, n_updates), exact_gradient_from_random_starts(), "episodes")


@pytest.mark.parametrize("reward_to_go", [True, False], ids=return_name)
@pytest.mark.parametrize("baseline", [None, "leave_one_out", "linear", "value"])
def test_the_estimate_of_groups_is_unbiased(baseline: str | None, reward_to_go: bool) -> None:
    found = measure(baseline=baseline, reward_to_go=reward_to_go)
    assert found.relative_error < POWER
    assert found.z < BOUND


def test_a_baseline_that_contains_the_episode_itself_is_biased() -> None:
    assert measure(baseline="mean", n_updates=1_500).z > 1.5 * BOUND


def test_the_same_instances_in_every_update_are_not_what_is_to_be_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = player.seeds_of_groups
    monkeypatch.setattr(player, "seeds_of_groups", lambda base, n_updates, groups, size: draw(base, 0, groups, size))
    assert measure(baseline="leave_one_out").z > 1.5 * BOUND


def test_a_group_lowers_the_variance_where_instances_differ() -> None:
    def trace(group_size: int) -> float:
        env = make_vec_env(Instance, 16, seed=0)
        monitor = GradientMonitor(every_n_updates=1)
        arguments: dict[str, Any] = {"normalize_advantage": False, "baseline": "leave_one_out", "natural_gradient": False}
        model = REINFORCE("MlpPolicy", env, n_episodes=1, group_size=group_size, learning_rate=1e-9, seed=0, **arguments)
        model.learn(16 * 60, callback=monitor)
        return float(np.mean([record["gradient/covariance_trace"] for record in monitor._records]))

    assert trace(8) < 0.7 * trace(1)


class Observed(BaseCallback):
    """Keeps the first observations of each rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.first: list[np.ndarray] = []

    def _on_step(self) -> bool:
        if self.locals["n_steps"] == 0:
            self.first.append(np.array(self.locals["acted_on"]))
        return True


WRAPPED = {
    "dummy": lambda: make_vec_env(Instance, 4),
    "subproc": lambda: make_vec_env(Instance, 4, vec_env_cls=SubprocVecEnv),
    "normalized": lambda: VecNormalize(make_vec_env(Instance, 4)),
    "stacked": lambda: VecFrameStack(make_vec_env(Instance, 4), 2),
}


@pytest.mark.parametrize("make_env", WRAPPED.values(), ids=WRAPPED)
def test_a_group_faces_one_instance_a_fresh_one_in_each_update(make_env: Any) -> None:
    env, observed = make_env(), Observed()
    REINFORCE("MlpPolicy", env, n_episodes=1, group_size=2, baseline="leave_one_out", seed=0).learn(4 * 4, callback=observed)
    env.close()
    assert len(observed.first) == 4
    for observations in observed.first:
        assert (observations[:2] == observations[0]).all() and (observations[2:] == observations[2]).all()
        assert (observations[0] != observations[2]).any()
    assert len({observations[env_id].tobytes() for observations in observed.first for env_id in (0, 2)}) == 8


def test_runs_repeat_and_how_they_are_cut_makes_no_difference() -> None:
    def weights(seed: int, *calls: int) -> th.Tensor:
        env = make_vec_env(Instance, 4, seed=3)
        model = REINFORCE("MlpPolicy", env, n_episodes=1, group_size=2, baseline="leave_one_out", seed=seed)
        for n_steps in calls:
            model.learn(n_steps, reset_num_timesteps=False)
        return th.cat([parameter.detach().flatten() for parameter in model.policy.parameters()])

    whole = weights(0, 40)
    assert th.equal(whole, weights(0, 40)) and th.equal(whole, weights(0, 12, 28))
    assert not th.equal(whole, weights(1, 40))


def test_environments_that_ignore_seeds_are_found_out_at_the_first_rollout() -> None:
    env = make_vec_env(lambda: Instance(ignores_seeds=True), 4)
    model = REINFORCE("MlpPolicy", env, n_episodes=1, group_size=2, baseline="leave_one_out")
    with pytest.raises(ValueError, match=r"reset with the same seed.*reset\(seed=...\)"):
        model.learn(8)
    assert model._n_updates == 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"group_size": 2}, "n_episodes=1"),
        ({"group_size": 2, "n_episodes": 2}, "n_episodes=1"),
        ({"group_size": 3, "n_episodes": 1}, "divide the number of environments, got 3 with 4"),
        ({"group_size": 0, "n_episodes": 1}, "group_size"),
        ({"group_size": 2.0, "n_episodes": 1}, "group_size"),
        ({"normalize_advantage": "group"}, "a `group_size` above 1, got group_size=1"),
        ({"normalize_advantage": "groups"}, "must be True, False or 'group', got 'groups'"),
        ({"normalize_advantage": None}, "must be True, False or 'group', got None"),
    ],
    ids=str,
)
def test_groups_that_make_no_sense_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        REINFORCE("MlpPolicy", make_vec_env(Instance, 4), **arguments)


class Scaled(Instance):
    """The reward of each instance is of a scale of its own, a power of two."""

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward = float(self.pair[action]) * (2.0 ** int(self.np_random.integers(-9, 10)) if self.is_scaled else 1.0)
        return self.pair, reward, True, False, {}

    def __init__(self, is_scaled: bool) -> None:
        super().__init__()
        self.is_scaled = is_scaled


@pytest.mark.filterwarnings("ignore:The natural gradient needs a direction")
@pytest.mark.parametrize("natural_gradient", [True, False])
def test_instances_of_any_scale_have_the_same_weight_where_each_group_is_normalized(natural_gradient: bool) -> None:
    def weights(is_scaled: bool, normalize_advantage: bool | str) -> np.ndarray:
        env = make_vec_env(Scaled, 8, env_kwargs={"is_scaled": is_scaled})
        arguments = {"n_episodes": 1, "group_size": 4, "baseline": "leave_one_out", "natural_gradient": natural_gradient}
        model = REINFORCE("MlpPolicy", env, seed=0, normalize_advantage=normalize_advantage, **arguments).learn(8 * 10)
        return np.concatenate([parameter.detach().numpy().ravel() for parameter in model.policy.parameters()])

    np.testing.assert_array_equal(weights(True, "group"), weights(False, "group"))
    assert not np.array_equal(weights(True, True), weights(False, True))


@no_warnings
def test_groups_whose_attempts_do_not_differ_move_nothing() -> None:
    def paid(normalize_advantage: bool | str) -> float:
        env = make_vec_env(Alike, 8)
        model = REINFORCE(
            "MlpPolicy", env, n_episodes=1, group_size=4, normalize_advantage=normalize_advantage, ent_coef=0.0, seed=0
        )
        before = model.policy.action_net.weight.detach().clone()
        model.learn(8 * 3)
        return float((model.policy.action_net.weight.detach() - before).abs().max())

    assert paid("group") == 0.0
    assert paid(True) > 0.0


class Alike(Instance):
    """What is done makes no difference."""

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        return self.pair, float(self.pair[0]), True, False, {}


@pytest.mark.parametrize("normalize_advantage", [True, "group"])
def test_the_monitor_compares_within_groups_and_over_all(normalize_advantage: bool | str) -> None:
    env = make_vec_env(Instance, 16, seed=0)
    monitor = GradientMonitor(every_n_updates=1, compare_baselines=True)
    arguments: dict[str, Any] = {"n_episodes": 1, "group_size": 4, "baseline": "leave_one_out", "seed": 0}
    model = REINFORCE("MlpPolicy", env, normalize_advantage=normalize_advantage, **arguments)
    model.learn(16 * 30, callback=monitor)
    records = [record for record in monitor._records if "gradient/variance_ratio_leave_one_out_ungrouped" in record]
    ratios = [record["gradient/variance_ratio_leave_one_out_ungrouped"] for record in records]
    if normalize_advantage != "group":
        assert np.median(ratios) > 1.3
        return
    # The group's mean is subtracted in any case, so that baselines that are equal within a group make no difference
    for name in ("none", "mean", "mean_ungrouped"):
        np.testing.assert_allclose([record[f"gradient/variance_ratio_{name}"] for record in records], (3 / 4) ** 2, rtol=1e-3)
    np.testing.assert_allclose(ratios, (3 / 4 * 16 / 15) ** 2, rtol=1e-3)


def test_a_file_keeps_the_size_of_the_groups(tmp_path: Any) -> None:
    env = make_vec_env(Instance, 4)
    model = REINFORCE("MlpPolicy", env, n_episodes=1, group_size=2, baseline="mean", normalize_advantage="group")
    model.learn(8).save(tmp_path / "model")
    model = REINFORCE.load(tmp_path / "model", env).learn(8)
    assert (model.group_size, model.normalize_advantage) == (2, "group")
    with pytest.raises(ValueError, match="divide the number of environments"):
        REINFORCE.load(tmp_path / "model", make_vec_env(Instance, 3)).learn(8)
