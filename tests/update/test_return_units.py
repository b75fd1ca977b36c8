"""The critic in units of the returns: the scale of the rewards does not matter, and the values stay raw."""

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from gymnasium.wrappers import TransformReward
from hypothesis import given
from hypothesis import strategies as st
from stable_baselines3 import A2C
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import configure
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_reinforce import REINFORCE
from sb3_reinforce.actor_critic.actor_critic import make_actor_critic
from sb3_reinforce.actor_critic.batch import Batch
from sb3_reinforce.distributed import ALONE
from sb3_reinforce.update.return_units import ReturnUnits, in_units
from tests.helpers.environments import Scripted
from tests.helpers.policies import OneFunction

#: Powers of two change no digit
POWERS_OF_TWO = [2.0**-20, 2.0**20]


def scaled(env_id: str, scale: float, shift: float = 0.0) -> gym.Env:
    return TransformReward(gym.make(env_id), lambda reward: scale * (float(reward) + shift))


def train(env_id: str, scale: float, n_timesteps: int, **kwargs: Any) -> REINFORCE:
    arguments: dict[str, Any] = {"seed": 0, "n_steps": 200, "device": "cpu", "natural_gradient": False, **kwargs}
    return REINFORCE("MlpPolicy", scaled(env_id, scale), **arguments).learn(n_timesteps)


def weights_without_head(model: REINFORCE) -> dict[str, th.Tensor]:
    return {name: weight for name, weight in model.policy.named_parameters() if not name.startswith("value_net.")}


SETTINGS: list[dict[str, Any]] = [
    {},
    {"natural_gradient": True},
    {"natural_gradient": True, "normalize_advantage": False, "n_critic_updates": 0, "ent_coef": 0.0},
    {"gae_lambda": 0.9, "ent_coef": 0.01},
    {"complete_episodes": False},
    {"reward_to_go": False},
    {"policy_kwargs": {"share_features_extractor": False}},
    {"policy_kwargs": {"net_arch": []}, "vf_coef": 0.0},
    {"baseline": "linear"},
    {"baseline": "leave_one_out", "natural_gradient": True},
]


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("kwargs", SETTINGS, ids=str)
def test_the_scale_of_the_rewards_changes_no_digit_of_the_policy(env_id: str, kwargs: dict[str, Any]) -> None:
    model = train(env_id, 1.0, 1_200, **kwargs)
    for scale in POWERS_OF_TWO:
        other = train(env_id, scale, 1_200, **kwargs)
        for name, weight in weights_without_head(model).items():
            assert th.equal(weight, weights_without_head(other)[name]), name
        for mine, others in zip(model.policy.value_net.parameters(), other.policy.value_net.parameters(), strict=True):
            assert th.equal(scale * mine, others)


@pytest.mark.parametrize("scale", [1e-6, 1e6])
@pytest.mark.parametrize("natural_gradient", [False, True])
def test_any_scale_of_the_rewards_gives_the_same_policy(scale: float, natural_gradient: bool) -> None:
    model, other = (train("CartPole-v1", factor, 600, natural_gradient=natural_gradient) for factor in (1.0, scale))
    assert model._n_updates == 3
    observation = model.policy.obs_to_tensor(np.full(4, 0.1, np.float32))[0]
    with th.no_grad():
        for name, weight in weights_without_head(model).items():
            # Adam's steps of up to 0.0035 magnify the rounding errors of small gradients
            th.testing.assert_close(weights_without_head(other)[name], weight, rtol=1e-3, atol=2e-4)
        value, others = (m.policy.predict_values(observation) for m in (model, other))
    assert value.abs() > 1.0
    th.testing.assert_close(others / scale, value, rtol=1e-3, atol=1e-3)


def test_without_units_the_scale_matters() -> None:
    model, other = (train("CartPole-v1", scale, 600, normalize_returns=False) for scale in (1.0, 1e-6))
    assert not th.allclose(model.policy.action_net.weight, other.policy.action_net.weight, atol=1e-3)


