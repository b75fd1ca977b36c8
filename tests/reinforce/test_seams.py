"""What users may rely on at the seams: their own buffers, steps and samplers, copies, and the order of the checks."""

import copy
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.policies import ActorCriticPolicy

from sb3_reinforce import REINFORCE, EpisodeRolloutBuffer, GradientMonitor, PolicyStep
from sb3_reinforce.actor_critic.actor_critic import ActorCritic
from sb3_reinforce.actor_critic.sampler import PolicySampler
from tests.helpers.environments import Scripted, vec


def make(env: Any = "CartPole-v1", **kwargs: Any) -> REINFORCE:
    return REINFORCE("MlpPolicy", env, **{"n_steps": 32, "seed": 0, "device": "cpu", **kwargs})


def weights(model: REINFORCE) -> th.Tensor:
    return th.cat([parameter.detach().flatten() for parameter in model.policy.parameters()])


class Likely(RolloutBuffer):
    """Leaves out the advantages of unlikely actions."""

    seen: list[float] = []  # noqa: RUF012

    def get(self, batch_size: int | None = None) -> Any:
        for samples in super().get(batch_size):
            self.seen.extend(samples.old_log_prob.tolist())
            yield samples._replace(advantages=samples.advantages * (samples.old_log_prob > np.log(0.5)))


class WithoutLogProbs(RolloutBuffer):
    def _get_samples(self, batch_inds: np.ndarray, env: Any = None) -> Any:
        return super()._get_samples(batch_inds, env)._replace(old_log_prob=None)


class Drawing(RolloutBuffer):
    """Draws numbers of its own whenever it is read."""

    rng: Any = None

    def get(self, batch_size: int | None = None) -> Any:
        self.rng = self.rng or np.random.default_rng(0)
        for samples in super().get(batch_size):
            noise = th.as_tensor(self.rng.uniform(size=len(samples.advantages)), dtype=th.float32)
            yield samples._replace(advantages=samples.advantages * noise)


def test_a_buffer_of_ones_own_gets_its_own_log_probabilities() -> None:
    Likely.seen.clear()
    make(complete_episodes=False, rollout_buffer_class=Likely).learn(64)
    assert len(Likely.seen) == 64 and all(-2.0 < log_prob < 0.0 for log_prob in Likely.seen)


def test_samples_need_no_log_probabilities() -> None:
    model = make(complete_episodes=False, rollout_buffer_class=WithoutLogProbs)
    before = weights(model)
    assert not th.equal(weights(model.learn(64)), before)


@pytest.mark.parametrize("buffer", [Likely, Drawing])
def test_the_monitor_does_not_read_what_reading_changes(buffer: type[RolloutBuffer]) -> None:
    def trained(callback: Any) -> th.Tensor:
        return weights(make(complete_episodes=False, rollout_buffer_class=buffer).learn(160, callback=callback))

    assert th.equal(trained(None), trained(GradientMonitor(every_n_updates=1)))


