"""The gradient monitor: that it changes nothing, and that what it says is right."""

import copy
import sys
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import A2C
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_reinforce import REINFORCE
from sb3_reinforce.callbacks import GradientMonitor
from sb3_reinforce.callbacks.gradient_monitor import coming_batch, present_weighting
from sb3_reinforce.callbacks.noise import covariance_trace, divide, divisor_shares, group_gradients, measure_noise
from sb3_reinforce.monte_carlo.episodes import Episodes
from tests.helpers import no_warnings, slow
from tests.helpers.environments import Scripted, vec
from tests.helpers.plain import PLAIN
from tests.helpers.tiny_mdp import TinyEnv, collect_estimates, make_model

KEYS = ("norm", "covariance_trace", "snr", "noise_scale_episodes", "noise_scale_timesteps", "cosine")


def episodes_of(lengths: list[int]) -> Episodes:
    return Episodes(np.array(lengths), np.zeros(len(lengths), dtype=int), np.zeros(len(lengths), dtype=int))


def cartpole(n_envs: int = 2, **arguments: Any) -> REINFORCE:
    defaults: dict[str, Any] = {**PLAIN, "n_steps": 64, "policy_kwargs": {"net_arch": [16]}, "seed": 0, "device": "cpu"}
    return REINFORCE("MlpPolicy", make_vec_env("CartPole-v1", n_envs, seed=0), **{**defaults, **arguments})


def fixed(monitor: GradientMonitor, n_updates: int, model: REINFORCE) -> np.ndarray:
    """Measure many batches at the same weights; the estimates themselves."""
    _, callback = model._setup_learn(total_timesteps=1, callback=monitor)
    estimates = []
    for _ in range(n_updates):
        assert model.env is not None
        model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
        batch = coming_batch(model)
        arguments = (model.actor_critic, batch, model.weights(batch)[None], [slice(0, len(batch))])
        estimates.append(next(group_gradients(*arguments, model.actor_critic.actor_parameters()))[0].double().numpy())
    return np.array(estimates)


# The formulas, by hand


def moments(parts: np.ndarray, shares: np.ndarray, sizes: np.ndarray) -> tuple[Any, ...]:
    total = parts.sum(axis=0)
    return (parts**2).sum(axis=1), float(total @ (shares / sizes @ parts)), float(total @ total), shares, sizes


def test_the_covariance_is_that_of_the_sample():
    gradients = np.random.default_rng(0).normal(size=(7, 3))  # g_i, of which the estimate is the mean
    expected = np.cov(gradients.T).trace() / 7
    assert covariance_trace(*moments(gradients / 7, np.full(7, 1 / 7), np.ones(7))) == pytest.approx(expected)


def test_groups_estimate_the_same_covariance_without_bias():
    rng, sizes = np.random.default_rng(1), np.array([1, 3, 2, 5])
    covariance = np.diag([1.0, 4.0, 9.0])
    ends = np.cumsum(sizes) - sizes
    found = []
    for _ in range(4000):
        gradients = rng.multivariate_normal([1.0, 2.0, 0.0], covariance, size=11)
        found.append(covariance_trace(*moments(np.add.reduceat(gradients, ends) / 11, sizes / 11, sizes)))
    assert np.mean(found) == pytest.approx(14.0 / 11, rel=0.05)


def test_equal_groups_give_the_formulas_of_mccandlish_et_al():
    gradients = np.random.default_rng(2).normal(1.0, 1.0, size=(12, 4))
    small = gradients.reshape(4, 3, 4).mean(axis=1)
    small_square, big_square = (small**2).sum(axis=1).mean(), (gradients.mean(axis=0) ** 2).sum()
    signal = (12 * big_square - 3 * small_square) / (12 - 3)
    noise = (small_square - big_square) / (1 / 3 - 1 / 12)
    trace = covariance_trace(*moments(small / 4, np.full(4, 0.25), np.full(4, 3)))
    assert 12 * trace == pytest.approx(noise)
    assert big_square - trace == pytest.approx(signal)


def test_one_group_has_no_covariance():
    with pytest.raises(ValueError, match="at least two groups"):
        covariance_trace(np.ones(1), 1.0, 1.0, np.ones(1), np.ones(1))


