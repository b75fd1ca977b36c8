"""Every space and every policy that SB3 knows."""

import copy
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.envs import FakeImageEnv, SimpleMultiObsEnv
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.vec_env import VecNormalize

from sb3_reinforce import REINFORCE, CnnPolicy, MlpPolicy, MultiInputPolicy
from tests.helpers.environments import Scripted, vec

SMALL = {"net_arch": [8]}

OBSERVATION_SPACES: dict[str, tuple[str, spaces.Space]] = {
    "vector": ("MlpPolicy", spaces.Box(-1, 1, (3,))),
    "unbounded vector": ("MlpPolicy", spaces.Box(-np.inf, np.inf, (3,))),
    "float64 vector": ("MlpPolicy", spaces.Box(-1, 1, (3,), np.float64)),
    "integer vector": ("MlpPolicy", spaces.Box(-5, 5, (3,), np.int64)),
    "matrix": ("MlpPolicy", spaces.Box(-1, 1, (2, 3))),
    "Discrete": ("MlpPolicy", spaces.Discrete(4)),
    "MultiDiscrete": ("MlpPolicy", spaces.MultiDiscrete([2, 3, 4])),
    "MultiBinary": ("MlpPolicy", spaces.MultiBinary(4)),
    "MultiBinary matrix": ("MlpPolicy", spaces.MultiBinary((2, 3))),
    "image": ("CnnPolicy", spaces.Box(0, 255, (36, 36, 3), np.uint8)),
    "channel-first image": ("CnnPolicy", spaces.Box(0, 255, (3, 36, 36), np.uint8)),
    "flattened image": ("MlpPolicy", spaces.Box(0, 255, (36, 36, 1), np.uint8)),
    "Dict": (
        "MultiInputPolicy",
        spaces.Dict(
            {
                "vector": spaces.Box(-1, 1, (3,)),
                "number": spaces.Discrete(4),
                "numbers": spaces.MultiDiscrete([2, 3]),
                "bits": spaces.MultiBinary(2),
                "image": spaces.Box(0, 255, (36, 36, 1), np.uint8),
            }
        ),
    ),
}

ACTION_SPACES: dict[str, spaces.Space] = {
    "Discrete": spaces.Discrete(3),
    "Box": spaces.Box(-1, 1, (2,)),
    "Box matrix": spaces.Box(-1, 1, (2, 3)),
    "MultiDiscrete": spaces.MultiDiscrete([2, 3]),
    "MultiBinary": spaces.MultiBinary(3),
}


def make(policy: str | type[ActorCriticPolicy], env: Any, **kwargs: Any) -> REINFORCE:
    return REINFORCE(policy, env, **{"learning_rate": 1e-2, "seed": 0, "device": "cpu", **kwargs})


def ramp(timestep: int) -> float:
    """A reward that leaves advantages behind whatever the baseline."""
    return float(timestep)


def weights(model: REINFORCE) -> dict[str, th.Tensor]:
    return {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}


def assert_learns(model: REINFORCE, total_timesteps: int = 30) -> None:
    """One or several updates move actor and critic, to finite weights, and the model acts as its space asks."""
    before = weights(model)
    model.learn(total_timesteps)
    after = weights(model)
    assert all(tensor.isfinite().all() for tensor in after.values())
    for part in ("action_net", "value_net"):
        assert any(not th.equal(before[name], after[name]) for name in after if name.startswith(part)), part
    env = model.get_env()
    assert env is not None
    actions, _ = model.predict(env.reset())
    assert all(model.action_space.contains(action) for action in actions)


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("name", OBSERVATION_SPACES)
def test_every_observation_space_is_learnt_from(name: str, n_envs: int) -> None:
    policy, space = OBSERVATION_SPACES[name]
    env = vec(*(Scripted((3, 5), space, reward=ramp) for _ in range(n_envs)))
    kwargs: dict[str, Any] = dict(SMALL)
    if policy == "CnnPolicy":
        kwargs["features_extractor_kwargs"] = {"features_dim": 16}
    elif policy == "MultiInputPolicy":
        kwargs["features_extractor_kwargs"] = {"cnn_output_dim": 16}
    assert_learns(make(policy, env, n_steps=8, policy_kwargs=kwargs))