def test_discounts_are_those_of_the_samples() -> None:
    class Thinned(EpisodeRolloutBuffer):
        def _get_samples(self, batch_inds: Any, env: Any = None) -> Any:
            return type(samples)(*(part[::2] for part in samples)) if (samples := super()._get_samples(batch_inds)) else None

    model = make(rollout_buffer_class=Thinned, discount_state_distribution=True, n_critic_updates=0).learn(32)
    batch = model.batch()
    assert batch.timesteps is not None and len(batch) == -(-len(model.rollout_buffer.timesteps) // 2)
    np.testing.assert_array_equal(batch.timesteps.numpy(), model.rollout_buffer.timesteps[::2])


def test_the_advantages_of_a_buffer_of_ones_own_count() -> None:
    class Signs(EpisodeRolloutBuffer):
        def set_returns_and_advantages(self, last_values: np.ndarray) -> None:
            super().set_returns_and_advantages(last_values)
            self.advantages = np.sign(self.advantages)

    model = make(rollout_buffer_class=Signs).learn(32)
    assert set(model.rollout_buffer.advantages.tolist()) <= {-1.0, 0.0, 1.0}


def test_actions_are_clipped_to_the_bounds_of_the_environment() -> None:
    class Narrow(ActorCriticPolicy):
        def __init__(self, observation_space: spaces.Space, action_space: spaces.Space, *args: Any, **kwargs: Any):
            super().__init__(observation_space, spaces.Box(-1, 1, (1,)), *args, **kwargs)

    env = Scripted((50,), action_space=spaces.Box(-2, 2, (1,)))
    REINFORCE(Narrow, vec(env), n_episodes=1, seed=0, device="cpu", policy_kwargs={"log_std_init": 2.0}).learn(50)
    assert np.abs(env.received_actions).max() == 2.0


# Samplers


class Asking(PolicySampler):
    """Keeps the environments that it was made for."""

    def __init__(self, policy: Any, env: Any):
        super().__init__(policy)
        self.env = env


class AskingActorCritic(ActorCritic):
    def sampler(self, env: Any, rng: np.random.Generator) -> PolicySampler:
        return Asking(self.policy, env)


class AskingREINFORCE(REINFORCE):
    @property
    def actor_critic(self) -> ActorCritic:
        return AskingActorCritic(self.policy)


def test_a_sampler_is_made_for_the_environments_that_it_acts_in() -> None:
    model = AskingREINFORCE("MlpPolicy", vec(Scripted((5,))), n_steps=10, seed=0, device="cpu").learn(10)
    other = vec(Scripted((4,)))
    model.set_env(other)
    model.learn(10)
    assert model._player._sampler.env is other  # type: ignore[union-attr]


def test_sb3s_buffers_are_refused_with_a_sampler_that_sb3_does_not_use() -> None:
    kwargs: dict[str, Any] = {"complete_episodes": False, "rollout_buffer_class": RolloutBuffer, "n_steps": 10}
    model = AskingREINFORCE("MlpPolicy", vec(Scripted((5,))), **kwargs)
    with pytest.raises(ValueError, match="a sampler of one's own, that of AskingActorCritic, got RolloutBuffer"):
        model.learn(10)


# Policy steps


class Counting(PolicyStep):
    n_checked = 0

    def check(self) -> None:
        self.n_checked += 1

    def take(self, *args: Any) -> Any:
        return None


WRONG_STEPS = {
    "a name": "natural",
    "another class": int,
    "an instance": Counting(None),
    "a function": lambda model: Counting(model),
}


@pytest.mark.parametrize("name", WRONG_STEPS)
def test_what_is_no_policy_step_is_refused_before_anything_is_played(name: str) -> None:
    model = make()
    model.policy_step_class = WRONG_STEPS[name]  # type: ignore[assignment]
    with pytest.raises(ValueError, match="`policy_step_class` must be a subclass of PolicyStep or None, got "):
        model.learn(32)
    assert model.num_timesteps == 0


def test_a_policy_step_and_the_natural_gradient_exclude_each_other() -> None:
    model = make(natural_gradient=True)
    model.policy_step_class = Counting
    with pytest.raises(ValueError, match="cannot be used with a `policy_step_class`, got Counting"):
        model.learn(32)


def test_a_step_is_checked_when_learning_begins_and_may_return_nothing() -> None:
    model = make()
    model.policy_step_class = Counting
    model.learn(32)
    assert model.policy_step.n_checked == 1 and model._n_updates >= 1  # type: ignore[attr-defined]


def test_load_takes_a_policy_step(tmp_path: Any) -> None:
    make().save(tmp_path / "model")
    model = REINFORCE.load(tmp_path / "model", env=gym.make("CartPole-v1"), policy_step_class=Counting, device="cpu")
    assert isinstance(model.learn(32).policy_step, Counting)


def test_a_step_that_does_not_say_how_names_itself() -> None:
    model = make()
    model.policy_step_class = PolicyStep
    with pytest.raises(NotImplementedError, match="PolicyStep must define `take`"):
        model.learn(32)


@pytest.mark.filterwarnings("default")
def test_a_step_that_is_chosen_again_is_the_one_before() -> None:
    model = make(natural_gradient=True)
    natural = model.policy_step
    model.natural_gradient = False
    assert model.policy_step is not natural
    model.natural_gradient = True
    assert model.policy_step is natural


# Copies


@pytest.mark.parametrize("n_timesteps", [0, 64])
def test_a_shallow_copy_learns_with_parts_of_its_own(n_timesteps: int) -> None:
    model = make()
    if n_timesteps:
        model.learn(n_timesteps)
    copied = copy.copy(model)
    assert copied._player.model is copied and copied.policy_step.model is copied
    assert model._player.model is model
    copied.learn(64)


# The order of the checks


class Made(Scripted):
    n_made = 0

    def __init__(self) -> None:
        super().__init__()
        Made.n_made += 1


def test_arguments_are_checked_before_an_environment_is_made() -> None:
    gym.register("Made-v0", entry_point=Made)
    try:
        with pytest.raises(ValueError, match="`gamma` must be"):
            REINFORCE("MlpPolicy", "Made-v0", gamma=3.0)
        assert Made.n_made == 0
    finally:
        del gym.registry["Made-v0"]
    for kwargs in ({"env": "No-v0"}, {"env": None}, {"env": "CartPole-v1", "_init_setup_model": False}):
        with pytest.raises(ValueError, match="`gamma` must be"):
            REINFORCE("MlpPolicy", **{"gamma": 3.0, **kwargs})


def test_what_the_environment_rules_out_is_said_before_seeds_are_set() -> None:
    np.random.seed(5)
    expected = np.random.rand()
    np.random.seed(5)
    with pytest.raises(ValueError, match="needs at least two episodes"):
        make(baseline="leave_one_out", n_episodes=1, policy_kwargs={"no such": 1})
    assert np.random.rand() == expected


def test_one_construction_checks_the_arguments_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from sb3_reinforce import arguments

    calls, check = [], arguments.check_arguments
    monkeypatch.setattr(arguments, "check_arguments", lambda given: calls.append(1) or check(given))
    model = make(gamma=np.float32(0.5))
    assert len(calls) == 1 and type(model.gamma) is float
    model.learn(1)
    assert len(calls) == 2
