"""The critic's regression: the fast path is the slow one, and only the critic moves."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from sb3_reinforce import REINFORCE
from sb3_reinforce.actor_critic.actor_critic import make_actor_critic
from sb3_reinforce.actor_critic.batch import Batch
from sb3_reinforce.actor_critic.parameters import group_parameters
from sb3_reinforce.distributed import ALONE
from sb3_reinforce.update import critic, numpy_critic


def make(seed: int = 0, **kwargs: Any) -> tuple[ActorCriticPolicy, list[nn.Parameter]]:
    th.manual_seed(seed)
    policy = ActorCriticPolicy(spaces.Box(-1, 1, (3,)), spaces.Discrete(2), lambda _: 1e-2, **kwargs)
    group_parameters(policy, make_actor_critic(policy).split())
    return policy, [p for group in policy.optimizer.param_groups if group["critic"] for p in group["params"]]


def fit(policy: ActorCriticPolicy, parameters: list[nn.Parameter], seed: int = 0, **kwargs: Any) -> None:
    rng = np.random.default_rng(7)
    observations = th.as_tensor(rng.normal(size=(100, 3)).astype(np.float32))
    arguments: dict[str, Any] = {"n_updates": 3, "batch_size": 32, "max_grad_norm": 0.5, **kwargs}
    np.random.seed(seed)
    returns = arguments.pop("returns", 5 * observations.sum(dim=1) + 1)
    batch = replace(Batch.of_observations(observations, th.zeros(100)), returns=returns)
    critic.fit_critic(make_actor_critic(policy), batch, parameters, **arguments, workers=ALONE)


def is_plain(policy: ActorCriticPolicy, parameters: list[nn.Parameter]) -> bool:
    batch = Batch.of_observations(th.zeros(5, 3), th.zeros(5))
    return numpy_critic.is_plain(make_actor_critic(policy).regression(batch), parameters)


def state(policy: ActorCriticPolicy, parameters: list[nn.Parameter]) -> list[th.Tensor]:
    moments = [policy.optimizer.state[p][name] for p in parameters for name in ("step", "exp_avg", "exp_avg_sq")]
    return [tensor.detach().clone() for tensor in (*policy.parameters(), *moments)]


NETS = [
    {"net_arch": [16, 8]},
    {"net_arch": [16, 8], "activation_fn": nn.ReLU},
    {"net_arch": []},
    {"net_arch": {"pi": [4], "vf": [32]}, "optimizer_kwargs": {"betas": (0.8, 0.99), "eps": 1e-3}},
]


@pytest.mark.parametrize("kwargs", NETS, ids=str)
@pytest.mark.parametrize("max_grad_norm", [0.5, np.inf])
def test_the_steps_in_numpy_are_those_in_pytorch(
    kwargs: dict[str, Any], max_grad_norm: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, parameters = make(**kwargs)
    assert is_plain(policy, parameters)
    other, other_parameters = make(**kwargs)
    before = state_of_weights(policy)
    for seed in range(2):  # the second fit goes on from the moments of the first
        fit(policy, parameters, seed, max_grad_norm=max_grad_norm)
        with monkeypatch.context() as patch:
            patch.setattr(critic, "is_plain", lambda *_: False)
            fit(other, other_parameters, seed, max_grad_norm=max_grad_norm)
    for tensor, expected in zip(state(policy, parameters), state(other, other_parameters), strict=True):
        th.testing.assert_close(tensor, expected, rtol=1e-3, atol=1e-5)
    moved = [name for name, weight in before.items() if not th.equal(weight, state_of_weights(policy)[name])]
    assert moved and all("value" in name for name in moved)


def state_of_weights(policy: ActorCriticPolicy) -> dict[str, th.Tensor]:
    return {name: weight.detach().clone() for name, weight in policy.named_parameters()}


def test_the_error_falls() -> None:
    policy, parameters = make()
    observations = th.as_tensor(np.random.default_rng(7).normal(size=(100, 3)).astype(np.float32))
    returns = 5 * observations.sum(dim=1) + 1

    def error() -> float:
        return float(((policy.predict_values(observations).flatten() - returns) ** 2).mean())

    before = error()
    fit(policy, parameters, n_updates=100)
    assert error() < 0.05 * before


@pytest.mark.parametrize("plain", [True, False])
def test_a_fit_that_diverges_is_an_error(plain: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, parameters = make()
    if not plain:
        monkeypatch.setattr(critic, "is_plain", lambda *_: False)
    with pytest.raises(ValueError, match="value loss must be finite"):
        fit(policy, parameters, returns=th.full((100,), 1e30))


class OwnValues(ActorCriticPolicy):
    def evaluate_actions(self, obs: Any, actions: th.Tensor) -> Any:
        return super().evaluate_actions(obs, actions)


@pytest.mark.parametrize(
    "kwargs",
    [
        {"activation_fn": nn.ELU},
        {"optimizer_class": th.optim.RMSprop, "optimizer_kwargs": {}},
        {"optimizer_class": th.optim.AdamW, "optimizer_kwargs": {}},
        {"optimizer_kwargs": {"weight_decay": 1e-2}},
        {"optimizer_kwargs": {"amsgrad": True}},
        {"share_features_extractor": False},
    ],
    ids=str,
)
def test_other_critics_and_optimizers_are_left_to_pytorch(kwargs: dict[str, Any]) -> None:
    policy, parameters = make(**kwargs)
    assert not is_plain(policy, parameters)
    before = copy.deepcopy([p.detach().clone() for p in parameters])
    fit(policy, parameters)
    assert any(not th.equal(a, b) for a, b in zip(before, parameters, strict=True))


class WithSpareLayer(BaseFeaturesExtractor):
    """Has a layer that the features pass by."""

    def __init__(self, observation_space: spaces.Space):
        super().__init__(observation_space, 8)
        self.used, self.spare = nn.Linear(3, 8), nn.Linear(3, 8)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.used(observations)


@pytest.mark.parametrize("natural_gradient", [False, True])
@pytest.mark.parametrize("share_features_extractor", [False, True])
def test_layers_without_use_stay_as_they_are(share_features_extractor: bool, natural_gradient: bool) -> None:
    kwargs = {"features_extractor_class": WithSpareLayer, "share_features_extractor": share_features_extractor}
    model = REINFORCE("MlpPolicy", "Pendulum-v1", policy_kwargs=kwargs, n_steps=64, natural_gradient=natural_gradient, seed=0)
    before = state_of_weights(model.policy)
    model.learn(400)
    moved = {name for name, weight in model.policy.named_parameters() if not th.equal(weight, before[name])}
    spare = {name for name in before if "spare" in name}
    assert spare and moved == set(before) - spare


def test_a_patched_or_hooked_critic_is_left_to_pytorch() -> None:
    policy, parameters = make()
    policy.value_net.register_forward_hook(lambda *_: None)
    assert not is_plain(policy, parameters)
    policy, parameters = make()
    policy.mlp_extractor.forward_critic = policy.mlp_extractor.forward_actor  # type: ignore[method-assign]
    assert not is_plain(policy, parameters)
    th.manual_seed(0)
    own = OwnValues(spaces.Box(-1, 1, (3,)), spaces.Discrete(2), lambda _: 1e-2)
    group_parameters(own, make_actor_critic(own).split())
    assert not is_plain(own, [p for group in own.optimizer.param_groups if group["critic"] for p in group["params"]])
