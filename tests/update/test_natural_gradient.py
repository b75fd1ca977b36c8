"""
The natural gradient: the step of a whole update against the exact inverse of the Fisher information.

The reference shares no code with the package: in float64, with the Jacobian of the network's outputs row by row, the Fisher
information of each head by its formula, and a dense solver.
"""

import copy
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.distributions import DiagGaussianDistribution, Distribution
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from sb3_reinforce import REINFORCE
from sb3_reinforce.actor_critic import batch as batches
from sb3_reinforce.actor_critic.actor_critic import make_actor_critic
from sb3_reinforce.actor_critic.batch import Batch
from sb3_reinforce.actor_critic.inspection import has_sb3_forward
from sb3_reinforce.distributed import ALONE, Alone, Group
from sb3_reinforce.update.fisher import Fisher, NoDirectionError, scaled_step, solve, sub_sample
from sb3_reinforce.update.kl import kl_divergence
from sb3_reinforce.update.natural_step import (
    Settings,
    TooFarError,
    check_advantages,
    check_gain,
    distributions_as_it_acts,
    divergence_from,
    natural_step,
)
from tests.helpers.environments import Scripted, vec

VECTOR = spaces.Box(-1, 1, (3,), np.float32)
IMAGE = spaces.Box(0, 255, (1, 36, 36), np.uint8)
ACTIONS: dict[str, spaces.Space] = {
    "discrete": spaces.Discrete(3),
    "box": spaces.Box(-1, 1, (2,), np.float32),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "multi_binary": spaces.MultiBinary(3),
}
TINY: dict[str, Any] = {"net_arch": [4]}


def episodes(actions: spaces.Space, observations: spaces.Space = VECTOR, n_envs: int = 1) -> DummyVecEnv:
    envs = [Scripted((5, 9, 3), observations, actions, reward=lambda t: math.cos(3.0 * t)) for _ in range(n_envs)]
    return vec(*envs)


class Watched(REINFORCE):
    """Keeps the policy as it was before the last update, in float64, and the last batch."""

    def train(self) -> None:
        self.before = copy.deepcopy(self.policy).double()
        super().train()
        self.trained_on = next(self.rollout_buffer.get(shuffle=False))


def make(env: Any, policy: Any = "MlpPolicy", learn: int = 0, **kwargs: Any) -> Watched:
    arguments: dict[str, Any] = {"n_steps": 32, "natural_gradient": True, "seed": 0, "device": "cpu", **kwargs}
    model = Watched(policy, env, **arguments)
    return model.learn(learn) if learn else model


def flat(tensors: Sequence[th.Tensor]) -> th.Tensor:
    return th.cat([tensor.detach().double().flatten() for tensor in tensors])


def actor(policy: ActorCriticPolicy) -> list[nn.Parameter]:
    return [p for name, p in policy.named_parameters() if "value" not in name and p.requires_grad]


def moved(model: Watched) -> th.Tensor:
    """What the last update added to the actor's weights."""
    return flat(actor(model.policy)) - flat(actor(model.before))


# The reference


def distribution(policy: ActorCriticPolicy, observations: th.Tensor) -> Distribution:
    """In float64, which SB3's preprocessing does not leave."""
    return policy._get_action_dist_from_latent(policy.mlp_extractor.forward_actor(observations.double()))


def jacobian(outputs: th.Tensor, parameters: list[nn.Parameter]) -> th.Tensor:
    """Shape ``(*outputs.shape, n_parameters)``"""
    rows = []
    for output in outputs.flatten():
        parts = th.autograd.grad(output, parameters, retain_graph=True, allow_unused=True)
        rows.append(flat([th.zeros_like(p) if part is None else part for p, part in zip(parameters, parts, strict=True)]))
    return th.stack(rows).view(*outputs.shape, -1)


def head_fisher(space: spaces.Space, outputs: th.Tensor) -> th.Tensor:
    """Of one action, in the outputs of the network (for a Gaussian: means and logarithms of the deviations)."""
    if isinstance(space, spaces.Box):
        mean, log_std = outputs.chunk(2)
        return th.diag(th.cat([(-2 * log_std).exp(), 2.0 * th.ones_like(mean)]))
    if isinstance(space, spaces.MultiBinary):
        p = th.sigmoid(outputs)
        return th.diag(p * (1 - p))
    sizes = space.nvec.tolist() if isinstance(space, spaces.MultiDiscrete) else [len(outputs)]
    parts = [th.softmax(part, dim=0) for part in outputs.split(sizes)]
    return th.block_diag(*(th.diag(p) - th.outer(p, p) for p in parts))


def exact_fisher(policy: ActorCriticPolicy, observations: th.Tensor) -> th.Tensor:
    parameters = actor(policy)
    outputs = policy.action_net(policy.mlp_extractor.policy_net(observations.double()))
    if isinstance(policy.action_space, spaces.Box):
        outputs = th.cat([outputs, policy.log_std.expand_as(outputs)], dim=1)
    parts = [
        J.T @ head_fisher(policy.action_space, row.detach()) @ J
        for J, row in zip(jacobian(outputs, parameters), outputs, strict=True)
    ]
    return th.stack(parts).mean(dim=0)


