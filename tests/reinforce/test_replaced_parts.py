"""A policy, a layer, an optimizer or a schedule that the user puts in the place of the one before is what is trained next."""

import copy
import io
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import A2C
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import nn

from sb3_reinforce import REINFORCE, GradientMonitor
from tests.helpers.environments import Scripted, vec


class OwnEvaluation(ActorCriticPolicy):
    def evaluate_actions(self, obs: Any, actions: th.Tensor) -> Any:
        return super().evaluate_actions(obs, actions)


def ramp(timestep: int) -> float:
    return timestep * timestep - 3.0


def make(policy: Any = "MlpPolicy", cls: type[REINFORCE] = REINFORCE, **kwargs: Any) -> REINFORCE:
    arguments: dict[str, Any] = {"n_steps": 20, "seed": 0, "device": "cpu", "policy_kwargs": {"net_arch": [8]}, **kwargs}
    return cls(policy, vec(Scripted((5,), reward=ramp)), **arguments)


def moved(model: REINFORCE, timesteps: int = 60) -> set[str]:
    """The names of the parameters that a call of ``learn`` moves."""
    before = copy.deepcopy(model.policy.state_dict())
    model.learn(timesteps)
    return {name for name, tensor in model.policy.state_dict().items() if not th.equal(before[name], tensor)}


def names(model: REINFORCE) -> set[str]:
    return {name for name, _ in model.policy.named_parameters()}


def of_a2c(model: REINFORCE) -> ActorCriticPolicy:
    return A2C("MlpPolicy", vec(Scripted((5,))), device="cpu", policy_kwargs={"net_arch": [8]}).policy  # type: ignore[return-value]


def exchange_layer(model: REINFORCE) -> ActorCriticPolicy:
    model.policy.action_net = nn.Linear(8, 2)
    model.policy.optimizer = th.optim.Adam(model.policy.parameters())
    return model.policy


REPLACEMENTS: dict[str, Callable[[REINFORCE], ActorCriticPolicy]] = {
    "a copy": lambda model: copy.deepcopy(model.policy),
    "another model's": lambda model: make(seed=1).policy,
    "A2C's": of_a2c,
    "a layer": exchange_layer,
}


@pytest.mark.parametrize("kwargs", [{}, {"natural_gradient": True}, {"baseline": None}], ids=str)
@pytest.mark.parametrize("replacement", REPLACEMENTS)
@pytest.mark.parametrize("played", [False, True])
def test_a_policy_that_takes_the_place_of_another_is_trained(replacement: str, kwargs: dict[str, Any], played: bool) -> None:
    model = make(**kwargs)
    if played:
        model.learn(40)
    model.policy = REPLACEMENTS[replacement](model)
    trained = {name for name in names(model) if "baseline" not in kwargs or "value_net" not in name}
    assert moved(model) == trained
    assert model.logger.name_to_value["train/grad_norm"] > 0.0


def test_a_copy_of_the_policy_learns_what_the_policy_would_have_learnt() -> None:
    # Without the critic's minibatches, which come from NumPy's own generator
    replaced, kept = make(n_critic_updates=0).learn(40), make(n_critic_updates=0).learn(40)
    replaced.policy = copy.deepcopy(replaced.policy)
    for model in (replaced, kept):
        model.learn(40, reset_num_timesteps=False)
    for name, tensor in kept.policy.state_dict().items():
        assert th.equal(replaced.policy.state_dict()[name], tensor), name


