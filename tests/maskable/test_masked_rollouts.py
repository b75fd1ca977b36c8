"""Which actions are played, and which masks are stored with them."""

import re
from typing import Any

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.wrappers import ActionMasker
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecMonitor,
    VecNormalize,
)

from sb3_reinforce import MaskableREINFORCE
from sb3_reinforce.maskable.sampler import MaskableActorSampler, MaskableNumpySampler, MaskablePolicySampler
from tests.helpers.environments import Scripted
from tests.maskable.environments import SPACES, Masked, is_allowed, mask_of, masks_of, sizes_of

DISCRETE = SPACES["discrete"]


class OwnForward(MaskableActorCriticPolicy):
    """A policy that is called with its own methods."""

    def forward(self, obs: Any, deterministic: bool = False, action_masks: Any = None) -> Any:
        return super().forward(obs, deterministic, action_masks)


#: The three ways to draw actions: in NumPy, with the actor alone, and with the policy's own forward
WAYS: dict[str, tuple[Any, dict[str, Any], type]] = {
    "numpy": ("MlpPolicy", {}, MaskableNumpySampler),
    "actor": ("MlpPolicy", {"activation_fn": th.nn.GELU}, MaskableActorSampler),
    "forward": (OwnForward, {}, MaskablePolicySampler),
}


def make(env: Any, way: str = "numpy", **kwargs: Any) -> MaskableREINFORCE:
    policy, policy_kwargs, _ = WAYS[way]
    arguments: dict[str, Any] = {"n_steps": 20, "seed": 0, "device": "cpu", "batch_size": 32, "n_critic_updates": 1, **kwargs}
    return MaskableREINFORCE(policy, env, policy_kwargs={"net_arch": [8], **policy_kwargs}, **arguments)


def assert_masks_are_stored(model: MaskableREINFORCE, observations: np.ndarray | None = None) -> None:
    """The masks in the buffer and in its samples are those of the observations, and allow the actions."""
    buffer: Any = model.rollout_buffer
    shown = buffer.observations if observations is None else observations
    expected = masks_of(model.action_space, shown)
    assert buffer.action_masks.dtype == bool
    np.testing.assert_array_equal(buffer.action_masks, expected)
    assert all(map(is_allowed, [model.action_space] * len(expected), expected, buffer.actions))
    (samples,) = buffer.get(shuffle=True)
    if observations is None:
        np.testing.assert_array_equal(samples.action_masks.numpy(), masks_of(model.action_space, samples.observations.numpy()))
    assert samples.action_masks.dtype == th.bool


