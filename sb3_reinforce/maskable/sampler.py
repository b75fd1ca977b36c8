"""Drawing actions among those that the environments allow."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th
from sb3_contrib.common.maskable.distributions import (
    MaskableBernoulliDistribution,
    MaskableCategoricalDistribution,
    MaskableMultiCategoricalDistribution,
)
from stable_baselines3.common.vec_env import VecEnv

from sb3_reinforce.actor_critic.numpy_sampler import CategoricalHead, Head, MultiCategoricalHead, NumpySampler
from sb3_reinforce.actor_critic.sampler import PolicySampler, Timestep
from sb3_reinforce.maskable.masks import MaskLayout, mask_source

#: What draws from sb3-contrib's distributions: a masked logit is minus infinity, and never the largest with any noise
HEADS: dict[type, type[Head]] = {
    MaskableCategoricalDistribution: CategoricalHead,
    MaskableMultiCategoricalDistribution: MultiCategoricalHead,
    MaskableBernoulliDistribution: MultiCategoricalHead,
}


def has_known_distribution(policy: Any) -> bool:
    """
    :param policy: A maskable policy
    :return: Whether its distribution of actions is one of sb3-contrib's own, none of whose methods is replaced
    """
    kind = type(policy.action_dist)
    return kind in HEADS and not any(callable(getattr(kind, name, None)) for name in vars(policy.action_dist))


class MaskReader:
    """
    The masks of the states that the environments are in.

    :param env: The environments
    :param layout: The form of a mask
    """

    def __init__(self, env: VecEnv, layout: MaskLayout):
        self.env = env
        self.layout = layout
        self._source = mask_source(env)

    def start_rollout(self) -> None:
        """Find the source anew, as the wrappers may have been replaced."""
        self._source = mask_source(self.env)

    def __call__(self, timestep: Timestep) -> np.ndarray:
        """
        :param timestep: Gives the timestep within its episode that an environment is at
        :return: Masks, shape ``(n_envs, n_choices)``, bool, as copies
        :raises ValueError: If a mask has another form, or allows no action
        """
        given = self._source()
        masks = self.layout.rows(given, self.env.num_envs)
        env_id = self.layout.first_without_choice(masks)
        if env_id is not None:
            raise ValueError(
                f"The action mask must allow at least one choice, got {given[env_id]!r} in environment {env_id} at timestep "
                f"{timestep(env_id)} of its episode."
            )
        return masks.copy() if masks is given else masks

    def check_allowed(self, actions: th.Tensor, masks: np.ndarray, policy: object, timestep: Timestep) -> None:
        """
        Check the actions of a policy of the user's own, which may forget the masks.

        :param actions: Actions, shape ``(n_envs, *action_shape)``
        :param masks: Masks, shape ``(n_envs, n_choices)``
        :param policy: The policy
        :param timestep: Gives the timestep within its episode that an environment is at
        :raises ValueError: If an action is not allowed
        """
        taken = actions.cpu().numpy()
        columns = taken.reshape(len(taken), -1).astype(int) + self.layout.starts
        allowed = np.take_along_axis(masks, columns, axis=1).all(axis=1)
        if not allowed.all():
            env_id = int(allowed.argmin())
            raise ValueError(
                f"The actions of {type(policy).__name__} must be allowed by `action_masks`, got {taken[env_id]} in "
                f"environment {env_id} at timestep {timestep(env_id)} of its episode."
            )


class MaskablePolicySampler(PolicySampler):
    """
    Acts with the policy's own ``forward``.

    :param policy: The policy
    :param reader: Gives the masks
    """

    def __init__(self, policy: object, reader: MaskReader):
        super().__init__(policy)  # type: ignore[arg-type]
        self.reader = reader

    def start_rollout(self) -> None:
        self.reader.start_rollout()

    def act(self, obs: th.Tensor | dict[str, th.Tensor], timestep: Timestep) -> tuple[th.Tensor, ...]:  # type: ignore[override]
        self.extras = {"action_masks": self.reader(timestep)}
        actions, *evaluated = self.policy(obs, **self.extras)
        self.reader.check_allowed(actions, self.extras["action_masks"], self.policy, timestep)
        return actions, *evaluated


class MaskableActorSampler(MaskablePolicySampler):
    """
    Acts with the actor alone.

    :param policy: The policy
    :param reader: Gives the masks
    :param draw: Draws actions for observations and masks
    """

    evaluates = False

    def __init__(self, policy: object, reader: MaskReader, draw: Callable[..., th.Tensor]):
        super().__init__(policy, reader)
        self.draw = draw

    def act(self, obs: th.Tensor | dict[str, th.Tensor], timestep: Timestep) -> tuple[th.Tensor, ...]:  # type: ignore[override]
        self.extras = {"action_masks": self.reader(timestep)}
        return self.draw(obs, self.extras["action_masks"]), None, None  # type: ignore[return-value]


class MaskableNumpySampler(NumpySampler):
    """
    Acts in NumPy, see :class:`~sb3_reinforce.actor_critic.numpy_sampler.NumpySampler`.

    :param policy: The policy
    :param reader: Gives the masks; ``None``: all actions are allowed
    :param n_envs: Number of environments
    :param rng: Source of the actions' randomness
    """

    def __init__(self, policy: object, reader: MaskReader | None, n_envs: int, rng: np.random.Generator):
        super().__init__(policy, n_envs, rng)  # type: ignore[arg-type]
        self.reader = reader

    def make_head(self) -> Head:
        return HEADS[type(self.policy.action_dist)](self.policy, self.n_envs)

    def start_rollout(self) -> None:
        super().start_rollout()
        if self.reader is not None:
            self.reader.start_rollout()

    def allowed(self, outputs: np.ndarray, timestep: Timestep) -> np.ndarray:
        if self.reader is None:
            return outputs
        masks = self.reader(timestep)
        self.extras = {"action_masks": masks}
        return masked_outputs(outputs, masks)


def masked_outputs(outputs: np.ndarray, masks: np.ndarray | None) -> np.ndarray:
    """
    :param outputs: Logits, shape ``(n_envs, n_choices)``
    :param masks: Which choices are allowed; ``None``: all of them
    :return: The logits, minus infinity where a choice is not allowed
    """
    return outputs if masks is None else np.where(masks, outputs, np.float32(-np.inf))