def test_a_policy_that_a_callback_replaces_in_the_midst_of_a_rollout_plays_from_then_on() -> None:
    class Replaces(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls == 7:
                with th.no_grad():
                    policy = copy.deepcopy(self.model.policy)
                    policy.action_net.weight.zero_()
                    policy.action_net.bias.copy_(th.tensor([-100.0, 100.0]))
                self.model.policy = policy
            return True

    env = Scripted((5,))
    model = REINFORCE("MlpPolicy", vec(env), n_steps=20, seed=0, device="cpu").learn(20, Replaces())
    assert {int(action) for action in env.received_actions[7:20]} == {1}
    assert {int(action) for action in env.received_actions[:7]} == {0, 1}
    assert model.policy.action_net.bias[1] > 50


def test_a_gradient_monitor_measures_the_policy_of_now() -> None:
    monitor = GradientMonitor(every_n_updates=1)
    model = make(baseline=None, normalize_advantage=False).learn(40, monitor)
    model.policy = make(seed=1).policy
    model.learn(20, monitor)
    measured = monitor.summary()["gradient/norm"].iloc[-1]
    assert measured == pytest.approx(model.logger.name_to_value["train/grad_norm"], rel=1e-4)
    assert measured > 0.0


# The optimizer


OPTIMIZERS: dict[str, Callable[[list[nn.Parameter]], th.optim.Optimizer]] = {
    "AdamW": lambda parameters: th.optim.AdamW(parameters, lr=1e-3),
    "Adam": lambda parameters: th.optim.Adam(parameters, lr=1e-3),
    "SGD": lambda parameters: th.optim.SGD(parameters, lr=1e-3, momentum=0.9),
    "RMSprop": lambda parameters: th.optim.RMSprop(parameters, lr=1e-3),
    "two groups": lambda parameters: th.optim.Adam([{"params": parameters[:3]}, {"params": parameters[3:], "eps": 1e-4}]),
}


@pytest.mark.parametrize("policy", ["MlpPolicy", OwnEvaluation])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kwargs", [{}, {"natural_gradient": True}], ids=str)
def test_an_optimizer_that_takes_the_place_of_another_trains(optimizer: str, policy: Any, kwargs: dict[str, Any]) -> None:
    model = make(policy, **kwargs).learn(40)
    model.policy.optimizer = OPTIMIZERS[optimizer](list(model.policy.parameters()))
    assert moved(model) == names(model)
    assert type(model.policy.optimizer).__name__ == optimizer or optimizer == "two groups"


@pytest.mark.parametrize("policy", ["MlpPolicy", OwnEvaluation])
def test_the_critic_of_a_plain_optimizer_learns_at_its_own_rate(policy: Any) -> None:
    def changes(learning_rate: float, critic_learning_rate: float) -> set[str]:
        rates = {"learning_rate": learning_rate, "critic_learning_rate": critic_learning_rate}
        model = make(policy, natural_gradient=False, **rates)
        model.policy.optimizer = th.optim.AdamW(model.policy.parameters(), weight_decay=0.0)
        return moved(model)

    critics = {name for name in names(make()) if "value_net" in name}
    assert changes(0.0, 1e-2) == critics
    assert changes(1e-2, 0.0) == names(make()) - critics


def test_options_of_an_added_group_are_kept_when_it_is_divided() -> None:
    model = make()
    extra = nn.Linear(2, 2)
    model.policy.optimizer.add_param_group({"params": list(extra.parameters()), "eps": 0.125})
    model.learn(20)
    groups = model.policy.optimizer.param_groups
    assert [group["eps"] for group in groups if any(p is extra.weight for p in group["params"])] == [0.125]
    ids = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(ids) == len(set(ids)) == len(names(model)) + 2
    assert moved(model) == names(model)


def test_groups_stay_as_they_are_once_they_are_divided() -> None:
    model = make()
    model.policy.optimizer = th.optim.AdamW(model.policy.parameters())
    model.learn(20)
    groups = model.policy.optimizer.param_groups
    assert [group["critic"] for group in groups] == [False, True]
    model.learn(20)
    assert model.policy.optimizer.param_groups is groups


class MakesItsOptimizer(REINFORCE):
    def _setup_model(self) -> None:
        super()._setup_model()
        self.policy.optimizer = th.optim.SGD(self.policy.parameters(), lr=1e-2)


def test_a_subclass_may_make_its_optimizer_and_is_saved_and_loaded_with_it() -> None:
    model = make(cls=MakesItsOptimizer)
    assert moved(model) == names(model)
    stream = io.BytesIO()
    model.save(stream)
    stream.seek(0)
    loaded = MakesItsOptimizer.load(stream, env=model.get_env(), device="cpu")
    assert isinstance(loaded.policy.optimizer, th.optim.SGD)
    assert moved(loaded) == names(loaded)


def test_a_policy_of_its_own_class_s_load_is_trained(tmp_path: Any) -> None:
    model = make().learn(20)
    model.policy.save(tmp_path / "policy.zip")
    model.policy = type(model.policy).load(tmp_path / "policy.zip", device="cpu")
    assert moved(model) == names(model)


# Schedules


def rates(model: REINFORCE) -> list[float]:
    return [group["lr"] for group in model.policy.optimizer.param_groups]


class Sets(BaseCallback):
    """Sets an attribute of the model at the start of the training."""

    def __init__(self, name: str, value: Any):
        super().__init__()
        self.name, self.value = name, value

    def _on_training_start(self) -> None:
        setattr(self.model, self.name, self.value)

    def _on_step(self) -> bool:
        return True


def test_a_schedule_that_a_callback_sets_reaches_actor_and_critic() -> None:
    model = make().learn(20, Sets("lr_schedule", lambda progress: 0.125))
    assert rates(model) == [0.125, 0.125]
    model.learn(20, reset_num_timesteps=False)
    assert rates(model) == [0.125, 0.125]


def test_a_critic_with_a_rate_of_its_own_keeps_it() -> None:
    model = make(critic_learning_rate=0.25).learn(20, Sets("lr_schedule", lambda progress: 0.125))
    assert rates(model) == [0.125, 0.25]


@pytest.mark.parametrize(
    "value, expected", [(0.5, [0.5, 0.5]), (lambda progress: 0.25, [0.25, 0.25])], ids=["number", "schedule"]
)
def test_a_learning_rate_that_is_set_by_hand_counts_at_the_next_update(value: Any, expected: list[float]) -> None:
    model = make().learn(20)
    model.learning_rate = value
    assert rates(model.learn(20)) == expected
    assert rates(make().learn(20, Sets("learning_rate", value))) == expected


def test_a_critic_s_rate_that_is_set_by_hand_counts_at_the_next_update() -> None:
    model = make(learning_rate=0.125).learn(20)
    model.critic_learning_rate = 0.25
    assert rates(model.learn(20)) == [0.125, 0.25]
    model.critic_learning_rate = None
    assert rates(model.learn(20)) == [0.125, 0.125]


@pytest.mark.parametrize("name, value", [("gamma", 0.5), ("gae_lambda", 0.25)])
def test_a_discount_that_is_set_by_hand_counts_at_the_next_rollout(name: str, value: float) -> None:
    changed, made = make().learn(20), make(**{name: value})
    setattr(changed, name, value)
    made.set_parameters(changed.get_parameters(), device="cpu")
    for model in (changed, made):
        model.set_env(vec(Scripted((5,), reward=ramp)))
        model.set_random_seed(3)
        model.learn(20)
    np.testing.assert_array_equal(changed.rollout_buffer.returns, made.rollout_buffer.returns)
    np.testing.assert_array_equal(changed.rollout_buffer.advantages, made.rollout_buffer.advantages)


def test_a_discount_of_the_buffer_that_is_set_by_hand_counts_as_with_a2c() -> None:
    model = make().learn(20)
    model.rollout_buffer.gamma = 0.0
    model.learn(20)
    np.testing.assert_array_equal(model.rollout_buffer.returns, model.rollout_buffer.rewards)


def test_a_schedule_that_is_set_after_a_rate_is_used() -> None:
    model = make().learn(20)
    model.learning_rate, model.lr_schedule = 1e-4, lambda progress: 0.5
    assert rates(model.learn(20)) == [0.5, 0.5]
    copied = copy.deepcopy(model)
    assert rates(copied.learn(20)) == [0.5, 0.5]


# What changes in the midst of a rollout


def assign_data(policy: ActorCriticPolicy) -> None:
    policy.action_net.weight.data, policy.action_net.bias.data = th.zeros(2, 8), th.tensor([-100.0, 100.0])


def load_vector(policy: ActorCriticPolicy) -> None:
    other = copy.deepcopy(policy)
    assign_data(other)
    policy.load_from_vector(other.parameters_to_vector())


def put_layer(policy: ActorCriticPolicy) -> None:
    policy.action_net = nn.Linear(8, 2)
    assign_data(policy)
    policy.optimizer = th.optim.Adam(policy.parameters())


def put_hook(policy: ActorCriticPolicy) -> None:
    policy.action_net.register_forward_hook(lambda module, inputs, output: output * 0.0 + th.tensor([-100.0, 100.0]))


@pytest.mark.parametrize("change", [assign_data, load_vector, put_layer, put_hook])
def test_what_changes_in_the_policy_in_the_midst_of_a_rollout_is_acted_on_at_once(change: Callable[..., None]) -> None:
    class Changes(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls == 7:
                change(self.model.policy)
            return True

    env = Scripted((5,))
    kwargs: dict[str, Any] = {"n_steps": 20, "seed": 0, "device": "cpu", "policy_kwargs": {"net_arch": [8]}}
    REINFORCE("MlpPolicy", vec(env), **kwargs).learn(20, Changes())
    assert {int(action) for action in env.received_actions[7:20]} == {1}
    assert {int(action) for action in env.received_actions[:7]} == {0, 1}


class OwnForward(ActorCriticPolicy):
    def forward(self, obs: th.Tensor, deterministic: bool = False) -> Any:
        return super().forward(obs, deterministic)


@pytest.mark.parametrize("first, then", [("MlpPolicy", OwnForward), (OwnForward, "MlpPolicy")])
def test_a_rollout_of_two_samplers_has_all_its_values(first: Any, then: Any) -> None:
    other = make(then).policy
    for policy in (other, start := make(first)):
        critic = policy.value_net if isinstance(policy, ActorCriticPolicy) else start.policy.value_net
        with th.no_grad():
            critic.weight.zero_()
            critic.bias.fill_(7.0)

    class Swaps(BaseCallback):
        def _on_step(self) -> bool:
            if self.n_calls == 7:
                self.model.policy = other
            return True

        def _on_rollout_end(self) -> None:
            np.testing.assert_allclose(self.model.rollout_buffer.values, 7.0)

    start.learn(20, Swaps())


# Policies whose parts are not SB3's


class RareBranch(ActorCriticPolicy):
    """Puts what it seldom sees through layers of its own, of the actor and of the critic."""

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.rare_actor, self.rare_critic = nn.Linear(2, 2), nn.Linear(2, 1)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1))

    def evaluate_actions(self, obs: th.Tensor, actions: th.Tensor) -> Any:
        features = self.extract_features(obs)
        latent_pi, latent_vf = self.mlp_extractor(features)
        logits, values = self.action_net(latent_pi), self.value_net(latent_vf)
        seldom = (obs[:, 1] == 1) & (obs[:, 0] % 20 == 3)
        if seldom.any():
            logits, values = logits.clone(), values.clone()
            logits[seldom], values[seldom] = self.rare_actor(obs[seldom]), self.rare_critic(obs[seldom])
        distribution = self.action_dist.proba_distribution(action_logits=logits)
        return values, distribution.log_prob(actions), distribution.entropy()

    def forward(self, obs: th.Tensor, deterministic: bool = False) -> Any:
        values, _, _ = self.evaluate_actions(obs, th.zeros(len(obs)))
        actions = self.action_dist.get_actions(deterministic)
        return actions, values, self.action_dist.log_prob(actions)