def test_the_shares_are_those_of_the_divisor():
    episodes, advantages = episodes_of([1, 3]), np.array([2.0, 0.0, 0.0, -2.0])
    assert np.allclose(divisor_shares(advantages, episodes, "timesteps", False), 0.25)
    assert np.allclose(divisor_shares(advantages, episodes, "episodes", False), [1 / 2, 1 / 6, 1 / 6, 1 / 6])
    assert np.allclose(divisor_shares(advantages, episodes, "timesteps", True), [0.375, 0.125, 0.125, 0.375])
    assert np.allclose(divisor_shares(np.ones(4), episodes, "timesteps", True), 0.25)


def test_the_episodes_are_divided_in_their_order():
    groups, sizes = divide(episodes_of([2, 3, 1, 4, 1]), 2)
    assert [(group.start, group.stop) for group in groups] == [(0, 5), (5, 11)] and sizes.tolist() == [2, 3]
    assert len(divide(episodes_of([2, 3, 1]), 64)[0]) == 3


# Against brute force

TINY: dict[str, dict[str, Any]] = {
    "episodes": {"n_episodes": 10, "average_over": "episodes", "baseline": None},
    "leave one out": {"n_episodes": 10, "average_over": "episodes", "baseline": "leave_one_out", "reward_to_go": False},
    "timesteps": {"n_steps": 25, "average_over": "timesteps", "baseline": "value"},
    "normalized": {"n_steps": 25, "average_over": "timesteps", "baseline": "value", "normalize_advantage": True},
}


@pytest.mark.parametrize("name", [slow("episodes"), "leave one out", slow("timesteps"), "normalized"])
def test_it_measures_the_variance_over_many_rollouts_at_fixed_weights(name):
    model = make_model(env=DummyVecEnv([TinyEnv, TinyEnv]), **TINY[name])
    monitor = GradientMonitor(every_n_updates=1, decay=1.0)
    estimates = fixed(monitor, 250, model)
    summary = monitor.summary()
    trace, mean = estimates.var(axis=0, ddof=1).sum(), estimates.mean(axis=0)
    assert summary["gradient/covariance_trace"].mean() == pytest.approx(trace, rel=0.2)
    squared_norm = mean @ mean - trace / len(estimates)
    assert summary["gradient/squared_norm"].mean() == pytest.approx(squared_norm, rel=0.25)
    last = summary.iloc[-1]
    n_episodes = summary["rollout/n_episodes"].mean()
    assert last["gradient/noise_scale_episodes"] == pytest.approx(n_episodes * trace / squared_norm, rel=0.35)
    assert last["gradient/snr"] == pytest.approx(squared_norm / trace, rel=0.35)
    length = summary["rollout/n_steps"].sum() / summary["rollout/n_episodes"].sum()
    assert last["gradient/noise_scale_timesteps"] == pytest.approx(length * last["gradient/noise_scale_episodes"])


def test_groups_and_single_episodes_agree_on_average():
    monitors = [GradientMonitor(1, decay=1.0, max_groups=n) for n in (4, 64)]
    fixed(CallbackList(monitors), 60, make_model(n_episodes=24, average_over="episodes"))
    few, many = (monitor.summary()["gradient/covariance_trace"].mean() for monitor in monitors)
    assert few == pytest.approx(many, rel=0.2)


def test_it_measures_the_gradient_of_the_update():
    for arguments in (
        {},
        {"average_over": "episodes", "discount_state_distribution": True, "gamma": 0.9, "baseline": None},
        {"reward_to_go": False, "normalize_advantage": False, "baseline": "leave_one_out"},
        {"complete_episodes": False, "gae_lambda": 0.9, "ent_coef": 0.0},
        {"complete_episodes": False, "rollout_buffer_class": RolloutBuffer, "average_over": "episodes"},
    ):
        model, monitor = cartpole(**arguments), GradientMonitor(every_n_updates=1, compare_baselines="gamma" in arguments)
        model.learn(1, callback=monitor)
        assert monitor.summary()["gradient/norm"].iloc[0] == pytest.approx(
            model.logger.name_to_value["train/grad_norm"], rel=1e-4
        ), arguments