def exact_step(model: Watched, sub_sampling_factor: int = 1) -> th.Tensor:
    policy, batch = model.before, model.trained_on
    one = distribution(policy, batch.observations)
    actions = batch.actions.double()
    log_prob = one.log_prob(actions.flatten() if isinstance(policy.action_space, spaces.Discrete) else actions)
    entropy = one.entropy()
    assert entropy is not None
    advantages = batch.advantages.double()
    if model.normalize_advantage:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    objective = (advantages * log_prob).mean() + model.ent_coef * entropy.mean()
    gradient = jacobian(objective, actor(policy))
    fisher = exact_fisher(policy, batch.observations[sub_sample(len(actions), sub_sampling_factor, ALONE)])
    x = th.linalg.pinv(fisher + model.cg_damping * th.eye(len(fisher)), rtol=1e-12, hermitian=True) @ gradient
    whole = exact_fisher(policy, batch.observations)
    return th.sqrt(2 * model.target_kl / (x @ whole @ x)) * x


# The step


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
def test_the_step_is_that_of_the_exact_inverse(name: str, kwargs: dict[str, Any]) -> None:
    model = make(episodes(ACTIONS[name], n_envs=2), learn=80, cg_max_steps=200, policy_kwargs=TINY, **kwargs)
    assert model._n_updates >= 1
    expected = exact_step(model, kwargs.get("sub_sampling_factor", 1))
    assert float((moved(model) - expected).norm() / expected.norm()) < 2e-3


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


def divergence(model: Watched) -> float:
    """From the old to the new policy, a mean over the batch."""
    distributions = []
    for policy in (model.before, copy.deepcopy(model.policy).double()):
        one = distribution(policy, model.trained_on.observations).distribution
        distributions.append(one if isinstance(one, list) else [one])
    divergences = [th.distributions.kl_divergence(old, new) for old, new in zip(*distributions, strict=True)]
    return sum(float(part.sum()) for part in divergences) / len(model.trained_on.actions)


@pytest.mark.parametrize("name", ACTIONS)
def test_the_divergence_of_an_update_is_the_target(name: str) -> None:
    model = make(episodes(ACTIONS[name]), learn=40, target_kl=1e-4)
    with th.no_grad():
        assert divergence(model) == pytest.approx(1e-4, rel=0.05)


@pytest.mark.parametrize("squash", [False, True])
def test_the_divergence_of_an_update_is_the_target_with_gsde(squash: bool) -> None:
    kwargs = {"squash_output": squash}
    model = make(episodes(ACTIONS["box"]), learn=40, use_sde=True, target_kl=1e-4, policy_kwargs=kwargs)
    with th.no_grad():
        assert divergence(model) == pytest.approx(1e-4, rel=0.05)
    assert (model.policy.log_std != model.before.log_std).any()


# Fisher products


def batch_of(policy: ActorCriticPolicy, n: int = 20) -> tuple[th.Tensor, th.Tensor]:
    observations = th.as_tensor(np.random.default_rng(0).normal(size=(n, 3)).astype(np.float32))
    with th.no_grad():
        return observations, policy.get_distribution(observations).sample()


def fisher_of(
    policy: ActorCriticPolicy,
    observations: th.Tensor,
    actions: th.Tensor,
    parameters: list[nn.Parameter],
    workers: Alone = ALONE,
) -> Fisher:
    return Fisher(make_actor_critic(policy), Batch.of_observations(observations, actions), parameters, workers)


def take_step(
    policy: ActorCriticPolicy,
    gradient: Sequence[th.Tensor],
    parameters: list[nn.Parameter],
    observations: th.Tensor,
    actions: th.Tensor,
    weights: th.Tensor,
    settings: Settings,
    workers: Alone = ALONE,
) -> None:
    batch = Batch.of_observations(observations, actions)
    natural_step(make_actor_critic(policy), batch, weights, gradient, parameters, settings, workers)


def make_policy(name: str, cls: type[ActorCriticPolicy] = ActorCriticPolicy, **kwargs: Any) -> ActorCriticPolicy:
    th.manual_seed(0)
    return cls(VECTOR, ACTIONS[name], lambda _: 1e-2, **{**TINY, **kwargs})