@pytest.mark.parametrize("name", ["vector", "matrix", "Discrete", "MultiDiscrete", "MultiBinary", "Dict"])
def test_the_buffer_holds_the_observations_that_the_environment_showed(name: str) -> None:
    policy, space = OBSERVATION_SPACES[name]
    env = Scripted((3, 4), space, reward=ramp)
    model = make(policy, env, n_episodes=2, policy_kwargs=SMALL).learn(7)
    # Without the last observation of each of the two episodes, and the first one of the third
    shown = env.shown_observations[:3] + env.shown_observations[4:8]
    recorded = model.rollout_buffer.observations
    for t, obs in enumerate(shown):
        if isinstance(obs, dict):
            assert isinstance(recorded, dict)
            for key, part in obs.items():
                part = part.transpose(2, 0, 1) if key == "image" else part
                np.testing.assert_array_equal(recorded[key][t].reshape(np.shape(part)), part)
        else:
            np.testing.assert_array_equal(recorded[t].reshape(np.shape(obs)), obs)


def test_the_environments_of_sb3_for_images_and_dictionaries_are_learnt_from() -> None:
    image = FakeImageEnv(screen_height=36, screen_width=36, n_channels=1)
    kwargs = {"features_extractor_kwargs": {"features_dim": 8}}
    make(CnnPolicy, image, n_steps=10, policy_kwargs=kwargs).learn(20)
    multi = SimpleMultiObsEnv(random_start=False)
    kwargs = {"features_extractor_kwargs": {"cnn_output_dim": 8}}
    with pytest.warns(UserWarning):  # the environment shows arrays where its spaces are Discrete: SB3's matter
        make(MultiInputPolicy, multi, n_steps=10, horizon=10, policy_kwargs=kwargs).learn(20)


def test_aliases_and_classes_name_the_same_policies() -> None:
    for alias, policy_class in {"MlpPolicy": MlpPolicy, "CnnPolicy": CnnPolicy, "MultiInputPolicy": MultiInputPolicy}.items():
        assert REINFORCE.policy_aliases[alias] is policy_class
        assert issubclass(policy_class, ActorCriticPolicy)


def test_dictionaries_need_the_policy_for_them() -> None:
    space = spaces.Dict({"vector": spaces.Box(-1, 1, (3,))})
    with pytest.raises(ValueError, match="MultiInputPolicy"):
        make("MlpPolicy", Scripted(observation_space=space))


# Custom policies


class DoubledFeatures(ActorCriticPolicy):
    """A policy whose features are its own."""

    def extract_features(self, obs: Any, features_extractor: BaseFeaturesExtractor | None = None) -> Any:
        return 2.0 * super().extract_features(obs, features_extractor)