def test_the_comparison_is_what_those_baselines_would_measure():
    def present(baseline: str | None, reward_to_go: bool) -> float:
        monitor = GradientMonitor(every_n_updates=1)
        cartpole(baseline=baseline, reward_to_go=reward_to_go, normalize_advantage=False).learn(1, callback=monitor)
        return monitor.summary()["gradient/covariance_trace"].iloc[0]

    monitor = GradientMonitor(every_n_updates=1, compare_baselines=True)
    cartpole(baseline="leave_one_out", normalize_advantage=False).learn(1, callback=monitor)
    row = monitor.summary().iloc[0]
    reference = present("leave_one_out", True)
    for baseline in (None, "mean", "linear"):
        expected = present(baseline, True) / reference
        assert row[f"gradient/variance_ratio_{baseline or 'none'}"] == pytest.approx(expected, rel=1e-4)
    expected = present("leave_one_out", False) / reference
    assert row["gradient/variance_ratio_leave_one_out_whole_episode"] == pytest.approx(expected, rel=1e-4)
    assert "gradient/variance_ratio_leave_one_out" not in row and "gradient/variance_ratio_value" not in row


def test_the_ratios_are_ratios_of_averages():
    monitor = GradientMonitor(every_n_updates=1, decay=0.5)
    cartpole(learning_rate=1e-2).learn(600, callback=monitor)
    summary = monitor.summary()
    weights = 0.5 ** np.arange(len(summary))[::-1]
    signal = (weights * summary["gradient/squared_norm"]).sum()
    noise = (weights * summary["gradient/covariance_trace"]).sum()
    per_episode = (weights * summary["gradient/covariance_trace"] * summary["rollout/n_episodes"]).sum()
    assert len(summary) > 2
    assert summary["gradient/snr"].iloc[-1] == pytest.approx(signal / noise)
    assert summary["gradient/noise_scale_episodes"].iloc[-1] == pytest.approx(per_episode / signal)


# It changes nothing


class WithState(BaseFeaturesExtractor):
    """An extractor with dropout and a batch normalization."""

    def __init__(self, observation_space: spaces.Box):
        super().__init__(observation_space, features_dim=8)
        self.layers = th.nn.Sequential(th.nn.Linear(observation_space.shape[0], 8), th.nn.BatchNorm1d(8), th.nn.Dropout(0.2))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layers(observations)


def box(actions: spaces.Space, observations: spaces.Space | None = None) -> DummyVecEnv:
    observations = observations or spaces.Box(-1, 1, (3,))
    return vec(*(Scripted([3, 5, 4], observations, actions, reward=float) for _ in range(2)))


IMAGE = spaces.Box(0, 255, (36, 36, 1), np.uint8)
MODELS: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "cartpole": ("MlpPolicy", lambda: make_vec_env("CartPole-v1", 2, seed=0), {}),
    "one environment": ("MlpPolicy", lambda: make_vec_env("CartPole-v1", 1, seed=0), {"baseline": "linear"}),
    "state": ("MlpPolicy", lambda: box(spaces.Discrete(2)), {"policy_kwargs": {"features_extractor_class": WithState}}),
    "Gaussian": ("MlpPolicy", lambda: box(spaces.Box(-1, 1, (2,))), {"baseline": "mean", "ent_coef": 0.1}),
    "gSDE": ("MlpPolicy", lambda: box(spaces.Box(-1, 1, (2,))), {"use_sde": True, "sde_sample_freq": 4}),
    "squashed gSDE": (
        "MlpPolicy",
        lambda: box(spaces.Box(-1, 1, (2,))),
        {"use_sde": True, "policy_kwargs": {"squash_output": True}},
    ),
    "MultiDiscrete": ("MlpPolicy", lambda: box(spaces.MultiDiscrete([2, 3])), {"baseline": None, "reward_to_go": False}),
    "MultiBinary": ("MlpPolicy", lambda: box(spaces.MultiBinary(3)), {"baseline": "leave_one_out", "n_episodes": 3}),
    "image": ("CnnPolicy", lambda: box(spaces.Discrete(2), IMAGE), {"policy_kwargs": {"net_arch": []}}),
    "Dict": ("MultiInputPolicy", lambda: box(spaces.Discrete(2), spaces.Dict(a=spaces.Box(-1, 1, (3,)), b=IMAGE)), {}),
    "fragments": ("MlpPolicy", lambda: make_vec_env("CartPole-v1", 2, seed=0), {"complete_episodes": False}),
    "SB3's buffer": (
        "MlpPolicy",
        lambda: make_vec_env("CartPole-v1", 2, seed=0),
        {"complete_episodes": False, "rollout_buffer_class": RolloutBuffer},
    ),
    "callable": ("MlpPolicy", lambda: box(spaces.Discrete(2)), {"baseline": lambda returns, timesteps, ids: 0.1 * timesteps}),
}


