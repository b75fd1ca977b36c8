"""A drop-in for MaskablePPO: predicting, evaluating, files, policies, and everything that REINFORCE has."""

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback
from sb3_contrib.common.maskable.distributions import MaskableCategoricalDistribution
from sb3_contrib.common.maskable.evaluation import evaluate_policy
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_reinforce import REINFORCE, GradientMonitor, MaskableREINFORCE
from sb3_reinforce.maskable.actor_critic import MaskableActorCritic
from sb3_reinforce.maskable.sampler import MaskableNumpySampler
from tests.helpers.environments import Scripted
from tests.maskable.environments import SPACES, Masked, is_allowed, masks_of, sizes_of

DISCRETE = SPACES["discrete"]
ALL_ALLOWED = np.ones(5, dtype=bool)


def make(env: Any = None, policy: Any = "MlpPolicy", **kwargs: Any) -> MaskableREINFORCE:
    arguments: dict[str, Any] = {"n_steps": 20, "seed": 0, "device": "cpu", "n_critic_updates": 1, **kwargs}
    return MaskableREINFORCE(policy, DummyVecEnv([Masked] * 2) if env is None else env, **arguments)


def weights(model: Any) -> th.Tensor:
    return th.cat([parameter.detach().flatten() for parameter in model.policy.parameters()])


# Predicting


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_only_allowed_actions_are_predicted(space: spaces.Space, deterministic: bool) -> None:
    model = make(DummyVecEnv([lambda: Masked(space)] * 2), policy_kwargs={"ortho_init": False})
    observations = np.array([[episode, t] for episode in range(1, 6) for t in range(6)], np.float32)
    masks = masks_of(space, observations)
    actions, state = model.predict(observations, deterministic=deterministic, action_masks=masks)
    assert state is None and all(map(is_allowed, [space] * len(masks), masks, actions))
    unmasked = MaskableActorCriticPolicy.predict(model.policy, observations, deterministic=deterministic)[0]  # type: ignore[arg-type]
    assert not all(map(is_allowed, [space] * len(masks), masks, unmasked)), "the masks must matter"
    for observation, mask, action in zip(observations, masks, actions, strict=True):
        single, _ = model.predict(observation, None, None, deterministic, mask)
        assert single.shape == space.shape and is_allowed(space, mask, single)
        if deterministic:
            np.testing.assert_array_equal(single, action)


@pytest.mark.parametrize("observation", [np.zeros(2, np.float32), np.zeros((1, 2), np.float32), [0.0, 0.0]], ids=np.shape)
@pytest.mark.parametrize(
    "mask", [[0, 0, 1, 0, 0], [[0, 0, 1, 0, 0]], np.arange(5) == 2, np.eye(5)[[2]], th.eye(5)[2], th.eye(5)[[2]]], ids=repr
)
def test_the_mask_of_one_observation_may_have_the_axis_of_the_environments_or_not(observation: Any, mask: Any) -> None:
    assert make().predict(observation, action_masks=mask)[0].item() == 2


@pytest.mark.parametrize(
    ("n", "masks", "message"),
    [
        (None, np.ones(4), r"\(5,\).*\(4,\)"),
        (None, np.ones((2, 5)), r"\(5,\).*\(2, 5\)"),
        (None, np.ones((5, 1)), r"\(5,\).*\(5, 1\)"),
        (2, np.ones(5), r"\(2, 5\).*\(5,\)"),
        (2, np.ones(10), r"\(2, 5\).*\(10,\)"),
        (2, np.ones((5, 2)), r"\(2, 5\).*\(5, 2\)"),
        (2, np.ones((1, 5)), r"\(2, 5\).*\(1, 5\)"),
        (None, np.zeros(5), "at least one choice, got .* for observation 0"),
        (2, [[1] * 5, [0] * 5], "at least one choice, got .* for observation 1"),
        (None, [2, 1, 1, 1, 1], "zeros and ones, got"),
    ],
)
def test_wrong_masks_to_predict_are_errors(n: int | None, masks: Any, message: str) -> None:
    observation = np.zeros((2,) if n is None else (n, 2), np.float32)
    with pytest.raises(ValueError, match=message):
        make().predict(observation, action_masks=masks)