@pytest.mark.parametrize("name", ACTIONS)
def test_pieces_and_workers_add_up(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy(name)
    observations, actions = batch_of(policy)
    reference = exact_fisher(copy.deepcopy(policy).double(), observations)
    whole = fisher_of(policy, observations, actions, actor(policy))
    vector = th.randn(sum(p.numel() for p in actor(policy)))
    expected = whole(vector)
    th.testing.assert_close(expected.double(), reference @ vector.double(), rtol=1e-4, atol=1e-5)

    here = slice(0, 13)
    other = fisher_of(policy, observations[13:], actions[13:], actor(policy))

    class WithAnother(Group):
        def add_up(self, tensors: Sequence[th.Tensor]) -> None:
            (total,) = tensors
            if total.shape == vector.shape:
                total += 7.0 * other(vector)
            else:  # the number of timesteps, and which parameters count
                total += th.cat([th.tensor([7.0]), th.ones(len(other.parameters))])

    worker = fisher_of(policy, observations[here], actions[here], actor(policy), WithAnother(0, 2))
    assert worker.n_timesteps == 20
    th.testing.assert_close(worker(vector), expected)

    monkeypatch.setattr(batches, "MAX_TIMESTEPS", 3)
    th.testing.assert_close(fisher_of(policy, observations, actions, actor(policy))(vector), expected)


def test_the_step_takes_the_sums_over_workers() -> None:
    """With twice the Fisher information the steps are shorter by the root of two."""
    policy = make_policy("box", net_arch=[])
    observations, actions = batch_of(policy)
    before = flat(actor(policy))
    gradient = [th.ones_like(parameter) for parameter in actor(policy)]
    steps = []

    class Scaled(Group):
        def __init__(self, factor: float):
            super().__init__(0, 2)
            self.factor = factor

        def add_up(self, tensors: Sequence[th.Tensor]) -> None:
            (total,) = tensors
            if total.numel() == len(before):
                total *= self.factor

    for factor in (1.0, 2.0):
        take_step(
            policy, gradient, actor(policy), observations, actions, th.ones(20), Settings(0.01, 50, 0.0, 1), Scaled(factor)
        )
        steps.append(flat(actor(policy)) - before)
        th.nn.utils.vector_to_parameters(before.float(), actor(policy))
    th.testing.assert_close(steps[0], math.sqrt(2.0) * steps[1], rtol=1e-3, atol=1e-6)


def test_parameters_that_do_not_reach_the_distribution_stay() -> None:
    policy = make_policy("discrete")
    spare = nn.Parameter(th.ones(2))
    parameters = [spare, *actor(policy)]
    observations, actions = batch_of(policy)
    gradient = [th.ones_like(parameter) for parameter in parameters]
    take_step(policy, gradient, parameters, observations, actions, th.ones(20), Settings(0.01, 15, 0.1, 1))
    assert th.equal(spare, th.ones(2))


class Routed(BaseFeaturesExtractor):
    """A layer that only observations with a positive first number go through."""

    def __init__(self, observation_space: spaces.Space):
        super().__init__(observation_space, 3)
        self.layer = nn.Linear(3, 3)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        rows = observations[:, 0] > 0
        if not rows.any():
            return observations
        return th.where(rows.unsqueeze(1), self.layer(observations), observations)


@pytest.mark.parametrize("positive", [slice(0, 4), slice(16, 20)], ids=["at first", "at last"])
@pytest.mark.parametrize("sub_sampling_factor", [1, 20])
def test_a_layer_that_a_few_timesteps_go_through_counts(
    positive: slice, sub_sampling_factor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = make_policy("discrete", features_extractor_class=Routed)
    observations, actions = batch_of(policy)
    observations[:, 0] = -observations[:, 0].abs()
    observations[positive, 0] *= -1
    parameters = [p for p in actor(policy) if p.requires_grad]
    start, gradient, steps = flat(parameters), [th.ones_like(parameter) for parameter in parameters], []
    for size in (1000, 4):
        monkeypatch.setattr(batches, "MAX_TIMESTEPS", size)
        take_step(
            policy, gradient, parameters, observations, actions, th.ones(20), Settings(0.01, 30, 0.1, sub_sampling_factor)
        )
        steps.append(flat(parameters) - start)
        th.nn.utils.vector_to_parameters(start.float(), parameters)
    th.testing.assert_close(*steps, rtol=1e-3, atol=1e-6)
    n_routed = sum(p.numel() for p in policy.pi_features_extractor.parameters())
    assert n_routed == 12 and steps[1][:n_routed].all()


def test_a_layer_that_one_worker_does_not_need_counts() -> None:
    """Its part of each sum is as long as those of the others."""
    policy = make_policy("discrete", features_extractor_class=Routed)
    observations, actions = batch_of(policy)
    observations[:, 0] = -observations[:, 0].abs()
    parameters = actor(policy)
    n_parameters = sum(p.numel() for p in parameters)

    class WithAnother(Group):
        def add_up(self, tensors: Sequence[th.Tensor]) -> None:
            (total,) = tensors
            assert total.numel() in (1 + len(parameters), n_parameters)
            if total.numel() == 1 + len(parameters):
                total += 1.0

    alone = fisher_of(policy, observations, actions, parameters)
    assert len(alone.parameters) == len(parameters) - 2
    worker = fisher_of(policy, observations, actions, parameters, WithAnother(0, 2))
    assert len(worker.parameters) == len(parameters)
    vector = th.ones(n_parameters)
    product = worker(vector)
    assert not product[:12].any()
    th.testing.assert_close(product[12:], alone(vector[12:]) * 20 / 21)
    # A worker of whose timesteps none is in a sub-sample
    none = fisher_of(policy, observations[:0], actions[:0], parameters, WithAnother(0, 2))
    assert none.n_timesteps == 1.0 and not none(vector).any()


class UnitLength(BaseFeaturesExtractor):
    """Undefined where all numbers are zero, as no observation of the environment is."""

    def __init__(self, observation_space: spaces.Space):
        super().__init__(observation_space, 3)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return observations / observations.norm(dim=1, keepdim=True)


class OwnMethods(ActorCriticPolicy):
    def evaluate_actions(self, obs: Any, actions: th.Tensor) -> Any:
        return super().evaluate_actions(obs, actions)


@pytest.mark.parametrize("natural_gradient", [False, True])
@pytest.mark.parametrize("policy", [ActorCriticPolicy, OwnMethods])
def test_a_network_may_be_undefined_at_zero(policy: Any, natural_gradient: bool) -> None:
    kwargs = {"features_extractor_class": UnitLength}
    env = make_vec_env("Pendulum-v1", env_kwargs={"max_episode_steps": 20})
    model = make(env, policy, learn=32, natural_gradient=natural_gradient, policy_kwargs=kwargs)
    assert moved(model).any()


@pytest.mark.parametrize(("n_timesteps", "factor"), [(20, 1), (20, 3), (20, 7), (1, 5), (5, 2**70), (100, 10)])
def test_a_sub_sample_has_one_timestep_of_each_so_many(n_timesteps: int, factor: int) -> None:
    rows = sub_sample(n_timesteps, factor, ALONE).tolist()
    assert [row // factor for row in rows] == list(range(-(-n_timesteps // factor)))
    assert all(0 <= row < n_timesteps for row in rows)


def test_a_sub_sample_does_not_keep_time_with_the_episodes() -> None:
    """With episodes of ten steps every tenth timestep would be the first of one."""
    counts = np.bincount(sub_sample(10_000, 10, ALONE).numpy() % 10, minlength=10)
    assert counts.min() > 60 and counts.max() < 140


@pytest.mark.parametrize("parts", [(13, 7), (1, 19), (20, 0), (2, 3, 15)])
@pytest.mark.parametrize("factor", [1, 3, 8, 100])
def test_workers_draw_the_sub_sample_of_one_process(parts: tuple[int, ...], factor: int) -> None:
    class Among(Group):
        def gather(self, item: Any) -> list[Any]:
            return list(parts)

    drawn = [sub_sample(n, factor, Among(rank, len(parts))) + sum(parts[:rank]) for rank, n in enumerate(parts)]
    assert th.equal(th.cat(drawn), sub_sample(sum(parts), factor, ALONE))


def test_dropout_makes_no_divergence(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = make_policy("discrete")
    policy.mlp_extractor.policy_net.append(nn.Dropout(0.5))
    policy.set_training_mode(True)
    observations, actions = batch_of(policy)
    fisher = fisher_of(policy, observations, actions, actor(policy))
    vector = th.ones(sum(p.numel() for p in fisher.parameters))
    assert th.equal(fisher(vector), fisher(vector))
    assert fisher._divergence(fisher._pieces[0]).item() == pytest.approx(0.0, abs=1e-5)
    monkeypatch.setattr(batches, "MAX_TIMESTEPS", 3)
    in_pieces = fisher_of(policy, observations, actions, actor(policy))
    assert th.equal(in_pieces(vector), in_pieces(vector))
    th.rand(1)
    assert not th.equal(fisher_of(policy, observations, actions, actor(policy))(vector), in_pieces(vector))


def test_the_statistics_of_batch_normalization_are_those_without() -> None:
    class Normed(BaseFeaturesExtractor):
        def __init__(self, observation_space: spaces.Space):
            super().__init__(observation_space, 3)
            self.norm = nn.BatchNorm1d(3)

        def forward(self, observations: th.Tensor) -> th.Tensor:
            return self.norm(observations)

    states = []
    for natural in (True, False):
        kwargs = {"features_extractor_class": Normed}
        model = make(episodes(ACTIONS["discrete"]), learn=32, natural_gradient=natural, policy_kwargs=kwargs)
        states.append(model.policy.features_extractor.norm.state_dict())
    assert int(states[0]["num_batches_tracked"]) > 0
    for name in ("num_batches_tracked", "running_mean", "running_var"):
        th.testing.assert_close(states[0][name], states[1][name])


# The optimizer


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


# What it works with


OBSERVATIONS: dict[str, tuple[str, spaces.Space]] = {
    "image": ("CnnPolicy", IMAGE),
    "dict": ("MultiInputPolicy", spaces.Dict({"vector": VECTOR, "image": IMAGE, "number": spaces.Discrete(4)})),
    "discrete": ("MlpPolicy", spaces.Discrete(4)),
}


@pytest.mark.parametrize("actions", ACTIONS)
@pytest.mark.parametrize("observations", OBSERVATIONS)
@pytest.mark.parametrize("shared", [True, False])
def test_images_and_dicts(observations: str, actions: str, shared: bool) -> None:
    policy, space = OBSERVATIONS[observations]
    kwargs: dict[str, Any] = {"share_features_extractor": shared, "normalize_images": True}
    model = make(episodes(ACTIONS[actions], space, n_envs=2), policy, learn=32, target_kl=1e-4, policy_kwargs=kwargs)
    assert model.logger.name_to_value["train/approx_kl"] < 1e-3
    assert model._n_updates >= 1 and moved(model).any() and moved(model).isfinite().all()


def test_what_is_shared_is_the_actors_alone() -> None:
    """Else the value loss would move the policy through it: further than the natural step, at a usual learning rate."""
    models = [
        make(episodes(ACTIONS["discrete"], IMAGE), "CnnPolicy", learn=32, vf_coef=vf_coef, learning_rate=rate)
        for vf_coef, rate in ((0.5, 1e-2), (0.0, 1e-2), (0.5, 0.0))
    ]
    steps = [moved(model) for model in models]
    assert steps[0].any() and th.equal(steps[0], steps[1]) and th.equal(steps[0], steps[2])
    before = dict(models[0].before.named_parameters())
    critic = {name: p for name, p in models[0].policy.named_parameters() if "value" in name}
    assert critic and not any(th.equal(p.double(), before[name]) for name, p in critic.items())


class OwnEvaluation(ActorCriticPolicy):
    def evaluate_actions(self, obs: Any, actions: th.Tensor) -> Any:
        return super().evaluate_actions(obs, actions)


class OwnFeatures(ActorCriticPolicy):
    """SB3's ``get_distribution`` passes by this method."""

    def extract_features(self, obs: Any, features_extractor: Any = None) -> Any:
        return 3.0 * super().extract_features(obs, features_extractor)


@pytest.mark.parametrize("name", ACTIONS)
def test_policies_with_methods_of_their_own(name: str) -> None:
    model = make(episodes(ACTIONS[name]), OwnEvaluation, learn=40, policy_kwargs=TINY, cg_max_steps=100)
    assert not has_sb3_forward(model.policy)
    expected = exact_step(model)
    assert float((moved(model) - expected).norm() / expected.norm()) < 2e-3
    policies = [make_policy(name), make_policy(name, OwnFeatures)]
    observations, actions = batch_of(policies[0])
    vector = th.ones(sum(p.numel() for p in actor(policies[0])))
    products = [
        fisher_of(policy, scale * observations, actions, actor(policy))(vector)
        for policy, scale in zip(policies, (3.0, 1.0), strict=True)
    ]
    th.testing.assert_close(*products)


class Tempered(ActorCriticPolicy):
    """Its log-probabilities are not those of its distribution."""

    def evaluate_actions(self, obs: Any, actions: th.Tensor) -> Any:
        values, log_prob, entropy = super().evaluate_actions(obs, actions)
        return values, 2.0 * log_prob, entropy


class Heavy(DiagGaussianDistribution):
    """Student's t: PyTorch knows no divergence."""

    def proba_distribution(self, mean_actions: th.Tensor, log_std: th.Tensor) -> Any:
        self.distribution = th.distributions.StudentT(5.0, mean_actions, log_std.exp())  # type: ignore[assignment]
        return self


class HeavyPolicy(ActorCriticPolicy):
    def _build(self, lr_schedule: Any) -> None:
        self.action_dist = Heavy(2)
        super()._build(lr_schedule)


@pytest.mark.parametrize("policy, name, match", [(Tempered, "discrete", "Tempered"), (HeavyPolicy, "box", "StudentT")])
def test_a_policy_without_a_divergence_is_refused(policy: Any, name: str, match: str) -> None:
    with pytest.raises(ValueError, match=rf"^`natural_gradient=True` needs a .*{match}.*\.$"):
        make(episodes(ACTIONS[name]), policy)
    model = make(episodes(ACTIONS[name]), policy, natural_gradient=False)
    model.natural_gradient = True
    with pytest.raises(ValueError, match=match):
        model.learn(10)


class Bag(BaseFeaturesExtractor):
    """PyTorch has no second derivative of its layer."""

    def __init__(self, observation_space: spaces.Space):
        super().__init__(observation_space, 3)
        self.bag = nn.EmbeddingBag(4, 3)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.bag(th.zeros(len(observations), 2, dtype=th.long, device=observations.device)) + observations


def test_a_layer_without_a_second_derivative_is_refused() -> None:
    kwargs = {"features_extractor_class": Bag}
    model = make(episodes(ACTIONS["discrete"]), policy_kwargs=kwargs)
    with pytest.raises(ValueError, match=r"^`natural_gradient=True` needs layers .* twice.*_embedding_bag"):
        model.learn(10)
    assert model.num_timesteps == 0
    make(episodes(ACTIONS["discrete"]), natural_gradient=False, policy_kwargs=kwargs).learn(10)
    model.policy.features_extractor.requires_grad_(False)
    model.learn(40)
    assert moved(model).any()


# Refusals


def assert_refused(model: REINFORCE, match: str) -> None:
    before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    with pytest.raises(ValueError, match=rf"^{match}.*\.$"):
        model.learn(32)
    assert all(th.equal(tensor, before[name]) for name, tensor in model.policy.state_dict().items())
    assert not any(model.policy.optimizer.state.values())


def assert_left_alone(model: REINFORCE, match: str) -> None:
    """The policy is; the critic goes on, and so does the run."""
    before = flat(actor(model.policy))
    with pytest.warns(UserWarning, match=rf"^{match}.*No natural step is made in such updates\.$") as caught:
        model.learn(100)
    assert th.equal(flat(actor(model.policy)), before)
    assert model._n_updates > 1 and sum("direction" in str(warning.message) for warning in caught) == 1
    assert model.logger.name_to_value["train/approx_kl"] == 0 == model.logger.name_to_value["train/grad_norm"]


NO_DIRECTION: list[tuple[dict[str, Any], float]] = [
    # The critic's errors are no advantages
    ({}, 0.0),
    ({"gae_lambda": 0.9, "complete_episodes": False}, 0.0),
    ({"baseline": None}, 0.0),
    ({"baseline": None, "normalize_advantage": False}, 0.0),
    ({"baseline": "leave_one_out", "reward_to_go": False, "n_episodes": 4}, 0.3),
    ({"baseline": "leave_one_out", "normalize_advantage": False, "n_episodes": 4}, 0.3),
    ({"baseline": "mean", "reward_to_go": False}, 1 / 3),
    ({"baseline": "mean", "reward_to_go": False, "normalize_advantage": False, "gamma": 0.9}, 0.7),
    ({"baseline": None, "reward_to_go": False, "gamma": 0.93}, 1e3 / 7),
]


@pytest.mark.parametrize("kwargs, reward", NO_DIRECTION, ids=str)
def test_equal_returns_give_no_direction(kwargs: dict[str, Any], reward: float) -> None:
    """Not even by rounding errors, which the step's length would not know from a gradient."""
    model = make(vec(Scripted((7,), VECTOR, reward=lambda _: reward)), **kwargs)
    assert_left_alone(model, "The natural gradient needs a direction")


def test_the_divergence_may_follow_a_schedule() -> None:
    """It falls to nothing at the end, which is no error."""
    model = make(episodes(ACTIONS["box"]), learn=40, target_kl=lambda progress: 1e-4 if progress == 1.0 else 0.0)
    model.learn(40, reset_num_timesteps=False)
    assert not moved(model).any()
    for one in (th.tensor(1e-4), np.array(1e-4), np.array([1e-4])):
        model = make(episodes(ACTIONS["box"]), learn=40, target_kl=lambda _, one=one: one)
        assert model.logger.name_to_value["train/target_kl"] == pytest.approx(1e-4)


@pytest.mark.parametrize("bad", [-0.01, float("nan"), float("inf"), None, np.array([0.1, 0.1]), np.array("a")])
def test_a_schedule_with_a_bad_value_is_refused(bad: Any) -> None:
    model = make(episodes(ACTIONS["box"]), target_kl=lambda progress: bad)
    before = flat(model.policy.parameters())
    with pytest.raises(ValueError, match="`target_kl` must be a finite number of at least 0"):
        model.learn(40)
    assert th.equal(flat(model.policy.parameters()), before) and model.num_timesteps == 0


def test_a_schedule_is_looked_at_to_its_end_before_anything_is_played() -> None:
    model = make(episodes(ACTIONS["box"]), target_kl=lambda progress: progress - 0.5)
    with pytest.raises(ValueError, match=r"`target_kl` must be a finite number of at least 0, got -0\.5"):
        model.learn(40)
    assert model.num_timesteps == 0


def test_a_divergence_set_by_hand_or_of_numpy_counts() -> None:
    model = make(episodes(ACTIONS["box"]), target_kl=np.float32(0.01))
    model.target_kl = 1e-5
    model.learn(40)
    with th.no_grad():
        assert divergence(model) == pytest.approx(1e-5, rel=0.05)
    assert model.logger.name_to_value["train/target_kl"] == 1e-5


def with_advantages(advantages: th.Tensor, returns: th.Tensor) -> Batch:
    batch = Batch.of_observations(th.zeros(len(returns), 3), th.zeros(len(returns)))
    return dataclasses.replace(batch, advantages=advantages, returns=returns)


def test_small_differences_are_a_direction() -> None:
    returns = 1000.0 + 0.01 * th.arange(5)
    check_advantages(with_advantages(returns - 1000.0, returns), True, ALONE)
    with pytest.raises(ValueError, match="must differ"):
        check_advantages(with_advantages(th.full((5,), 0.3), returns), True, ALONE)
    check_advantages(with_advantages(th.full((5,), 0.3), returns), False, ALONE)


@pytest.mark.parametrize("ent_coef", [1e-8, 0.1])
def test_an_entropy_bonus_alone_makes_no_step(ent_coef: float) -> None:
    model = make(vec(Scripted((7,), VECTOR, reward=lambda _: 1e3 / 7)), ent_coef=ent_coef, **NO_DIRECTION[-1][0])
    assert_left_alone(model, "The natural gradient needs a direction")


def test_a_single_action_gives_no_direction() -> None:
    assert_left_alone(make(episodes(spaces.Discrete(1)), baseline=None), "The natural gradient needs a ")


def test_the_policy_moves_again_when_there_is_something_to_learn() -> None:
    scale = [0.0]
    model = make(vec(Scripted((7, 5), VECTOR, reward=lambda timestep: scale[0] * timestep)), baseline=None)
    with pytest.warns(UserWarning, match="needs a direction"):
        model.learn(32)
    assert not moved(model).any()
    scale[0] = 1.0
    model.learn(32, reset_num_timesteps=False)
    assert moved(model).any()


def certain(logit: float, **kwargs: Any) -> Watched:
    """A model that is all but sure to do the wrong thing: to second order hardly anything moves it, so that steps are huge."""
    env = vec(Scripted((7,), VECTOR, reward=lambda _: -1.0))
    model = make(env, baseline=None, normalize_advantage=False, target_kl=0.02, policy_kwargs={"net_arch": []}, **kwargs)
    with th.no_grad():
        model.policy.get_parameter("action_net.bias")[:] = th.tensor([0.0, logit])
    return model


def test_a_step_far_beyond_its_target_is_warned_of_once(tmp_path: Any) -> None:
    model = certain(7.5)
    weights = copy.deepcopy(model.policy.state_dict())
    with pytest.warns(UserWarning, match="by a KL divergence of .*, with `target_kl` at 0.02") as caught:
        for _ in range(2):
            model.policy.load_state_dict(weights)
            model.learn(1)
            assert model.logger.name_to_value["train/kl_divergence"] > 0.2
    assert sum("KL divergence" in str(warning.message) for warning in caught) == 1
    model.policy.load_state_dict(weights)
    model.save(tmp_path / "model")
    with pytest.warns(UserWarning, match="by a KL divergence of"):
        REINFORCE.load(tmp_path / "model", model.env, device="cpu").learn(1)


@pytest.mark.parametrize("logit", [9.0, 12.0])
def test_a_step_that_would_lose_the_policy_is_undone(logit: float) -> None:
    """It would make it sure of the other action."""
    model = certain(logit)
    before = flat(actor(model.policy))
    with pytest.warns(UserWarning, match="would have moved the policy by a KL divergence of .* was left out") as caught:
        model.learn(100)
    assert model._n_updates > 1 and sum("KL divergence" in str(warning.message) for warning in caught) == 1
    assert th.equal(flat(actor(model.policy)), before)
    assert model.logger.name_to_value["train/kl_divergence"] == 0 == model.logger.name_to_value["train/approx_kl"]


class Bandit(gym.Env):
    """Two arms, of which the first pays one more, and noise."""

    observation_space = VECTOR
    action_space = spaces.Discrete(2)

    def __init__(self, spread: float):
        self.spread, self.rng, self.t = spread, np.random.default_rng(0), 0

    def observe(self) -> np.ndarray:
        return (0.5 + self.spread * self.rng.normal(size=3)).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        self.t = 0
        return self.observe(), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.t += 1
        return self.observe(), float(action == 0) + self.rng.normal(), self.t == 8, False, {}


@pytest.mark.parametrize("spread", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_solved_bandit_stays_solved(spread: float, seed: int) -> None:
    """A batch that holds the better arm alone has a gradient that is noise, or, where all is equal, rounding."""
    model = make(vec(Bandit(spread)), seed=seed, n_steps=128).learn(8_000)
    observations = th.as_tensor(np.stack([Bandit(spread).observe() for _ in range(50)]))
    with th.no_grad():
        assert model.policy.get_distribution(observations).distribution.probs[:, 0].mean() > 0.9
    assert max(float(parameter.detach().abs().max()) for parameter in actor(model.policy)) < 1e4


def test_a_gradient_of_rounding_errors_is_no_direction() -> None:
    """The weights of a batch with a single action and observation sum to zero."""
    policy = make_policy("discrete")
    with th.no_grad():
        policy.action_net.bias[:] = th.tensor([9.0, 0.0, 0.0])
    observations, actions = th.full((64, 3), 0.3), th.zeros(64, dtype=th.long)
    weights = th.linspace(-1.0, 1.0, 64).roll(17) / 64 + 1e-9
    gradient = th.autograd.grad(-(weights * policy.evaluate_actions(observations, actions)[1]).sum(), actor(policy))
    assert any(part.any() for part in gradient)
    before = flat(actor(policy))
    with pytest.raises(NoDirectionError, match="rounding error"):
        take_step(policy, gradient, actor(policy), observations, actions, weights, Settings(0.01, 15, 0.1, 1))
    assert th.equal(flat(actor(policy)), before)


@pytest.mark.parametrize("name", ["discrete", "multi_discrete", "multi_binary"])
@pytest.mark.parametrize("logit", [0.0, 3.0, 18.0, 60.0])
def test_the_divergence_of_sure_actions_is_finite(name: str, logit: float) -> None:
    """And where no probability rounds to 0 or 1, it is PyTorch's."""
    policy = make_policy(name)
    outputs = th.tensor([[logit, 0.2, -0.1, 0.4, 0.3][: policy.action_net.out_features]])
    distributions = []
    for scale in (1.0, 1.05):
        one = policy.action_dist.proba_distribution(scale * outputs).distribution
        distributions.append(one if isinstance(one, list) else [one])
    total = sum(float(kl_divergence(old, new).sum()) for old, new in zip(*distributions, strict=True))
    assert 0.0 < total < 1.0
    if logit <= 3.0:
        expected = sum(float(th.distributions.kl_divergence(old, new).sum()) for old, new in zip(*distributions, strict=True))
        assert total == pytest.approx(expected, rel=1e-5)


def test_divergences_of_masked_actions_and_of_independent_ones() -> None:
    masked = [th.distributions.Categorical(logits=th.tensor([x, 0.0, -math.inf], requires_grad=True)) for x in (0.3, 0.8)]
    p, q = (th.softmax(th.tensor([x, 0.0]), dim=0) for x in (0.3, 0.8))
    divergence = kl_divergence(*masked)
    th.testing.assert_close(divergence, (p * (p / q).log()).sum())
    assert masked[1].logits.isfinite().tolist() == [True, True, False]
    bits = [th.distributions.Bernoulli(logits=th.tensor([[0.1, 20.0, -math.inf], [x, 0.0, math.inf]])) for x in (0.2, 0.9)]
    independent = [th.distributions.Independent(one, 1) for one in bits]
    th.testing.assert_close(kl_divergence(*independent), kl_divergence(*bits).sum(dim=1))
    apart = [th.distributions.Independent(one, 0) for one in bits]
    th.testing.assert_close(kl_divergence(*apart), kl_divergence(*bits))
    assert kl_divergence(*independent).isfinite().all() and kl_divergence(*independent)[1] > 0


class Masked(ActorCriticPolicy):
    """The last action cannot be taken."""

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Distribution:
        logits = self.action_net(latent_pi).masked_fill(th.tensor([False, False, True]), -math.inf)
        return self.action_dist.proba_distribution(logits)


def test_actions_may_be_masked_by_infinite_logits() -> None:
    model = make(episodes(ACTIONS["discrete"]), Masked, learn=100, target_kl=1e-3)
    assert moved(model).any() and model.logger.name_to_value["train/kl_divergence"] == pytest.approx(1e-3, rel=0.3)


@pytest.mark.parametrize("share, refused", [(1e-8, True), (-1.0, True), (math.nan, True), (1e-6, False), (0.1, False)])
def test_a_gain_is_compared_with_what_it_could_be(share: float, refused: bool) -> None:
    """100 timesteps, of weights of 3, along a step with a mean square of 2 * 0.02."""
    gain = share * 100 * 3.0 * 0.2
    weights = 3.0 * th.ones(100)
    if refused:
        with pytest.raises(NoDirectionError, match="rounding error"):
            check_gain(gain, weights, 0.02, ALONE)
    else:
        check_gain(gain, weights, 0.02, ALONE)
    check_gain(0.0, weights, 0.0, ALONE)


def test_all_workers_undo_a_step_that_went_too_far_with_one() -> None:
    policy = make_policy("box", net_arch=[])
    observations, actions = batch_of(policy)
    before = flat(actor(policy))
    gradient = [th.ones_like(parameter) for parameter in actor(policy)]

    class Far(Group):
        def add_up(self, tensors: Sequence[th.Tensor]) -> None:
            (total,) = tensors
            if total.numel() in (1, 1 + len(gradient)):
                total[0] += 1e6  # timesteps, and as large a divergence of them

    with pytest.raises(TooFarError, match="KL divergence of 1,"):
        take_step(policy, gradient, actor(policy), observations, actions, th.ones(20), Settings(1e-6, 50, 0.1, 1), Far(0, 2))
    assert th.equal(flat(actor(policy)), before)


def test_a_policy_out_of_all_bounds_is_infinitely_far() -> None:
    """PyTorch refuses a deviation of zero."""
    policy = make_policy("box")
    observations, actions = batch_of(policy)
    asked = make_actor_critic(policy), Batch.of_observations(observations, actions)
    before = distributions_as_it_acts(*asked)
    assert divergence_from(before, *asked) == 0.0
    with th.no_grad():
        policy.log_std[:] = -1e4
    assert divergence_from(before, *asked) == math.inf


def test_a_short_step_may_go_far_beyond_its_target() -> None:
    model = certain(9.0)
    model.target_kl = 1e-5
    before = flat(actor(model.policy))
    model.learn(1)
    assert not th.equal(flat(actor(model.policy)), before)


def test_undoing_is_warned_of_after_an_overshoot_too() -> None:
    model = certain(7.5)
    with pytest.warns(UserWarning, match="moved the policy"):
        model.learn(1)
    with th.no_grad():
        model.policy.get_parameter("action_net.bias")[:] = th.tensor([0.0, 12.0])
    with pytest.warns(UserWarning, match="was left out"):
        model.learn(1)


@pytest.mark.parametrize("target_kl", [1e-4, 0.02, 0.3])
@pytest.mark.parametrize("name", ACTIONS)
@pytest.mark.filterwarnings("error")
def test_steps_of_about_the_target_are_not_warned_of(name: str, target_kl: float) -> None:
    model = make(episodes(ACTIONS[name], n_envs=2), target_kl=target_kl).learn(100)
    assert 0 < model.logger.name_to_value["train/kl_divergence"] < 5 * target_kl


@pytest.mark.parametrize("squash", [False, True])
@pytest.mark.filterwarnings("error")
def test_steps_with_gsde_are_not_warned_of(squash: bool) -> None:
    """Whose log-probabilities make a noisy estimate of the divergence: a few matrices are the noise of all timesteps."""
    kwargs = {"squash_output": squash}
    model = make(episodes(ACTIONS["box"]), use_sde=True, cg_damping=1.0, normalize_advantage=False, policy_kwargs=kwargs)
    for _ in range(10):
        model.learn(32)
        assert 0 < model.logger.name_to_value["train/kl_divergence"] < 5 * 0.01


@pytest.mark.filterwarnings("error")
def test_what_dropout_and_the_critic_move_is_not_warned_of() -> None:
    kwargs = {"features_extractor_class": Dropping, "optimizer_class": th.optim.SGD}
    model = make(episodes(ACTIONS["discrete"]), target_kl=lambda _: 0.0, learning_rate=0.1, policy_kwargs=kwargs).learn(100)
    assert model.logger.name_to_value["train/kl_divergence"] == 0.0
    assert model.logger.name_to_value["train/approx_kl"] > 0.0


@pytest.mark.parametrize("sub_sampling_factor", [1, 3])
@pytest.mark.parametrize("name", ACTIONS)
def test_the_divergence_that_is_logged_is_that_of_the_step(
    name: str, sub_sampling_factor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batches, "MAX_TIMESTEPS", 7)
    model = make(episodes(ACTIONS[name], n_envs=2), learn=1, target_kl=0.3, sub_sampling_factor=sub_sampling_factor)
    with th.no_grad():
        assert model.logger.name_to_value["train/kl_divergence"] == pytest.approx(divergence(model), rel=1e-3)


class Dropping(BaseFeaturesExtractor):
    def __init__(self, observation_space: spaces.Space):
        super().__init__(observation_space, 3)
        self.dropout = nn.Dropout(0.5)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.dropout(observations)


class Attentive(BaseFeaturesExtractor):
    def __init__(self, observation_space: spaces.Space):
        super().__init__(observation_space, 8)
        self.embed = nn.Linear(1, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        tokens = self.embed(observations.unsqueeze(-1))
        return self.attention(tokens, tokens, tokens, need_weights=False)[0].mean(dim=1)


def test_attention_has_a_second_derivative() -> None:
    model = make(episodes(ACTIONS["discrete"]), learn=40, policy_kwargs={"features_extractor_class": Attentive})
    assert moved(model).any()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_refused(bad: float) -> None:
    policy = make_policy("box")
    observations, actions = batch_of(policy)
    before = flat(list(policy.parameters()))
    gradient = [th.ones_like(p) for p in actor(policy)]
    gradient[0].view(-1)[0] = bad
    with pytest.raises(ValueError, match="gradient of the policy must be finite"):
        take_step(policy, gradient, actor(policy), observations, actions, th.ones(20), Settings(0.01, 15, 0.1, 1))
    gradient = [th.zeros_like(p) for p in actor(policy)]
    with pytest.raises(ValueError, match="policy gradient of zero"):
        take_step(policy, gradient, actor(policy), observations, actions, th.ones(20), Settings(0.01, 15, 0.1, 1))
    assert th.equal(flat(list(policy.parameters())), before)


def test_a_divergence_below_zero_is_rounding() -> None:
    """No reason to end a run: a policy that has become deterministic has such directions."""
    with pytest.raises(NoDirectionError, match="a larger `cg_damping`"):
        scaled_step(th.diag(th.tensor([1.0, -1e-6])).mv, th.tensor([0.0, 1.0]), 0.01)
    with pytest.raises(ValueError, match="needs a finite direction") as refused:
        scaled_step(th.diag(th.tensor([1.0, 1.0])).mv, th.tensor([math.nan, 1.0]), 0.01)
    assert not isinstance(refused.value, NoDirectionError)


@pytest.mark.parametrize("direction", [[0.0, 0.0], [math.nan, 1.0], [math.inf, 1.0], [0.0, 1.0]])
def test_a_direction_without_divergence_is_refused(direction: list[float]) -> None:
    with pytest.raises(ValueError, match="needs a finite direction"):
        scaled_step(th.diag(th.tensor([1.0, 0.0])).mv, th.tensor(direction), 0.01)


def test_a_solution_that_is_not_finite_leaves_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fisher, "__call__", lambda self, vector: math.nan * vector)
    assert_refused(make(episodes(ACTIONS["box"])), "The natural gradient needs a finite direction")


# As part of the algorithm


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