@pytest.mark.parametrize("kwargs", [{}, {"natural_gradient": True}], ids=str)
def test_layers_for_few_observations_are_trained(kwargs: dict[str, Any]) -> None:
    model = make(RareBranch, n_steps=500, **kwargs)
    assert {"rare_actor.weight", "rare_critic.weight"} <= moved(model, 1000)


class NoExtractor(ActorCriticPolicy):
    """A policy that is made of two layers."""

    def _build(self, lr_schedule: Any) -> None:
        self.pi, self.vf = nn.Linear(2, 2), nn.Linear(2, 1)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1))

    def get_distribution(self, obs: th.Tensor) -> Any:
        return self.action_dist.proba_distribution(action_logits=self.pi(obs.float()))

    def predict_values(self, obs: th.Tensor) -> th.Tensor:
        return self.vf(obs.float())

    def evaluate_actions(self, obs: th.Tensor, actions: th.Tensor) -> Any:
        distribution = self.get_distribution(obs)
        return self.predict_values(obs), distribution.log_prob(actions), distribution.entropy()

    def forward(self, obs: th.Tensor, deterministic: bool = False) -> Any:
        distribution = self.get_distribution(obs)
        actions = distribution.get_actions(deterministic)
        return actions, self.predict_values(obs), distribution.log_prob(actions)


@pytest.mark.parametrize("kwargs", [{}, {"natural_gradient": True}, {"complete_episodes": False}, {"baseline": None}], ids=str)
def test_a_policy_without_sb3s_parts_is_trained(kwargs: dict[str, Any]) -> None:
    assert {"pi.weight", "pi.bias"} <= moved(make(NoExtractor, **kwargs))