def test_the_result_of_a_reset_is_the_error_that_sb3_has_for_it() -> None:
    with pytest.raises(ValueError, match="passed a tuple to the predict"):
        make().predict(Masked().reset(), action_masks=ALL_ALLOWED)  # type: ignore[arg-type]


def n_warnings(model: MaskableREINFORCE, **kwargs: Any) -> int:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(3):
            model.predict(np.zeros(2, np.float32), **kwargs)
    of_masks = [warning for warning in caught if "`action_masks`" in str(warning.message)]
    assert all(warning.filename == __file__ for warning in of_masks)
    return len(of_masks)


def test_predicting_without_masks_where_there_are_some_warns_once(tmp_path: Path) -> None:
    without = DummyVecEnv([lambda: Scripted(action_space=DISCRETE)] * 2)
    assert n_warnings(make()) == 1
    assert n_warnings(make(), action_masks=ALL_ALLOWED) == 0
    assert n_warnings(make(without)) == 0
    model = make()
    with pytest.warns(UserWarning, match="never end: pass `action_masks` to `predict`"):
        model.learn(60, callback=EvalCallback(DummyVecEnv([lambda: Monitor(Lenient())]), eval_freq=10, verbose=0))
    assert n_warnings(model) == 0
    model.save(tmp_path / "model")
    assert n_warnings(MaskableREINFORCE.load(tmp_path / "model")) == 1
    assert n_warnings(make(DummyVecEnv([Lenient] * 2)).learn(60, use_masking=False)) == 0
    assert n_warnings(make(without).learn(60, use_masking=False)) == 0


class Lenient(Masked):
    """Takes forbidden actions."""

    def step(self, action: Any) -> Any:
        return Scripted.step(self, action)


# Evaluating


def test_sb3_contribs_evaluation_plays_allowed_actions_only(tmp_path: Path) -> None:
    eval_env = DummyVecEnv([lambda: Monitor(Masked())] * 2)
    assert is_masking_supported(eval_env)
    callback = MaskableEvalCallback(
        eval_env, eval_freq=10, log_path=str(tmp_path), best_model_save_path=str(tmp_path), verbose=0
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = make().learn(100, callback=callback)
        mean, _ = evaluate_policy(model, Monitor(Masked()), n_eval_episodes=6, deterministic=False)
    assert mean == pytest.approx((2 + 3 + 1) / 3)  # every other timestep of episodes of 4, 7 and 2
    assert callback.n_calls >= 50 and (tmp_path / "evaluations.npz").exists()
    best = MaskableREINFORCE.load(tmp_path / "best_model", env=DummyVecEnv([Masked] * 2))
    observations = best.env.reset()  # type: ignore[union-attr]
    masks = get_action_masks(best.env)  # type: ignore[arg-type]
    actions, _ = best.predict(observations, action_masks=masks)  # type: ignore[arg-type]
    assert all(map(is_allowed, [DISCRETE] * 2, masks, actions))


# Files and copies


def test_a_saved_model_goes_on_as_the_model_would(tmp_path: Path) -> None:
    model = make().learn(60)
    model.save(tmp_path / "model")
    loaded = MaskableREINFORCE.load(tmp_path / "model", env=DummyVecEnv([Masked] * 2), device="cpu")
    assert th.equal(weights(loaded), weights(model))
    assert loaded.policy_class is model.policy_class and type(loaded.rollout_buffer) is type(model.rollout_buffer)
    loaded.learn(60, reset_num_timesteps=False)
    assert loaded.num_timesteps > model.num_timesteps and not th.equal(weights(loaded), weights(model))
    masks = loaded.rollout_buffer.action_masks  # type: ignore[attr-defined]
    np.testing.assert_array_equal(masks, masks_of(DISCRETE, loaded.rollout_buffer.observations))  # type: ignore[arg-type]


@pytest.mark.parametrize("policy_kwargs", [{}, {"activation_fn": th.nn.GELU}], ids=["numpy", "pytorch"])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["copy", "pickle"])
def test_a_copy_learns_what_the_model_would(copied: Any, policy_kwargs: Any) -> None:
    # They share the generators of PyTorch and NumPy
    model = make(policy_kwargs=policy_kwargs).learn(60)
    other = copied(model)
    for each in (model, other):
        th.manual_seed(1)
        np.random.seed(1)  # SB3 shuffles minibatches with it
        each.learn(60)
    np.testing.assert_array_equal(other.rollout_buffer.actions, model.rollout_buffer.actions)
    assert th.equal(weights(other), weights(model))
    assert other.env.envs[0] is not model.env.envs[0]  # type: ignore[union-attr]