@pytest.mark.parametrize("kwargs", [{}, {"complete_episodes": False, "n_steps": 9}], ids=["whole", "fixed"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_the_mask_is_the_one_of_the_state_also_across_resets(space: spaces.Space, way: str, kwargs: dict[str, Any]) -> None:
    env = DummyVecEnv(
        [lambda lengths=lengths: Masked(space, lengths, truncated=True) for lengths in ((4, 7, 2), (3,), (1, 9))]
    )
    model = make(env, way, **kwargs)
    for _ in range(3):
        model.learn(1, reset_num_timesteps=False)
        assert type(model._player._sampler) is WAYS[way][2]
        assert_masks_are_stored(model)
    assert len(np.unique(model.rollout_buffer.episode_ids)) > 5


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
def test_actions_come_with_the_probabilities_of_the_masked_policy(space: spaces.Space, way: str) -> None:
    model = make(DummyVecEnv([lambda: Masked(space, (1,))] * 50), way, n_episodes=100, natural_gradient=False)
    with th.no_grad():
        logits = th.linspace(-1.0, 1.0, model.policy.action_net.bias.numel())
        model.policy.action_net.bias.copy_(logits)
        model.policy.action_net.weight.zero_()
    _, callback = model._setup_learn(1)
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, None)  # type: ignore[arg-type]
    all_masks, actions = model.rollout_buffer.action_masks, model.rollout_buffer.actions.astype(int)  # type: ignore[attr-defined]
    first, deviations = 0, []
    for dimension, size in enumerate(sizes_of(space)):
        part = slice(first, first + size)
        masks, index = np.unique(all_masks[:, part], axis=0, return_inverse=True)
        assert len(masks) == size + 1, "each value is forbidden somewhere"
        for i, mask in enumerate(masks):
            drawn = actions[index.ravel() == i, dimension]
            weights = np.where(mask, np.exp(logits.numpy()[part]), 0.0)
            probs = weights / weights.sum()
            found = np.bincount(drawn, minlength=size) / len(drawn)
            assert (found[~mask] == 0.0).all()
            errors = np.sqrt(probs * (1.0 - probs) / len(drawn))
            assert errors.max() < 0.025, "too few to tell right from wrong"
            deviations.append(np.max(np.abs(found - probs) / np.maximum(errors, 1e-9)))
        first += size
    assert max(deviations) < 4.5


class Counting(Masked):
    """Overwrites the same array at each call."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.array = np.ones(5, dtype=bool)

    def action_masks(self) -> Any:
        self.array[:] = super().action_masks()
        return self.array


SHARED = np.ones(5, dtype=bool)


class Sharing(Counting):
    """Overwrites an array that belongs to all environments."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.array = SHARED


class Listing(Masked):
    def action_masks(self) -> Any:
        return super().action_masks().astype(int).tolist()


@pytest.mark.parametrize("kind", [Counting, Sharing, Listing])
@pytest.mark.parametrize("way", WAYS)
def test_arrays_that_are_overwritten_do_no_harm(kind: type[Masked], way: str) -> None:
    model = make(DummyVecEnv([lambda: kind(lengths=(4, 7)), lambda: kind(lengths=(3,))]), way)
    assert_masks_are_stored(model.learn(60))


class PerDimension(Masked):
    """Gives a part for each dimension, of different lengths."""

    def action_masks(self) -> Any:
        mask = super().action_masks()
        return [mask[:3], mask[3:5].tolist(), mask[5:]]


def test_environments_may_give_a_part_for_each_dimension() -> None:
    space = SPACES["multi_discrete"]
    model = make(DummyVecEnv([lambda: PerDimension(space)] * 2)).learn(60)
    assert_masks_are_stored(model)


class OfAll(VecEnvWrapper):
    """Gives the masks of all environments itself, as one array that each step overwrites."""

    def __init__(self, venv: VecEnv):
        super().__init__(venv)
        self.masks = np.ones((venv.num_envs, 5), dtype=bool)

    def reset(self) -> Any:
        obs: Any = self.venv.reset()
        self.masks[:] = masks_of(DISCRETE, obs)
        return obs

    def step_wait(self) -> Any:
        obs, *others = self.venv.step_wait()
        self.masks[:] = masks_of(DISCRETE, obs)  # type: ignore[arg-type]
        return obs, *others

    def action_masks(self) -> np.ndarray:
        return self.masks


class WithoutMask(Masked):
    action_masks = property()  # type: ignore[assignment]


class Misleading(Masked):
    """Its masks are wrong: a wrapper corrects them."""

    def action_masks(self) -> Any:
        return ~super().action_masks()


@pytest.mark.parametrize("inner", [WithoutMask, Misleading])
@pytest.mark.parametrize("outer", [lambda env: env, lambda env: VecMonitor(VecFrameStack(env, 1))], ids=["bare", "wrapped"])
def test_masks_may_come_from_the_vector_environment_itself(inner: Any, outer: Any) -> None:
    model = make(outer(OfAll(DummyVecEnv([lambda: inner(lengths=(4, 7)), lambda: inner(lengths=(3,))]))))
    assert_masks_are_stored(model.learn(60))


class Corrects(OfAll):
    """Lies around another that has masks, and changes them."""

    def action_masks(self) -> np.ndarray:
        return ~self.venv.action_masks()  # type: ignore[attr-defined]


class Wrong(OfAll):
    def action_masks(self) -> np.ndarray:
        return ~super().action_masks()


def test_of_several_vector_environments_with_masks_the_outermost_counts() -> None:
    model = make(VecMonitor(Corrects(Wrong(DummyVecEnv([lambda: WithoutMask(lengths=(4, 7))])))))
    assert_masks_are_stored(model.learn(30))


def of_scripted(env: Any) -> np.ndarray:
    inner = env.unwrapped
    return mask_of(DISCRETE, inner.n_resets, inner.timestep)


def make_with_masker() -> Any:
    return ActionMasker(Scripted((4, 7, 2), action_space=DISCRETE, reward=float), of_scripted)


def test_masks_come_through_processes() -> None:
    env = SubprocVecEnv([make_with_masker] * 2, start_method="fork")
    try:
        model = make(env).learn(60)
        assert_masks_are_stored(model)
    finally:
        env.close()


def test_masks_come_through_the_wrappers_of_sb3() -> None:
    # The last two of the stacked numbers are the newest observation
    env = VecNormalize(VecFrameStack(VecMonitor(DummyVecEnv([make_with_masker] * 2)), 3), norm_obs=False)
    model = make(env).learn(60)
    assert_masks_are_stored(model, model.rollout_buffer.observations[:, -2:])


class ChangesTheMasks(BaseCallback):
    """After each step allows only one action, in both environments another one, and in the end replaces the method."""

    def __init__(self) -> None:
        super().__init__()
        self.expected: list[int] = []

    def _on_step(self) -> bool:
        for env_id, env in enumerate(self.training_env.envs):  # type: ignore[attr-defined]
            only = (self.n_calls + env_id) % 5
            env.unwrapped.action_masks = lambda only=only: np.arange(5) == only
        self.expected.append(self.n_calls % 5)
        return True


@pytest.mark.parametrize("way", WAYS)
def test_masks_that_a_callback_changes_after_a_step_count_at_the_next_one(way: str) -> None:
    class Free(Masked):
        def step(self, action: Any) -> Any:
            return Scripted.step(self, action)

    model, callback = make(DummyVecEnv([lambda: Monitor(Free(lengths=(4,)))] * 2), way, n_steps=12), ChangesTheMasks()
    model.learn(24, callback=callback)
    of_first = model.rollout_buffer.actions[:12].ravel()
    assert of_first[1:].tolist() == callback.expected[:11]
    assert model.rollout_buffer.actions[13:].ravel().tolist() == [(only + 1) % 5 for only in callback.expected[:11]]


# What is wrong with an environment


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("space", "part"), [(DISCRETE, slice(None)), (SPACES["multi_discrete"], slice(3, 5))], ids=["all", "part"]
)
def test_a_mask_without_a_choice_is_an_error_that_names_the_place(space: Any, part: slice, way: str) -> None:
    class Stuck(Masked):
        def action_masks(self) -> Any:
            mask = super().action_masks()
            mask[part] &= self.timestep != 3
            return mask

    model = make(DummyVecEnv([lambda: Masked(space, (9,)), lambda: Stuck(space, (2, 9))]), way)
    with pytest.raises(ValueError, match=r"at least one choice, got .* in environment 1 at timestep 3 of its episode"):
        model.learn(60)