class Copies(BaseCallback):
    """Copies the policy after each rollout, which a graph in it would make impossible."""

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        copy.deepcopy(self.model.policy)
        assert all(parameter.grad is None or not parameter.grad.requires_grad for parameter in self.model.policy.parameters())


@pytest.mark.filterwarnings("ignore:.*compare_baselines.*:UserWarning")
@pytest.mark.parametrize("name", MODELS)
def test_the_weights_are_the_same_to_the_last_bit(name):
    policy, make_env, arguments = MODELS[name]

    def learn(callback: BaseCallback | None) -> REINFORCE:
        defaults: dict[str, Any] = {"n_steps": 20, "seed": 3, "device": "cpu"}
        if policy == "MlpPolicy" and "policy_kwargs" not in arguments:
            defaults["policy_kwargs"] = {"net_arch": [8]}
        model = REINFORCE(policy, make_env(), **{**defaults, **arguments})
        n_updates = 2 if policy != "MlpPolicy" else 5
        return model.learn(n_updates * 40, callback=callback)

    monitor = GradientMonitor(every_n_updates=1, compare_baselines=True)
    without, with_monitor = learn(None), learn(CallbackList([monitor, Copies()]))
    assert len(monitor.summary()) > 0 and monitor.summary()["gradient/covariance_trace"].notna().all()
    for (key, a), (other, b) in zip(
        without.policy.state_dict().items(), with_monitor.policy.state_dict().items(), strict=True
    ):
        assert key == other and th.equal(a, b), key
    for a, b in zip(
        without.policy.optimizer.state_dict()["state"].values(),
        with_monitor.policy.optimizer.state_dict()["state"].values(),
        strict=True,
    ):
        assert all(th.equal(a[key], b[key]) for key in a)


def test_it_leaves_random_numbers_gradients_and_modes_alone():
    policy, make_env, arguments = MODELS["state"]
    model = REINFORCE(policy, make_env(), n_steps=20, seed=0, device="cpu", **arguments)
    model.learn(100)
    model.policy.set_training_mode(True)  # as a callback before it might leave it
    before = (th.get_rng_state(), np.random.get_state()[1].copy())
    batch = coming_batch(model)
    assert batch.episodes is not None
    weighting = present_weighting(model, batch)
    state = copy.deepcopy(model.policy.state_dict())
    gradients = [None if parameter.grad is None else parameter.grad.clone() for parameter in model.policy.parameters()]
    groups, sizes = divide(batch.episodes, 4)
    weights, shares = weighting.weights[None], weighting.shares[None]
    distribution = model.policy.action_dist.distribution
    parameters = model.actor_critic.actor_parameters(batch)
    measure_noise(model.actor_critic, batch, weights, shares, groups, sizes, parameters)
    assert th.equal(before[0], th.get_rng_state()) and np.array_equal(before[1], np.random.get_state()[1])
    assert all(th.equal(tensor, state[key]) for key, tensor in model.policy.state_dict().items())
    for parameter, gradient in zip(model.policy.parameters(), gradients, strict=True):
        assert parameter.grad is gradient or th.equal(parameter.grad, gradient)
    assert all(module.training for module in model.policy.modules())
    assert model.policy.action_dist.distribution is distribution


# What it logs


def test_it_shows_in_the_dump_behind_the_rollout(tmp_path):
    model = cartpole(seed=1, n_steps=256)
    model.set_logger(configure(str(tmp_path), ["csv"]))
    model.learn(512, callback=GradientMonitor(every_n_updates=1, compare_baselines=True))
    header, first, *_ = (tmp_path / "progress.csv").read_text().splitlines()
    row = dict(zip(header.split(","), first.split(","), strict=False))
    for key in (*KEYS, "variance_ratio_none", "variance_ratio_mean", "variance_ratio_leave_one_out", "variance_ratio_linear"):
        assert float(row[f"gradient/{key}"]) is not None
    assert float(row["gradient/variance_ratio_value_whole_episode"]) > 0