def test_a_file_of_maskable_ppo_is_taken_over(tmp_path: Path) -> None:
    ppo = MaskablePPO("MlpPolicy", DummyVecEnv([Masked] * 2), n_steps=32, batch_size=64, n_epochs=1, seed=0, device="cpu")
    ppo.learn(64).save(tmp_path / "ppo")
    with pytest.warns(UserWarning, match="saved by another algorithm"):
        model = MaskableREINFORCE.load(tmp_path / "ppo", env=DummyVecEnv([Masked] * 2), n_steps=20, device="cpu")
    assert th.equal(weights(model), weights(ppo))
    observations = np.array([[1, 2], [3, 4]], np.float32)
    masks = masks_of(DISCRETE, observations)
    expected = ppo.predict(observations, deterministic=True, action_masks=masks)[0]
    assert (model.predict(observations, deterministic=True, action_masks=masks)[0] == expected).all()
    assert n_warnings(model) == 1, "it was trained with masks"
    model.learn(60)
    assert model.rollout_buffer.action_masks.sum() < model.rollout_buffer.action_masks.size  # type: ignore[attr-defined]


def test_files_with_policies_of_another_kind_are_refused(tmp_path: Path) -> None:
    PPO("MlpPolicy", "CartPole-v1", device="cpu").save(tmp_path / "ppo")
    REINFORCE("MlpPolicy", "CartPole-v1", device="cpu").save(tmp_path / "reinforce")
    make().save(tmp_path / "maskable")
    for kind, name in ((MaskableREINFORCE, "ppo"), (MaskableREINFORCE, "reinforce"), (REINFORCE, "maskable")):
        with warnings.catch_warnings(), pytest.raises(ValueError, match="`policy` must be a subclass of"):
            warnings.simplefilter("ignore")
            kind.load(tmp_path / name)


# Policies and spaces


def test_other_policies_and_spaces_are_refused() -> None:
    with pytest.raises(ValueError, match="subclass of MaskableActorCriticPolicy, got ActorCriticPolicy"):
        make(policy=ActorCriticPolicy)
    with pytest.raises(AssertionError, match="The algorithm only supports"):
        MaskableREINFORCE("MlpPolicy", "Pendulum-v1")
    with pytest.raises(ValueError, match="one axis"):
        make(DummyVecEnv([lambda: Scripted(action_space=spaces.MultiDiscrete([[2, 3], [4, 5]]))]))


class OwnExtractor(FlattenExtractor):
    def __init__(self, observation_space: spaces.Space, scale: float):
        super().__init__(observation_space)
        self.scale = th.nn.Parameter(th.full((1,), scale))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.scale * super().forward(observations)


@pytest.mark.parametrize("share", [True, False], ids=["shared", "separate"])
@pytest.mark.parametrize("own", [True, False], ids=["own", "flatten"])
def test_extractors_may_be_shared_or_not_and_ones_own(share: bool, own: bool) -> None:
    policy_kwargs: dict[str, Any] = {"share_features_extractor": share, "net_arch": [8]}
    if own:
        policy_kwargs.update(features_extractor_class=OwnExtractor, features_extractor_kwargs={"scale": 0.5})
    model = make(policy_kwargs=policy_kwargs)
    before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(60)
    changed = {name for name, tensor in model.policy.state_dict().items() if not th.equal(tensor, before[name])}
    assert changed == set(before), "every layer learns"