def test_a_mask_of_another_shape_is_an_error_while_playing() -> None:
    class Wide(Masked):
        def action_masks(self) -> Any:
            return np.ones((5, 1))

    with pytest.raises(ValueError, match=re.escape("must have the shape (5,), got the shape (5, 1) in environment 1")):
        make(DummyVecEnv([Masked, Wide])).learn(60)


@pytest.mark.parametrize("error", [ValueError("no masks today"), KeyError("timestep"), AttributeError("missing")], ids=repr)
def test_an_error_in_an_environments_own_method_reaches_the_user(error: Exception) -> None:
    class Broken(Masked):
        def action_masks(self) -> Any:
            if self.timestep == 2:
                raise error
            return super().action_masks()

    model = make(DummyVecEnv([Broken]))
    with pytest.raises(type(error)) as raised:
        model.learn(60)
    assert raised.value is error
    model.set_env(DummyVecEnv([Masked]))
    assert_masks_are_stored(model.learn(60))


def test_an_environment_without_masks_is_an_error_unless_it_is_wanted() -> None:
    model = make(DummyVecEnv([Masked, lambda: Scripted((3,), action_space=DISCRETE)]))
    with pytest.raises(ValueError, match=r"`action_masks\(\)`.*ActionMasker.*use_masking=False"):
        model.learn(60)
    assert model.num_timesteps == 0
    model.set_env(DummyVecEnv([lambda: Scripted((3,), action_space=DISCRETE)] * 2))
    model.learn(60, use_masking=False)
    assert model.rollout_buffer.action_masks.all()  # type: ignore[attr-defined]
    assert model.rollout_buffer.action_masks.shape == (len(model.rollout_buffer.actions), 5)  # type: ignore[attr-defined]
    with pytest.raises(ValueError, match="`use_masking` must be True or False, got None"):
        model.learn(60, use_masking=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("way", WAYS)
def test_masking_can_be_switched_between_two_calls_of_learn(way: str) -> None:
    class Lenient(Masked):
        def step(self, action: Any) -> Any:
            return Scripted.step(self, action)

    def n_forbidden(model: MaskableREINFORCE) -> int:
        masks = masks_of(DISCRETE, model.rollout_buffer.observations)  # type: ignore[arg-type]
        return int((~np.take_along_axis(masks, model.rollout_buffer.actions.astype(int), axis=1)).sum())

    model = make(DummyVecEnv([Lenient] * 2), way)
    for use_masking in (False, True, False, True):
        model.learn(60, use_masking=use_masking)
        assert (n_forbidden(model) == 0) is use_masking
        assert ("action_masks" in model.rollout_buffer.extras) is use_masking  # type: ignore[attr-defined]


@pytest.mark.parametrize("way", WAYS)
def test_a_policy_that_is_replaced_between_two_calls_of_learn_acts_under_the_masks(way: str) -> None:
    model = make(DummyVecEnv([Masked] * 2)).learn(60)
    model.policy = make(DummyVecEnv([Masked] * 2), way).policy
    assert_masks_are_stored(model.learn(60))
    assert type(model._player._sampler) is WAYS[way][2]


class Forgets(MaskableActorCriticPolicy):
    """A policy of the user's own that does not pass the masks on."""

    def forward(self, obs: Any, deterministic: bool = False, action_masks: Any = None) -> Any:
        return super().forward(obs, deterministic)


def test_a_policy_of_ones_own_that_forgets_the_masks_is_an_error() -> None:
    model = MaskableREINFORCE(Forgets, DummyVecEnv([Masked] * 2), n_steps=200, seed=0, device="cpu")  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"Forgets must be allowed by `action_masks`, got .* in environment \d at timestep \d+"
    ):
        model.learn(400)


