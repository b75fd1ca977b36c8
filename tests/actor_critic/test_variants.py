"""Policies of other kinds need an ``ActorCritic`` of their own, and nothing else of the package knows of them."""

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.maskable.utils import get_action_masks
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_reinforce import REINFORCE, GradientMonitor
from sb3_reinforce.actor_critic.actor_critic import ActorCritic
from sb3_reinforce.actor_critic.batch import Batch
from sb3_reinforce.actor_critic.sampler import PolicySampler, Timestep
from tests.helpers.environments import Scripted


class Masked(Scripted):
    """Allows at each timestep the actions whose number is not the timestep's, modulo 3."""

    def __init__(self) -> None:
        super().__init__((4, 7, 2), action_space=spaces.Discrete(3), reward=lambda timestep: float(timestep % 2))

    def action_masks(self) -> np.ndarray:
        return np.arange(3) != self.timestep % 3


class MaskablePolicy(MaskableActorCriticPolicy):
    """Takes the arguments of SB3's own policies."""

    def __init__(self, *args: Any, use_sde: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)


class MaskableSampler(PolicySampler):
    def __init__(self, policy: Any, env: Any):
        super().__init__(policy)
        self.env = env

    def act(self, obs: Any, timestep: Timestep) -> Any:
        self.extras = {"action_masks": get_action_masks(self.env)}
        return self.policy(obs, **self.extras)


class MaskableActorCritic(ActorCritic):
    def sampler(self, env: Any, rng: np.random.Generator) -> PolicySampler:
        return MaskableSampler(self.policy, env)

    def value(self, piece: Batch) -> th.Tensor:
        return self.policy.predict_values(piece.observations).flatten()


class MaskableREINFORCE(REINFORCE):
    policy_aliases: ClassVar[dict[str, Any]] = {"MlpPolicy": MaskablePolicy}
    policy_base = MaskableActorCriticPolicy

    @property
    def actor_critic(self) -> ActorCritic:
        return MaskableActorCritic(self.policy)


class Counting(ActorCritic):
    """Whole episodes are its pieces, as those of a recurrent policy have to be."""

    lengths: ClassVar[list[int]] = []

    def pieces(self, batch: Batch) -> Iterator[Batch]:
        if batch.episodes is None:  # what follows the last timesteps
            yield from super().pieces(batch)
            return
        for start, length in zip(batch.episodes.starts.tolist(), batch.episodes.lengths.tolist(), strict=True):
            piece = batch.part(slice(start, start + length))
            assert piece.episodes is not None and piece.episodes.lengths.tolist() == [length] == [len(piece)]
            self.lengths.append(length)
            yield piece

    def last_values(self, batch: Batch, episode_ids: Sequence[int], observations: Any) -> th.Tensor:
        assert batch.episodes is not None and max(episode_ids) < len(batch.episodes)
        return super().last_values(batch, episode_ids, observations)


class WholeEpisodes(REINFORCE):
    @property
    def actor_critic(self) -> ActorCritic:
        return Counting(self.policy)


@pytest.mark.parametrize(
    "kwargs", [{}, {"natural_gradient": True}, {"baseline": "leave_one_out"}, {"ent_coef": 0.01}], ids=str
)
def test_masks_are_stored_with_the_timesteps_and_evaluated_with_them(kwargs: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"n_steps": 20, "seed": 0, "device": "cpu", "batch_size": 8, **kwargs}
    model = MaskableREINFORCE("MlpPolicy", DummyVecEnv([Masked] * 3), **arguments)
    before = th.cat([p.detach().flatten() for p in model.policy.action_net.parameters()])
    model.learn(300, callback=GradientMonitor(every_n_updates=1, compare_baselines=True))
    buffer = model.rollout_buffer
    masks = buffer.extras["action_masks"]
    assert masks.shape == (len(buffer.rewards), 3)
    expected = np.arange(3) != buffer.timesteps[:, None] % 3
    np.testing.assert_array_equal(masks.astype(bool), expected)
    assert (buffer.actions.ravel() != buffer.timesteps % 3).all()
    with th.no_grad():
        log_probs = model.actor_critic.log_probs(model.batch())
        without = model.policy.evaluate_actions(model.batch().observations, model.batch().actions)[1]
    assert log_probs.isfinite().all() and (log_probs > without).all()
    after = th.cat([p.detach().flatten() for p in model.policy.action_net.parameters()])
    assert not th.equal(before, after)


def test_pieces_may_be_whole_episodes() -> None:
    def trained(algorithm: type[REINFORCE], **kwargs: Any) -> Any:
        env = DummyVecEnv([lambda: Scripted((4, 7, 2), truncated=True, reward=lambda timestep: float(timestep % 2))] * 2)
        model = algorithm("MlpPolicy", env, n_steps=20, seed=0, device="cpu", n_critic_updates=0, **kwargs)
        return th.cat([p.detach().flatten() for p in model.learn(100).policy.parameters()])

    class AnyPolicy(REINFORCE):
        @property
        def actor_critic(self) -> ActorCritic:
            return ActorCritic(self.policy)

    for kwargs in ({}, {"natural_gradient": True}):
        Counting.lengths.clear()
        # Sums in another order
        th.testing.assert_close(trained(WholeEpisodes, **kwargs), trained(AnyPolicy, **kwargs), rtol=1e-3, atol=1e-4)
        assert set(Counting.lengths) >= {2, 4, 7}
