"""The local variables of a rollout that callbacks of A2C and PPO read, and that REINFORCE does not need itself."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, ConvertCallback
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import obs_as_tensor

from sb3_reinforce.actor_critic.batch import Batch
from sb3_reinforce.actor_critic.sampler import of_space


class RolloutLocals(dict[str, Any]):
    """
    The ``self.locals`` of callbacks. Besides the variables of ``collect_rollouts`` it has those of SB3's that REINFORCE does
    not compute while it plays, as tensors: ``obs_tensor``, the observations that the policy acted on; their ``values`` (after
    a rollout: those of the next observations), shape ``(n_envs, 1)``; and ``log_probs`` of the actions, shape ``(n_envs,)``.
    They are computed only when a callback reads them. Further arguments of the policy, such as ``action_masks``, are there.

    :param variables: Variables to begin with
    """

    def __init__(self, variables: dict[str, Any]):
        super().__init__(variables)
        self._computed: dict[str, th.Tensor] = {}
        self._computed_at: tuple[int, bool] | None = None

    _COMPUTED = ("obs_tensor", "values", "log_probs")

    def __missing__(self, name: str) -> Any:
        if name in self._extras():
            return self._extras()[name]
        if name not in self._COMPUTED or not dict.__contains__(self, "actions"):
            raise KeyError(name)
        model, obs = self["self"], self["acted_on"]
        has_ended = model._last_obs is not obs
        step = (model.num_timesteps, has_ended)
        if self._computed_at != step:
            self._computed, self._computed_at = {}, step
        if name not in self._computed:
            self._compute(model, obs, has_ended)
        return self._computed[name]

    def _compute(self, model: Any, obs: Any, has_ended: bool) -> None:
        policy = model.policy

        def tensor(observations: Any) -> Any:
            return obs_as_tensor(of_space(observations, policy.observation_space), policy.device)

        obs_tensor, (values, log_probs) = tensor(obs), self["evaluated"]
        with th.no_grad():
            if values is None:
                actions = th.as_tensor(np.asarray(self["actions"]), device=policy.device)
                flat = Batch.as_actions(actions.reshape(len(actions), -1), policy.action_space)
                extras = {name: th.as_tensor(array, device=policy.device) for name, array in self["sampler"].extras.items()}
                acted = replace(Batch.of_observations(obs_tensor, flat), extras=extras)
                values, log_probs = self["sampler"].evaluate_last(model.actor_critic, acted)
                values = values.reshape(-1, 1)
            if has_ended:
                values = self["sampler"].next_values(tensor(self["new_obs"]))
        self._computed = {"obs_tensor": obs_tensor, "values": values, "log_probs": log_probs}

    def _extras(self) -> dict[str, Any]:
        if not super().__contains__("sampler"):
            return {}
        return {**dict.fromkeys(self["self"].policy_extras), **self["sampler"].extras}

    def __contains__(self, name: object) -> bool:
        computed = name in self._COMPUTED and super().__contains__("actions")
        return super().__contains__(name) or computed or name in self._extras()

    def get(self, name: str, default: Any = None) -> Any:
        """
        :param name: Name of a variable
        :param default: What to return if there is none
        :return: Its value
        """
        return self[name] if name in self else default


class RolloutCallbacks(CallbackList):
    """
    The callbacks of a call of ``learn``, all of which get :class:`RolloutLocals`.

    :param callbacks: The callbacks
    """

    def __init__(self, callbacks: list[BaseCallback]):
        super().__init__(callbacks)

    @classmethod
    def of(cls, callback: MaybeCallback) -> "RolloutCallbacks":
        """
        :param callback: Argument of ``learn``
        :return: All callbacks in it
        """
        callbacks: list[Any] = callback if isinstance(callback, list) else [] if callback is None else [callback]
        return cls([child if isinstance(child, BaseCallback) else ConvertCallback(child) for child in callbacks])

    def on_training_start(self, locals_: dict[str, Any], globals_: dict[str, Any]) -> None:
        """
        :param locals_: Local variables of ``learn``
        :param globals_: Its global variables
        """
        super().on_training_start(RolloutLocals(locals_), globals_)