@pytest.mark.parametrize("way", WAYS)
def test_an_output_that_is_nan_is_an_error_that_names_the_place(way: str) -> None:
    model = make(DummyVecEnv([Masked] * 2), way)
    with th.no_grad():
        model.policy.action_net.bias[1] = np.nan
    with pytest.raises(ValueError, match="output of the policy must be finite, got nan in environment 0 at timestep 0"):
        model.learn(60)


# What callbacks read


class Reads(BaseCallback):
    def __init__(self, masked: bool):
        super().__init__()
        self.masked = masked

    def _on_step(self) -> bool:
        masks = self.locals["action_masks"]
        shown = self.locals["acted_on"]
        if self.masked:
            np.testing.assert_array_equal(masks, masks_of(DISCRETE, shown))
        else:
            assert masks is None and "action_masks" in self.locals
        policy: Any = self.model.policy
        actions = th.as_tensor(self.locals["actions"])
        with th.no_grad():
            values, log_probs, _ = policy.evaluate_actions(th.as_tensor(shown), actions, action_masks=masks)
        th.testing.assert_close(self.locals["values"], values)
        th.testing.assert_close(self.locals["log_probs"], log_probs)
        return True


@pytest.mark.parametrize("masked", [True, False])
@pytest.mark.parametrize("way", WAYS)
def test_callbacks_read_masks_values_and_log_probabilities(way: str, masked: bool) -> None:
    env = Masked if masked else (lambda: Scripted((4, 7, 2), action_space=DISCRETE))
    callback = Reads(masked)
    make(DummyVecEnv([env] * 2), way).learn(60, callback=callback, use_masking=masked)
    assert callback.n_calls >= 30
