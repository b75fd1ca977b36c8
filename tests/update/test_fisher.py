"""Products with the Fisher information, in pieces and among workers, and what is made of them."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_reinforce.actor_critic import batch as batches
from sb3_reinforce.actor_critic.batch import sub_sample
from sb3_reinforce.distributed import ALONE, Group
from sb3_reinforce.update.natural_step import Settings
from tests.update.natural import (
    ACTIONS,
    actor,
    batch_of,
    episodes,
    exact_fisher,
    fisher_of,
    flat,
    make,
    make_policy,
    moved,
    take_step,
)


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

        def gather(self, item: Any) -> list[Any]:
            return [item]

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