class DictMasked(gym.ObservationWrapper):
    def __init__(self, env: gym.Env, image: bool):
        super().__init__(env)
        parts: dict[str, spaces.Space] = {"vector": env.observation_space}
        if image:
            parts["image"] = spaces.Box(0, 255, (36, 36, 1), np.uint8)
        self.observation_space = spaces.Dict(parts)

    def observation(self, observation: Any) -> Any:
        images = {}
        if "image" in self.observation_space.spaces:  # type: ignore[attr-defined]
            images["image"] = np.full((36, 36, 1), int(observation[1]), np.uint8)
        return {"vector": observation, **images}


class ImageMasked(DictMasked):
    def __init__(self, env: gym.Env):
        super().__init__(env, True)
        self.observation_space = self.observation_space["image"]  # type: ignore[index]

    def observation(self, observation: Any) -> Any:
        image = np.zeros((36, 36, 1), np.uint8)
        image[:2, 0, 0] = observation
        return image


@pytest.mark.parametrize("image", [True, False], ids=["image", "vector"])
def test_masks_go_with_dictionaries(image: bool) -> None:
    env = DummyVecEnv([lambda: DictMasked(Masked(), image)] * 2)
    model = make(env, "MultiInputPolicy").learn(40)
    buffer: Any = model.rollout_buffer
    np.testing.assert_array_equal(buffer.action_masks, masks_of(DISCRETE, buffer.observations["vector"]))
    samples = next(buffer.get(16))
    shown = samples.observations["vector"].numpy()
    np.testing.assert_array_equal(samples.action_masks.numpy(), masks_of(DISCRETE, shown))
    obs: Any = env.reset()
    masks = get_action_masks(env)
    assert all(map(is_allowed, [DISCRETE] * 2, masks, model.predict(obs, action_masks=masks)[0]))
    one = {key: value[0] for key, value in obs.items()}
    assert is_allowed(DISCRETE, masks[0], model.predict(one, action_masks=masks[0])[0])


def test_masks_go_with_images() -> None:
    env = DummyVecEnv([lambda: ImageMasked(Masked())] * 2)
    model = make(env, "CnnPolicy", n_steps=8, policy_kwargs={"features_extractor_kwargs": {"features_dim": 8}}).learn(16)
    buffer: Any = model.rollout_buffer
    np.testing.assert_array_equal(buffer.action_masks, masks_of(DISCRETE, buffer.observations[:, 0, :2, 0]))
    obs: Any = env.reset()
    masks = get_action_masks(env)
    assert all(map(is_allowed, [DISCRETE] * 2, masks, model.predict(obs, action_masks=masks)[0]))


class Inverted(MaskableCategoricalDistribution):
    """A distribution of the user's own: what the network prefers is rare."""

    def proba_distribution(self, action_logits: th.Tensor) -> Any:
        return super().proba_distribution(-action_logits)


class InvertedPolicy(MaskableActorCriticPolicy):
    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.action_dist = Inverted(self.action_dist.action_dim)  # type: ignore[attr-defined]


def test_a_distribution_of_ones_own_is_the_one_that_learns() -> None:
    model = make(policy=InvertedPolicy)
    assert isinstance(model.actor_critic, MaskableActorCritic)
    with th.no_grad():
        model.policy.action_net.bias.copy_(th.tensor([0.0, 50.0, 50.0, 50.0, 50.0]))
    model.learn(1)
    buffer: Any = model.rollout_buffer
    assert (buffer.actions[buffer.action_masks[:, 0]] == 0).all()


# Everything that REINFORCE has


class Bandit(Masked):
    """One action is worth more than the others, where it is allowed."""

    def step(self, action: Any) -> Any:
        obs, _, *others = super().step(action)
        worth = np.sum(np.asarray(action) == 1)
        return obs, float(worth), *others