def test_a_new_critic_says_nothing_and_begins_at_the_mean_of_the_returns() -> None:
    class Rollouts(BaseCallback):
        def _on_rollout_end(self) -> None:
            values.append(self.model.rollout_buffer.values.copy())
            returns.append(self.model.rollout_buffer.returns.copy())

        def _on_step(self) -> bool:
            return True

    values: list[np.ndarray] = []
    returns: list[np.ndarray] = []
    env = scaled("Pendulum-v1", 1.0, shift=-1000.0)  # returns whose mean is large beside their deviation
    model = REINFORCE("MlpPolicy", env, n_episodes=2, learning_rate=1e-3, seed=0, device="cpu", normalize_returns=True)
    model.learn(600, callback=Rollouts())
    assert not values[0].any()
    size, deviation = abs(returns[0].mean()), returns[0].std()
    assert size > 1.5 * deviation
    assert np.abs(values[1] - returns[0].mean()).max() < deviation


def test_a_critic_follows_returns_whose_mean_is_large_beside_their_deviation() -> None:
    """Without units all of its layers would have to grow, and its hidden units would saturate."""

    def hidden_and_explained(normalize_returns: bool) -> tuple[float, float]:
        env = Scripted(lengths=(20,), observation_space=spaces.Box(-1.0, 1.0, (2,)), reward=lambda _: 0.0)
        step = env.step

        def one_reward(action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            # The return of each timestep is 10,000 plus the first number of the observation in which it is taken
            seen = float(env.shown_observations[-1][0])
            observation, _, _, _, info = step(action)
            return observation, 10_000.0 + seen, True, False, info

        env.step = one_reward  # type: ignore[method-assign]
        model = REINFORCE(
            "MlpPolicy", env, n_steps=256, learning_rate=1e-2, normalize_returns=normalize_returns, seed=0, device="cpu"
        )
        model.set_logger(configure(None, []))
        model.learn(8_000)
        policy = model.policy
        with th.no_grad():
            features = policy.extract_features(th.as_tensor(model.rollout_buffer.observations))
            hidden = policy.mlp_extractor.forward_critic(features)  # type: ignore[arg-type]
        return float((hidden.abs() > 0.99).float().mean()), model.logger.name_to_value["train/explained_variance"]

    saturated, explained = hidden_and_explained(True)
    saturated_raw, explained_raw = hidden_and_explained(False)
    assert saturated < 0.1 and explained > 0.9
    assert saturated_raw > 0.3 and explained_raw < 0.1


def test_the_logged_value_loss_is_in_raw_units() -> None:
    losses = []
    for scale in (1.0, 2.0**10):
        model = REINFORCE("MlpPolicy", scaled("CartPole-v1", scale), n_steps=200, seed=0, device="cpu", normalize_returns=True)
        model.set_logger(configure(None, []))
        model.learn(200)
        losses.append(model.logger.name_to_value["train/value_loss"])
        # A new critic begins at the mean, so that its first error is the variance of the returns
        assert losses[-1] == pytest.approx(model.rollout_buffer.returns.var(), rel=1e-4)
    assert losses[1] == pytest.approx(2.0**20 * losses[0], rel=1e-6)


def test_a_critic_from_elsewhere_keeps_what_it_has_learned(tmp_path: Path) -> None:
    env = scaled("CartPole-v1", 100.0)
    a2c = A2C("MlpPolicy", env, seed=0, device="cpu").learn(2_000)
    a2c.save(tmp_path / "a2c.zip")
    loaded: list[REINFORCE] = []
    with pytest.warns(UserWarning, match="saved by another algorithm"):
        loaded.append(
            REINFORCE.load(tmp_path / "a2c.zip", env, n_critic_updates=0, vf_coef=0.0, n_steps=200, normalize_returns=True)
        )
    fresh = REINFORCE(
        "MlpPolicy", env, n_critic_updates=0, vf_coef=0.0, n_steps=200, seed=0, device="cpu", normalize_returns=True
    )
    with pytest.warns(UserWarning, match="optimizer"):
        fresh.set_parameters(str(tmp_path / "a2c.zip"))
    observation = a2c.policy.obs_to_tensor(np.full(4, 0.1, np.float32))[0]
    expected = a2c.policy.predict_values(observation)
    assert expected.abs() > 1.0
    for model in (*loaded, fresh):
        model.learn(200)
        assert model._n_updates > 0
        th.testing.assert_close(model.policy.predict_values(observation), expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("n_stops", [1, 2])
def test_a_saved_model_goes_on_in_its_units(tmp_path: Path, n_stops: int) -> None:
    kwargs: dict[str, Any] = {"n_episodes": 1, "seed": 0, "device": "cpu", "normalize_returns": True}
    model = REINFORCE("MlpPolicy", scaled("Pendulum-v1", 1.0), **kwargs).learn(200 * n_stops)
    model.save(tmp_path / "model.zip")
    loaded = REINFORCE.load(tmp_path / "model.zip", device="cpu")
    assert tuple(loaded._return_units) == tuple(model._return_units)
    assert ReturnUnits(*loaded._return_units).scale == model._return_units.scale > 1.0


class Doubled(ActorCriticPolicy):
    """Its value is not what its last layer says."""

    def predict_values(self, obs: Any) -> th.Tensor:
        return 2.0 * super().predict_values(obs)

    def forward(self, obs: Any, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        actions, values, log_probs = super().forward(obs, deterministic)
        return actions, 2.0 * values, log_probs

    def evaluate_actions(self, obs: Any, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        values, log_probs, entropy = super().evaluate_actions(obs, actions)
        return 2.0 * values, log_probs, entropy


class Own(ActorCriticPolicy):
    """Its methods are its own, but its value is what its last layer says."""

    def evaluate_actions(self, obs: Any, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
        return super().evaluate_actions(obs, actions)


@pytest.mark.parametrize(("policy_class", "known"), [(Doubled, False), (Own, True), (ActorCriticPolicy, True)])
def test_only_a_layer_that_puts_out_the_value_is_rescaled(policy_class: type[ActorCriticPolicy], known: bool) -> None:
    env = scaled("CartPole-v1", 100.0)
    model = REINFORCE(
        policy_class, env, n_steps=200, n_critic_updates=1, batch_size=1000, seed=0, device="cpu", normalize_returns=True
    )
    head = model.actor_critic.value_head()
    assert (head is model.policy.value_net) == known
    assert bool(model.policy.value_net.weight.any()) != known
    model.learn(200)
    assert bool(model.policy.value_net.bias.abs() > 100.0) == known


def test_a_frozen_last_layer_stays_as_it_is() -> None:
    model = REINFORCE("MlpPolicy", scaled("CartPole-v1", 100.0), n_steps=200, seed=0, device="cpu", normalize_returns=True)
    with th.no_grad():
        model.policy.value_net.weight.fill_(1.0)
    model.policy.value_net.requires_grad_(False)
    model.learn(400)
    assert (model.policy.value_net.weight == 1.0).all() and not model.policy.value_net.bias.any()


def test_a_failed_update_leaves_the_units_and_the_critic_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = train("CartPole-v1", 1.0, 200)
    before = {name: weight.clone() for name, weight in model.policy.state_dict().items()}
    units = model._return_units

    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("on purpose")

    monkeypatch.setattr("sb3_reinforce.reinforce.fit_critic", fail)
    with pytest.raises(ValueError, match="on purpose"):
        model.learn(200, reset_num_timesteps=False)
    assert model._return_units == units
    for name, weight in model.policy.state_dict().items():
        assert th.equal(weight, before[name]), name


numbers = st.lists(st.integers(-1000, 1000), min_size=1, max_size=20)


@given(numbers)
def test_the_first_batch_gives_its_own_mean_and_deviation(returns: list[int]) -> None:
    array = np.array(returns, dtype=np.float64)
    units = ReturnUnits().with_returns(th.tensor(returns, dtype=th.float32), ALONE)
    assert units.mean == pytest.approx(array.mean())
    expected = array.std() or abs(array.mean()) or 1.0
    assert units.scale == pytest.approx(expected)


@given(st.lists(numbers, min_size=1, max_size=9))
def test_the_first_ten_batches_count_alike(batches: list[list[int]]) -> None:
    units = ReturnUnits()
    for batch in batches:
        units = units.with_returns(th.tensor(batch, dtype=th.float32), ALONE)
    means, squares = (np.mean([np.mean(np.power(batch, power)) for batch in batches]) for power in (1, 2))
    assert units.mean == pytest.approx(means, abs=1e-9)
    assert units.variance == pytest.approx(squares - means**2, abs=1e-6)


def test_later_batches_count_more_than_earlier_ones() -> None:
    units = ReturnUnits()
    for _ in range(50):
        units = units.with_returns(th.tensor([0.0, 2.0]), ALONE)
    for _ in range(50):
        units = units.with_returns(th.tensor([1000.0, 1020.0]), ALONE)
    assert units.mean == pytest.approx(1010.0, abs=10.0)
    assert 10.0 <= units.scale < 100.0


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_the_values_before_and_after_are_the_same(mean: float, scale: float) -> None:
    policy = ActorCriticPolicy(spaces.Box(-1, 1, (3,)), spaces.Discrete(2), lambda _: 1e-2)
    observations = th.linspace(-1, 1, 15).view(5, 3)
    batch = Batch.of_observations(observations, th.zeros(5))
    with th.no_grad():
        policy.value_net.bias.fill_(mean)
        before = policy.predict_values(observations)
        units = ReturnUnits(1, mean, scale**2)
        scale = units.scale  # of equal returns it is their size
        with in_units(units, make_actor_critic(policy).value_head(), batch) as targets:
            inside = policy.predict_values(observations)
            assert th.allclose(targets.returns, th.full((5,), -mean / scale))
        after = policy.predict_values(observations)
    accuracy = 1e-5 * (1.0 + abs(mean))
    th.testing.assert_close(inside * scale + mean, before, rtol=1e-4, atol=accuracy)
    th.testing.assert_close(after, before, rtol=1e-4, atol=accuracy)


def test_a_critic_that_does_not_learn_keeps_every_digit() -> None:
    model = train("CartPole-v1", 100.0, 400)
    model.vf_coef, model.n_critic_updates = 0.0, 0
    before = [parameter.clone() for parameter in model.policy.value_net.parameters()]
    model.learn(1_000, reset_num_timesteps=False)
    assert all(map(th.equal, before, model.policy.value_net.parameters()))


class ActsOnTheValue(OneFunction):
    """The actor sees what the critic says."""

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.action_net = th.nn.Linear(self.mlp_extractor.latent_dim_pi + 1, self.action_space.n)
        self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1.0), **self.optimizer_kwargs)

    def both(self, obs: th.Tensor) -> tuple[th.Tensor, Any]:
        latent, of_value = self.mlp_extractor(self.extract_features(obs))
        value = self.value_net(of_value)
        return value, self.action_dist.proba_distribution(self.action_net(th.cat([latent, value.detach()], dim=1)))


def test_a_critic_that_the_actor_listens_to_keeps_raw_units() -> None:
    """In other units it would be another policy while its gradient is taken."""
    env = Scripted(lengths=(7,), reward=lambda timestep: 100.0 + timestep)
    model = REINFORCE(ActsOnTheValue, env, n_steps=32, seed=0, device="cpu")
    assert model.policy.value_net.weight.any() and model.actor_critic.value_head() is None
    before = model.policy.value_net.bias.detach().clone()
    assert model.actor_critic.value_head() is None and th.equal(model.policy.value_net.bias, before)
    model.learn(200)
    assert model._return_units.n_batches == 0 and model.logger.name_to_value["train/approx_kl"] < 0.05


def test_a_layer_that_the_actor_shares_keeps_raw_units() -> None:
    class Tied(ActorCriticPolicy):
        """The mean of its only action has the weights of the value."""

        def _build(self, lr_schedule: Any) -> None:
            super()._build(lr_schedule)
            self.value_net.weight = self.action_net.weight
            self.optimizer = self.optimizer_class(self.parameters(), lr=lr_schedule(1.0), **self.optimizer_kwargs)

    class TiedOwn(Tied):
        def evaluate_actions(self, obs: Any, actions: th.Tensor) -> tuple[th.Tensor, th.Tensor, th.Tensor | None]:
            return super().evaluate_actions(obs, actions)

    env = Scripted(lengths=(7,), action_space=spaces.Box(-1.0, 1.0, (1,)), reward=lambda timestep: 100.0 + timestep)
    for policy in (Tied, TiedOwn):
        model = REINFORCE(policy, env, n_steps=32, seed=0, device="cpu")
        assert model.actor_critic.value_head() is None and model.policy.action_net.weight.any()