def test_the_rhythm_goes_on_in_the_next_learn():
    model, monitor = cartpole(), GradientMonitor(every_n_updates=3)
    model.learn(128 * 4, callback=monitor)
    n_updates = model._n_updates
    model.learn(128 * 8, callback=monitor, reset_num_timesteps=False)
    measured = monitor.summary()["train/n_updates"].tolist()
    assert measured == list(range(0, model._n_updates, 3)) and measured[-1] > n_updates


def test_a_batch_of_one_episode_is_passed_by():
    model, monitor = make_model(n_episodes=1), GradientMonitor(every_n_updates=1)
    model.learn(20, callback=monitor)
    assert monitor.summary().empty
    assert not any(key.startswith("gradient/") for key in model.logger.name_to_value)
    with pytest.raises(ValueError, match="at least one measurement"):
        monitor.plot("nothing.png")


@no_warnings
def test_where_there_is_no_gradient_there_are_no_ratios():
    env = vec(Scripted([3], reward=lambda timestep: 0.0))
    model, monitor = REINFORCE("MlpPolicy", env, baseline=None, n_steps=12, device="cpu"), GradientMonitor(1, True)
    model.learn(12, callback=monitor)
    row = monitor.summary().iloc[0]
    assert row["gradient/norm"] == 0.0 and row["gradient/covariance_trace"] == 0.0
    assert row[["gradient/snr", "gradient/noise_scale_episodes", "gradient/cosine"]].isna().all()


def test_a_signal_that_is_not_there_is_not_logged():
    model, monitor = make_model(n_episodes=2, average_over="episodes"), GradientMonitor(1, decay=1e-9)
    fixed(monitor, 60, model)
    summary = monitor.summary()
    negative = summary["gradient/squared_norm"] <= 0
    assert negative.any() and not negative.all()
    assert (summary["gradient/snr"].isna() == negative).all()
    assert (summary["gradient/noise_scale_episodes"].dropna() > 0).all()
    assert summary["gradient/cosine"].between(-1, 1).all()


def test_it_draws_a_png(tmp_path):
    monitor = GradientMonitor(every_n_updates=1, compare_baselines=True)
    cartpole().learn(300, callback=monitor)
    monitor.plot(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert "matplotlib.pyplot" not in vars(sys.modules["sb3_reinforce.callbacks"])


@pytest.mark.parametrize(("module", "method"), [("pandas", "summary"), ("matplotlib.figure", "plot")])
def test_what_is_missing_is_named(module, method, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"sb3-reinforce\[plot\]"):
        getattr(GradientMonitor(), method)(*(["figure.png"] if method == "plot" else []))


@pytest.mark.parametrize(
    "arguments",
    [{"every_n_updates": 0}, {"compare_baselines": "yes"}, {"max_groups": 1}, {"decay": 0.0}, {"decay": 1.5}],
)
def test_bad_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        GradientMonitor(**arguments)


def test_other_algorithms_are_refused():
    with pytest.raises(ValueError, match="needs a model of class REINFORCE, got A2C"):
        A2C("MlpPolicy", "CartPole-v1", device="cpu").learn(5, callback=GradientMonitor())


def test_fragments_have_nothing_to_compare_with():
    monitor = GradientMonitor(every_n_updates=1, compare_baselines=True)
    with pytest.warns(UserWarning, match="complete_episodes=False"):
        cartpole(complete_episodes=False).learn(200, callback=monitor)
    assert not any("variance_ratio" in column for column in monitor.summary())


def test_an_update_of_its_own_agrees_with_the_brute_force_of_the_steps():
    model = make_model(n_episodes=8, average_over="episodes", baseline="value")
    steps = collect_estimates(model, 200).steps
    monitor = GradientMonitor(1, decay=1.0)
    fixed(monitor, 200, model)
    trace = steps.var(axis=0, ddof=1).sum()
    assert monitor.summary()["gradient/covariance_trace"].mean() == pytest.approx(trace, rel=0.2)