@pytest.mark.parametrize(
    ("space", "kwargs"),
    [
        ("discrete", {"baseline": None, "target_kl": 0.05}),
        ("multi_discrete", {"baseline": "mean", "target_kl": 0.05}),
        ("multi_binary", {"baseline": "leave_one_out", "target_kl": 0.05}),
        ("discrete", {"baseline": "linear", "target_kl": 0.05}),
        ("multi_discrete", {"natural_gradient": False, "learning_rate": 0.02}),
        ("multi_binary", {"natural_gradient": True, "target_kl": 0.05}),
        ("discrete", {"complete_episodes": False, "gae_lambda": 0.9, "target_kl": 0.05}),
    ],
    ids=["none", "mean", "leave_one_out", "linear", "optimizer", "natural", "fixed"],
)
def test_the_better_allowed_action_is_learned(space: str, kwargs: dict[str, Any]) -> None:
    env = DummyVecEnv([lambda: Bandit(SPACES[space], (1, 3))] * 4)
    compares = kwargs.get("complete_episodes", True)
    monitor = GradientMonitor(every_n_updates=5, compare_baselines=compares, max_groups=16)
    model = make(env, n_steps=30, policy_kwargs={"net_arch": [16]}, **kwargs)
    model.learn(1)
    before = model.rollout_buffer.rewards.mean()
    model.learn(1000, callback=monitor)
    assert model.rollout_buffer.rewards.mean() > 1.1 * before
    logged = model.logger.name_to_value
    assert all(np.isfinite(logged[f"train/{name}"]) for name in ("approx_kl", "entropy_loss", "policy_loss"))
    assert monitor._records and all(np.isfinite(value) for record in monitor._records for value in record.values())
    # The entropy of allowed actions, and no more
    masks = model.rollout_buffer.action_masks  # type: ignore[attr-defined]
    parts = np.split(masks, np.cumsum(sizes_of(model.action_space))[:-1], axis=1)
    assert 0.0 <= -logged["train/entropy_loss"] <= sum(np.log(part.sum(axis=1)) for part in parts).mean() + 1e-5


def test_natural_steps_keep_their_divergence_with_a_policy_of_ones_own() -> None:
    class OwnPolicy(MaskableActorCriticPolicy):
        def evaluate_actions(self, obs: Any, actions: Any, action_masks: Any = None) -> Any:
            return super().evaluate_actions(obs, actions, action_masks)

    for space in SPACES.values():
        env = DummyVecEnv([lambda space=space: Bandit(space, (1, 3))] * 4)
        model = make(env, OwnPolicy, n_steps=30, natural_gradient=True, target_kl=0.01)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            model.learn(240)
        assert model.logger.name_to_value["train/kl_divergence"] == pytest.approx(0.01, rel=0.5)


class Large(Scripted):
    """Allows a third of thousands of actions."""

    def __init__(self) -> None:
        super().__init__((5,), action_space=spaces.Discrete(6000), reward=float)

    def action_masks(self) -> np.ndarray:
        return np.arange(6000) % 3 == self.timestep % 3


@pytest.mark.parametrize("policy", ["MlpPolicy", "own"])
def test_thousands_of_actions_are_learned_and_evaluated(policy: str) -> None:
    class OwnPolicy(MaskableActorCriticPolicy):
        def forward(self, obs: Any, deterministic: bool = False, action_masks: Any = None) -> Any:
            return super().forward(obs, deterministic, action_masks)

    kwargs = {"policy_kwargs": {"net_arch": [8], "ortho_init": False}, "natural_gradient": False}
    model = make(DummyVecEnv([Large]), OwnPolicy if policy == "own" else policy, **kwargs).learn(20)
    buffer: Any = model.rollout_buffer
    assert (buffer.actions.ravel() % 3 == buffer.timesteps % 3).all()
    assert evaluate_policy(model, Monitor(Large()), n_eval_episodes=2)[0] == 10.0


def test_the_fast_path_is_taken_without_masks_too() -> None:
    model = make(DummyVecEnv([lambda: Scripted(action_space=DISCRETE)])).learn(20, use_masking=False)
    assert type(model._player._sampler) is MaskableNumpySampler