class SevenValues(ActorCriticPolicy):
    """A policy whose ``forward`` knows the values better than its critic."""

    def forward(self, obs: th.Tensor, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        actions, values, log_prob = super().forward(obs, deterministic)
        return actions, th.full_like(values, 7.0), log_prob


class TwoBodies(th.nn.Module):
    """The network of SB3's guide to custom policies: any module with these two methods."""

    def __init__(self, features_dim: int):
        super().__init__()
        self.latent_dim_pi, self.latent_dim_vf = 5, 6
        self.policy_body = th.nn.Sequential(th.nn.Linear(features_dim, 5), th.nn.ReLU())
        self.value_body = th.nn.Sequential(th.nn.Linear(features_dim, 6), th.nn.Tanh())

    def forward(self, features: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        return self.forward_actor(features), self.forward_critic(features)

    def forward_actor(self, features: th.Tensor) -> th.Tensor:
        return self.policy_body(features)

    def forward_critic(self, features: th.Tensor) -> th.Tensor:
        return self.value_body(features)


class OwnNetwork(ActorCriticPolicy):
    """A policy with a network of its own."""

    def _build_mlp_extractor(self) -> None:
        self.mlp_extractor = TwoBodies(self.features_dim)  # type: ignore[assignment]


class Standardized(BaseFeaturesExtractor):
    """A features extractor with parameters that actor and critic share."""

    def __init__(self, observation_space: spaces.Box, features_dim: int = 4):
        super().__init__(observation_space, features_dim)
        self.body = th.nn.Sequential(th.nn.Flatten(), th.nn.Linear(observation_space.shape[0], features_dim), th.nn.ReLU())

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.body(observations)


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("policy", [DoubledFeatures, OwnNetwork])
def test_a_policy_class_of_ones_own_learns(policy: type[ActorCriticPolicy], n_envs: int) -> None:
    env = vec(*(Scripted((3, 5), reward=ramp) for _ in range(n_envs)))
    assert_learns(make(policy, env, n_steps=8))


class Forwarded(DoubledFeatures):
    """Remembers the values that ``forward`` gave."""

    def forward(self, obs: th.Tensor, deterministic: bool = False) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        result = super().forward(obs, deterministic)
        if not hasattr(self, "seen"):
            self.seen: list[th.Tensor] = []
        self.seen.append(result[1])
        return result


def test_the_baseline_of_a_policy_with_features_of_its_own_is_what_its_forward_says() -> None:
    env = Scripted((4,), spaces.Box(-1, 1, (3,)), reward=ramp)
    model = make(Forwarded, env, n_episodes=2, normalize_returns=False)
    model.learn(8)
    assert isinstance(model.policy, Forwarded)
    values = th.cat(model.policy.seen[:8]).flatten().numpy()
    np.testing.assert_allclose(model.rollout_buffer.values, values, rtol=1e-6)
    np.testing.assert_allclose(
        model.rollout_buffer.advantages, model.rollout_buffer.returns - model.rollout_buffer.values, rtol=1e-5
    )


@pytest.mark.parametrize("complete_episodes", [True, False])
@pytest.mark.parametrize("truncated", [True, False])
def test_values_from_an_overridden_forward_are_the_baseline_and_the_bootstrap(
    truncated: bool, complete_episodes: bool
) -> None:
    env = Scripted((4,), truncated=truncated)
    model = make(SevenValues, env, n_steps=4, gamma=0.5, complete_episodes=complete_episodes)
    model.learn(4)
    buffer = model.rollout_buffer
    last = 0.5 * 7.0 if truncated else 0.0
    expected = [1 + 0.5 * (1 + 0.5 * (1 + 0.5 * (1 + last))), 1 + 0.5 * (1 + 0.5 * (1 + last)), 1 + 0.5 * (1 + last), 1 + last]
    np.testing.assert_allclose(buffer.values, 7.0)
    np.testing.assert_allclose(buffer.returns, expected, rtol=1e-6)
    np.testing.assert_allclose(buffer.advantages, np.array(expected) - 7.0, rtol=1e-6)


@pytest.mark.parametrize(
    "policy_kwargs",
    [
        {"net_arch": []},
        {"net_arch": [4, 4, 4]},
        {"net_arch": {"pi": [4], "vf": [5, 6]}},
        {"net_arch": {"pi": [], "vf": [5]}},
        {"net_arch": {"pi": [5], "vf": []}},
        {"activation_fn": th.nn.ReLU},
        {"activation_fn": th.nn.GELU},
        {"ortho_init": False},
        {"features_extractor_class": Standardized, "features_extractor_kwargs": {"features_dim": 3}},
        {"features_extractor_class": Standardized, "share_features_extractor": False},
        {"features_extractor_class": FlattenExtractor, "share_features_extractor": False},
        {"optimizer_class": th.optim.SGD, "optimizer_kwargs": {"momentum": 0.9}},
        {"optimizer_class": th.optim.RMSprop, "optimizer_kwargs": {"alpha": 0.9}},
        {"optimizer_class": th.optim.AdamW, "optimizer_kwargs": {"weight_decay": 0.1}},
        {"optimizer_class": th.optim.Adagrad},
        {"optimizer_kwargs": {"foreach": True}},
    ],
    ids=str,
)
def test_policy_kwargs_reach_the_policy(policy_kwargs: dict[str, Any]) -> None:
    env = vec(Scripted((3, 5), reward=ramp), Scripted((4,), reward=ramp))
    model = make("MlpPolicy", env, n_steps=8, policy_kwargs=policy_kwargs)
    assert_learns(model)
    assert type(model.policy.optimizer) is policy_kwargs.get("optimizer_class", th.optim.Adam)
    assert len(model.policy.optimizer.param_groups) == 2
    in_optimizer = [p for group in model.policy.optimizer.param_groups for p in group["params"]]
    assert len(in_optimizer) == len(set(in_optimizer)) and set(in_optimizer) == set(model.policy.parameters())
    extractor = policy_kwargs.get("features_extractor_class", FlattenExtractor)
    assert type(model.policy.features_extractor) is extractor


def test_every_part_of_a_policy_that_shares_nothing_learns() -> None:
    env = Scripted((3, 5), reward=ramp)
    kwargs = {"features_extractor_class": Standardized, "share_features_extractor": False, "activation_fn": th.nn.Tanh}
    model = make("MlpPolicy", env, n_steps=8, policy_kwargs=kwargs)
    before = weights(model)
    model.learn(16)
    after = weights(model)
    for part in ("pi_features_extractor", "vf_features_extractor", "mlp_extractor.policy_net", "mlp_extractor.value_net"):
        assert any(not th.equal(before[name], after[name]) for name in after if name.startswith(part)), part


def test_the_critic_moves_a_shared_features_extractor_in_the_joint_step_alone() -> None:
    def extractor_after(n_timesteps: int = 8, **kwargs: Any) -> th.Tensor:
        env = Scripted((3, 5), reward=ramp)
        policy_kwargs = {"features_extractor_class": Standardized, "optimizer_class": th.optim.SGD}
        model = make("MlpPolicy", env, n_steps=8, natural_gradient=False, policy_kwargs=policy_kwargs, **kwargs)
        model.learn(n_timesteps)
        return model.policy.features_extractor.body[1].weight.detach().clone()  # type: ignore[union-attr]

    assert th.equal(extractor_after(n_critic_updates=0), extractor_after(n_critic_updates=10))
    # A new critic that says 0 has no gradient yet
    for normalize_returns in (False, True):
        others = {"n_timesteps": 16, "normalize_returns": normalize_returns}
        assert not th.equal(extractor_after(vf_coef=0.0, **others), extractor_after(vf_coef=1.0, **others))
    raw = {"normalize_returns": False}
    assert not th.equal(extractor_after(vf_coef=0.0, **raw), extractor_after(vf_coef=1.0, **raw))


def test_the_extractor_of_images_can_be_chosen() -> None:
    env = FakeImageEnv(screen_height=36, screen_width=36, n_channels=1)
    kwargs = {"features_extractor_class": NatureCNN, "features_extractor_kwargs": {"features_dim": 7}, "net_arch": [5]}
    model = make("CnnPolicy", env, n_steps=10, policy_kwargs=kwargs).learn(10)
    assert model.policy.features_dim == 7


# Actions


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("name", ACTION_SPACES)
def test_every_action_space_is_learnt_in(name: str, n_envs: int) -> None:
    space = ACTION_SPACES[name]
    envs = [Scripted((3, 5), action_space=space, reward=ramp) for _ in range(n_envs)]
    model = make("MlpPolicy", vec(*envs), n_steps=8, policy_kwargs=SMALL)
    assert_learns(model, total_timesteps=8 * n_envs)
    for env in envs:
        for action in env.received_actions:
            assert action.shape == space.shape
            if isinstance(space, spaces.Box):
                assert (action >= space.low).all() and (action <= space.high).all()
            else:
                assert space.contains(action.astype(space.dtype) if space.shape else int(action))
    assert model.rollout_buffer.actions.shape == (len(model.rollout_buffer.rewards), model.rollout_buffer.action_dim)


@pytest.mark.parametrize("shape", [(2,), (2, 2), ()])
def test_gaussian_actions_are_clipped_for_the_environment_and_kept_as_drawn_for_the_gradient(shape: tuple[int, ...]) -> None:
    space = spaces.Box(-0.5, np.float32(0.25), shape)
    env = Scripted((50,), action_space=space)
    model = make("MlpPolicy", env, n_episodes=1).learn(50)
    received = np.stack(env.received_actions)
    recorded = model.rollout_buffer.actions.reshape(received.shape)
    assert recorded.max() > 0.25 and recorded.min() < -0.5
    np.testing.assert_array_equal(received, np.clip(recorded, space.low, space.high))
    # The log-probabilities are those of what was drawn
    assert recorded.std() == pytest.approx(1.0, abs=0.3)


def test_discrete_actions_reach_the_gradient_as_they_were_played() -> None:
    envs = [Scripted((6,), action_space=spaces.MultiDiscrete([3, 4])) for _ in range(2)]
    model = make("MlpPolicy", vec(*envs), n_episodes=1).learn(12)
    np.testing.assert_array_equal(model.rollout_buffer.actions, np.concatenate([env.received_actions for env in envs]))


@pytest.mark.parametrize("sde_sample_freq", [-1, 2])
@pytest.mark.parametrize("n_envs", [1, 2])
def test_state_dependent_exploration_learns(n_envs: int, sde_sample_freq: int) -> None:
    space = spaces.Box(-1, 1, (2,))
    env = vec(*(Scripted((3, 5), action_space=space, reward=ramp) for _ in range(n_envs)))
    model = make("MlpPolicy", env, n_steps=8, use_sde=True, sde_sample_freq=sde_sample_freq)
    before = weights(model)
    assert_learns(model)
    assert not th.equal(before["log_std"], weights(model)["log_std"])


@pytest.mark.parametrize("sde_sample_freq, n_matrices", [(-1, 1), (4, 4)])
def test_the_noise_of_state_dependent_exploration_is_drawn_as_often_as_asked(
    sde_sample_freq: int, n_matrices: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = Scripted((12,), spaces.Box(-1, 1, (3,)), spaces.Box(-1, 1, (1,)))
    model = make("MlpPolicy", env, n_episodes=1, use_sde=True, sde_sample_freq=sde_sample_freq)
    calls = []
    reset_noise = model.policy.reset_noise
    monkeypatch.setattr(model.policy, "reset_noise", lambda n_envs=1: calls.append(n_envs) or reset_noise(n_envs))
    model.learn(12)
    assert calls == [1] * n_matrices  # as in SB3: once before the rollout, and then every so many steps


@pytest.mark.parametrize("shape", [(2,), (2, 2)])
def test_squashed_exploration_is_stretched_to_the_bounds_of_the_environment(shape: tuple[int, ...]) -> None:
    space = spaces.Box(np.float32(2.0), np.float32(6.0), shape)
    env = Scripted((40,), spaces.Box(-1, 1, (3,)), space, reward=ramp)
    kwargs = {"squash_output": True, "log_std_init": 1.0}
    model = make("MlpPolicy", env, n_episodes=1, use_sde=True, policy_kwargs=kwargs).learn(40)
    received = np.stack(env.received_actions)
    recorded = model.rollout_buffer.actions.reshape(received.shape)
    assert np.abs(recorded).max() <= 1.0
    np.testing.assert_allclose(received, 2.0 + 0.5 * (recorded + 1.0) * 4.0, rtol=1e-5)
    assert received.min() >= 2.0 and received.max() <= 6.0 and received.std() > 0.1
    # There is no closed form of the entropy: minus the log-probability estimates it
    assert np.isfinite(model.logger.name_to_value["train/entropy_loss"])


@pytest.mark.parametrize(
    "space",
    [spaces.Dict({"a": spaces.Discrete(2)}), spaces.Tuple((spaces.Discrete(2),)), spaces.Text(3)],
    ids=lambda s: type(s).__name__,
)
def test_an_unsupported_action_space_raises_the_error_of_sb3(space: spaces.Space) -> None:
    with pytest.raises(AssertionError, match="The algorithm only supports"):
        make("MlpPolicy", Scripted(action_space=space))


def test_state_dependent_exploration_needs_continuous_actions() -> None:
    with pytest.raises(ValueError, match="gSDE"):
        make("MlpPolicy", Scripted(), use_sde=True)


def test_a_box_of_actions_must_be_bounded() -> None:
    with pytest.raises(AssertionError, match="finite lower and upper bound"):
        make("MlpPolicy", Scripted(action_space=spaces.Box(-np.inf, np.inf, (1,))))


class Seen(BaseCallback):
    """Keeps what the policy has acted on, and what it drew."""

    def _on_training_start(self) -> None:
        self.observations: list[Any] = []
        self.actions: list[np.ndarray] = []

    def _on_step(self) -> bool:
        self.observations.append(copy.deepcopy(self.locals["self"]._last_obs))
        self.actions.append(self.locals["actions"].copy())
        return True


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.int8])
@pytest.mark.parametrize("is_dict", [False, True])
def test_what_is_learned_from_is_what_was_acted_on(dtype: type, is_dict: bool) -> None:
    """Whatever number types the spaces have: ``VecNormalize`` makes fractions of integers, and a Gaussian draws them."""
    numbers = spaces.Box(0, 100, (3,), dtype)
    space = spaces.Dict({"numbers": numbers, "others": spaces.Box(-1, 1, (2,))}) if is_dict else numbers
    actions = spaces.Box(-2, 2, (2,), np.int64)
    env = VecNormalize(vec(Scripted((40,), space, actions, reward=ramp)), norm_obs_keys=["numbers"] if is_dict else None)
    model = make("MultiInputPolicy" if is_dict else "MlpPolicy", env, n_steps=8)
    model.rollout_buffer.buffer_size = 8  # so that it has to grow
    seen = Seen()
    model.learn(40, seen)
    stored: Any = model.rollout_buffer.observations
    for key in ["numbers", "others"] if is_dict else [None]:
        expected = np.concatenate([obs if key is None else obs[key] for obs in seen.observations])
        found = stored if key is None else stored[key]
        assert np.array_equal(found, expected) and (key == "others" or (found != np.round(found)).any())
    drawn = np.concatenate(seen.actions)
    assert np.array_equal(model.rollout_buffer.actions, drawn) and (drawn != np.round(drawn)).any()


def test_the_type_of_the_observations_may_change_between_rollouts() -> None:
    model = make("MlpPolicy", vec(Scripted((9,), spaces.Box(0, 100, (3,), np.int64), reward=ramp)), n_steps=8)
    model.learn(9)
    stored: Any = model.rollout_buffer.observations
    assert stored.dtype == np.int64
    model.set_env(VecNormalize(vec(Scripted((9,), spaces.Box(0, 100, (3,), np.int64), reward=ramp))))
    seen = Seen()
    model.learn(9, seen, reset_num_timesteps=False)
    assert np.array_equal(model.rollout_buffer.observations, np.concatenate(seen.observations))
