"""The natural step of a whole update against the exact inverse of the Fisher information."""

import copy
import math
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import TRPO
from stable_baselines3.common.distributions import kl_divergence
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_reinforce import REINFORCE
from sb3_reinforce.actor_critic.batch import sub_sample
from sb3_reinforce.distributed import ALONE
from sb3_reinforce.update import kl, natural_step
from sb3_reinforce.update.fisher import scaled_step, solve
from tests.helpers.environments import Scripted
from tests.update.natural import ACTIONS, TINY, actor, divergence, episodes, exact_fisher, exact_step, flat, make, moved


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"cg_damping": 1e-3},
        {"cg_damping": 2.0, "target_kl": 1e-4},
        {"sub_sampling_factor": 3, "cg_damping": 0.01},
        {"ent_coef": 0.3, "target_kl": 0.3},
        {"baseline": None, "normalize_advantage": False},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ACTIONS)
def test_the_step_is_that_of_the_exact_inverse(name: str, kwargs: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(natural_step, "WORST", math.inf)  # it may be shortened else
    model = make(episodes(ACTIONS[name], n_envs=2), learn=80, cg_max_steps=200, policy_kwargs=TINY, **kwargs)
    assert model._n_updates >= 1
    expected = exact_step(model, kwargs.get("sub_sampling_factor", 1))
    assert float((moved(model) - expected).norm() / expected.norm()) < 2e-3


def test_the_equations_of_a_large_batch_are_solved_with_a_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(natural_step, "WORST", math.inf)
    monkeypatch.setattr(natural_step, "OF_TIMESTEPS", 8)
    model = make(episodes(ACTIONS["discrete"], n_envs=2), learn=80, cg_max_steps=200, policy_kwargs=TINY)
    n_timesteps = len(model.trained_on.actions)
    part, whole, step = exact_step(model, n_timesteps // 8), exact_step(model, 1), moved(model)
    assert n_timesteps >= 32
    assert float(th.cosine_similarity(step, part, dim=0)) > 1 - 1e-5 > float(th.cosine_similarity(whole, part, dim=0))
    rows = sub_sample(n_timesteps, n_timesteps // 8, ALONE)
    fisher = exact_fisher(model.before, model.trained_on.observations[rows])
    assert float(0.5 * step.double() @ fisher @ step.double()) == pytest.approx(0.01, rel=1e-2)


def test_how_far_a_large_batch_has_moved_the_policy_is_measured_on_a_part_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kl, "MEASURED_ON", 8)
    model = make(episodes(ACTIONS["discrete"], n_envs=2), learn=80)
    rows = sub_sample(len(model.trained_on.actions), len(model.trained_on.actions) // 8, ALONE)
    observations, actions = model.trained_on.observations[rows], model.trained_on.actions[rows].flatten()
    with th.no_grad():
        old = model.before.float().evaluate_actions(observations, actions)[1]
        log_ratio = model.policy.evaluate_actions(observations, actions)[1] - old
    assert 8 <= len(rows) < len(model.trained_on.actions)
    measured = float((log_ratio.exp() - 1 - log_ratio).mean())
    assert model.logger.name_to_value["train/approx_kl"] == pytest.approx(measured, rel=1e-2)


@pytest.mark.parametrize("name", ACTIONS)
def test_without_damping_the_step_is_that_of_the_pseudo_inverse(name: str) -> None:
    """The logits of a softmax have a direction that changes nothing."""
    kwargs: dict[str, Any] = {"cg_damping": 0.0, "cg_max_steps": 100, "policy_kwargs": {"net_arch": []}}
    model = make(episodes(ACTIONS[name], n_envs=2), learn=80, **kwargs)
    expected = exact_step(model)
    assert float((moved(model) - expected).norm() / expected.norm()) < 1e-4


def test_a_gradient_of_any_scale_gives_the_same_step() -> None:
    matrix = th.diag(th.tensor([1.0, 2.0, 0.0]))
    gradient = th.tensor([1.0, -3.0, 0.0])
    expected = th.tensor([1.0 / 1.1, -3.0 / 2.1, 0.0])
    for scale in (1e-30, 1e-6, 1.0, 1e30):
        x = solve(matrix.mv, scale * gradient, 15, 0.1)
        th.testing.assert_close(x / x[0] * expected[0], expected, rtol=1e-4, atol=1e-6)
        step = scaled_step(matrix.mv, x, 0.02)
        assert float(0.5 * step @ matrix @ step) == pytest.approx(0.02, rel=1e-5)
        assert step[0] > 0 > step[1]


def test_the_random_numbers_of_the_training_are_left_alone() -> None:
    results = []
    for seed in (3, 4):
        expected = th.rand(1, generator=th.Generator().manual_seed(seed))
        th.manual_seed(seed)
        results.append(solve(lambda v: v * th.arange(4), th.tensor([0.0, 1.0, 1.0, 1.0]), 2, 0.1))
        assert th.equal(th.rand(1), expected)
    assert th.equal(*results)


@pytest.mark.parametrize("name", ACTIONS)
def test_the_divergence_of_an_update_is_the_target(name: str) -> None:
    model = make(episodes(ACTIONS[name]), learn=40, target_kl=1e-4)
    with th.no_grad():
        assert divergence(model) == pytest.approx(1e-4, rel=0.05)


def says(model: REINFORCE, deviation: float) -> REINFORCE:
    """With a critic whose values have nothing to do with the returns."""
    with th.no_grad():
        for name, parameter in model.policy.named_parameters():
            if "value" in name:
                parameter.normal_(0.0, deviation, generator=th.Generator().manual_seed(0))
    return model


@pytest.mark.parametrize("normalize_advantage", [True, False])
@pytest.mark.parametrize(("deviation", "mean"), [(0.01, 100.0), (2.0, 100.0), (20.0, 100.0), (20.0, 0.0)])
def test_where_returns_are_alike_a_step_is_shortened_by_what_the_critic_adds_to_their_variance(
    deviation: float, mean: float, normalize_advantage: bool
) -> None:
    rng = np.random.default_rng(0)
    env = Scripted((1,), spaces.Box(-1.0, 1.0, (3,)), reward=lambda _: mean + rng.normal())
    kwargs: dict[str, Any] = {"target_kl": 1e-3, "normalize_advantage": normalize_advantage}
    model = says(make(env, **kwargs), deviation).learn(32)
    batch = model.trained_on
    returns, advantages = batch.returns.double(), batch.advantages.double()
    share = min(1.0, float(returns.var() / advantages.var())) if mean > 0.0 else 1.0
    assert (share > 0.99) == (deviation < 1.0 or mean == 0.0)
    assert model.logger.name_to_value["train/target_kl"] == pytest.approx(share**2 * 1e-3, rel=1e-4)
    with th.no_grad():
        assert divergence(model) == pytest.approx(share**2 * 1e-3, rel=0.05)


@pytest.mark.parametrize("kwargs", [{"baseline": "leave_one_out"}, {"baseline": "mean"}, {"reward_to_go": False}], ids=str)
def test_advantages_without_a_critics_values_or_of_whole_episodes_do_not_shorten_the_step(kwargs: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    env = Scripted((1,), spaces.Box(-1.0, 1.0, (3,)), reward=lambda _: 100.0 + rng.normal())
    model = says(make(env, target_kl=1e-3, **kwargs), 20.0).learn(32)
    assert model.logger.name_to_value["train/target_kl"] == 1e-3


def test_a_critic_that_is_wrong_where_all_returns_are_alike_moves_nothing() -> None:
    """As in a task that is solved: whatever was done was as good as anything else."""
    env = Scripted(lengths=(1,), observation_space=spaces.Box(-1.0, 1.0, (3,)), reward=lambda _: 1.0)
    model = says(REINFORCE("MlpPolicy", env, n_steps=32, ent_coef=0.0, seed=0, device="cpu"), 1.0)
    before = flat(actor(model.policy))
    model.learn(64)
    assert model.logger.name_to_value["train/grad_norm"] > 0.0
    assert th.equal(flat(actor(model.policy)), before)


@pytest.mark.parametrize("squash", [False, True])
def test_the_divergence_of_an_update_is_the_target_with_gsde(squash: bool) -> None:
    kwargs = {"squash_output": squash}
    model = make(episodes(ACTIONS["box"]), learn=40, use_sde=True, target_kl=1e-4, policy_kwargs=kwargs)
    with th.no_grad():
        assert divergence(model) == pytest.approx(1e-4, rel=0.05)
    assert (model.policy.log_std != model.before.log_std).any()


@pytest.mark.parametrize("kwargs", [{}, {"critic_learning_rate": 1e-3}, {"baseline": None}, {"vf_coef": 0.0}], ids=str)
def test_the_learning_rate_is_the_critics_alone(kwargs: dict[str, Any]) -> None:
    models = [
        make(episodes(ACTIONS["box"]), learn=100, learning_rate=rate, max_grad_norm=norm, baseline=baseline)
        for rate, norm, baseline in ((1e-2, 0.5, None), (0.0, 0.5, None), (1.0, 1e-9, None))
    ]
    weights = [flat(actor(model.policy)) for model in models]
    assert th.equal(weights[0], weights[1]) and th.equal(weights[0], weights[2])
    model = make(episodes(ACTIONS["box"]), learn=100, **kwargs)
    states = model.policy.optimizer.state
    assert all(parameter not in states or not states[parameter] for parameter in actor(model.policy))
    assert all(parameter.grad is None for parameter in actor(model.policy))
    critic = [(name, p) for name, p in model.policy.named_parameters() if "value" in name]
    before = dict(model.before.named_parameters())
    changed = [not th.equal(p.double(), before[name]) for name, p in critic]
    assert all(changed) if model.uses_critic else not any(changed)


def test_the_critic_is_fitted_as_without() -> None:
    """The joint step and the passes of the first update are those of an update without the natural gradient."""
    models = [make(episodes(ACTIONS["discrete"]), learn=32, natural_gradient=natural) for natural in (True, False)]
    critics = [flat([p for n, p in model.policy.named_parameters() if "value" in n]) for model in models]
    th.testing.assert_close(*critics)
    assert not th.allclose(*(flat(actor(model.policy)) for model in models))
    logs = [model.logger.name_to_value for model in models]
    assert logs[0]["train/grad_norm"] == pytest.approx(logs[1]["train/grad_norm"], rel=1e-5)


@pytest.mark.parametrize("part", ["mlp_extractor.policy_net.0", "action_net", "log_std"])
def test_frozen_parameters_stay(part: str) -> None:
    model = make(episodes(ACTIONS["box"]), policy_kwargs=TINY, cg_max_steps=100)
    names = [name for name, _ in model.policy.named_parameters() if name.startswith(part)]
    for name, parameter in model.policy.named_parameters():
        parameter.requires_grad_(name not in names)
    model.learn(40)
    before = dict(model.before.named_parameters())
    for name, parameter in model.policy.named_parameters():
        assert th.equal(parameter.double(), before[name]) == (name in names), name
    expected = exact_step(model)
    assert float((moved(model) - expected).norm() / expected.norm()) < 2e-3


def test_with_a_frozen_actor_the_critic_learns_on() -> None:
    model = make(episodes(ACTIONS["discrete"]))
    for parameter in actor(model.policy):
        parameter.requires_grad_(False)
    model.learn(40)
    before = dict(model.before.named_parameters())
    changed = {name for name, p in model.policy.named_parameters() if not th.equal(p.double(), before[name])}
    assert changed and all("value" in name for name in changed)


def test_the_arguments_are_saved(tmp_path: Any) -> None:
    arguments = {"natural_gradient": True, "target_kl": 0.02, "cg_max_steps": 7, "cg_damping": 0.2, "sub_sampling_factor": 2}
    model = make(episodes(ACTIONS["discrete"]), learn=40, **arguments)
    model.save(tmp_path / "model")
    loaded = REINFORCE.load(tmp_path / "model", env=episodes(ACTIONS["discrete"]), device="cpu")
    assert {name: getattr(loaded, name) for name in arguments} == arguments
    assert th.equal(flat(actor(loaded.policy)), flat(actor(model.policy)))
    loaded.learn(40)


def test_the_same_seed_gives_the_same_weights() -> None:
    weights = [flat(actor(make(episodes(ACTIONS["box"]), learn=100).policy)) for _ in range(2)]
    assert th.equal(*weights)


def test_fixed_length_rollouts() -> None:
    model = make(episodes(ACTIONS["discrete"], n_envs=2), learn=200, complete_episodes=False, n_steps=16, gae_lambda=0.9)
    assert model._n_updates > 2 and moved(model).any()


def test_it_learns_cartpole() -> None:
    model = REINFORCE("MlpPolicy", make_vec_env("CartPole-v1", 4), n_steps=256, natural_gradient=True, seed=0, device="cpu")
    model.learn(30_000)
    mean, _ = evaluate_policy(model, gym.make("CartPole-v1"), n_eval_episodes=5, warn=False)
    assert mean > 300


@pytest.mark.parametrize(("name", "n_dimensions"), [("discrete", 1), ("multi_discrete", 1), ("box", 2), ("multi_binary", 3)])
def test_trpo_averages_over_dimensions_what_is_a_sum_here(name: str, n_dimensions: int) -> None:
    """The page for those who come from TRPO says so."""
    ours = make(episodes(ACTIONS[name]), learn=32, policy_kwargs=TINY)
    assert ours.logger.name_to_value["train/kl_divergence"] == pytest.approx(divergence(ours), rel=1e-3)
    trpo = TRPO("MlpPolicy", episodes(ACTIONS[name]), n_steps=32, batch_size=32, policy_kwargs=TINY, seed=0, device="cpu")
    before = copy.deepcopy(trpo.policy)
    trpo.learn(32)
    logged = trpo.logger.name_to_value["train/kl_divergence_loss"]
    with th.no_grad():
        observations = next(trpo.rollout_buffer.get()).observations
        moved_by = kl_divergence(trpo.policy.get_distribution(observations), before.get_distribution(observations))
    assert logged > 0 and float(moved_by.sum() / len(observations)) == pytest.approx(n_dimensions * logged, rel=1e-3)
