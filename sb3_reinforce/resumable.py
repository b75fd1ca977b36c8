"""What a model writes into files, takes from them, and leaves to its copies."""

import copy
import inspect
import io
from collections.abc import Iterable
from typing import Any, TypeVar

import torch as th
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv, TensorDict

from sb3_reinforce import arguments, files, model_file
from sb3_reinforce.distributed import n_launched
from sb3_reinforce.model_file import FilePath
from sb3_reinforce.rollout.player import Player
from sb3_reinforce.update.advice import Advisor
from sb3_reinforce.update.policy_step import PolicyStep

SelfResumable = TypeVar("SelfResumable", bound="ResumableAlgorithm")


class ResumableAlgorithm(OnPolicyAlgorithm):
    """An algorithm whose runs can be taken up from files, exactly, and from files of A2C and PPO."""

    _player: Player
    _advisor: Advisor
    _policy_steps: dict[type[PolicyStep], PolicyStep]

    @classmethod
    def load(
        cls: type[SelfResumable],
        path: FilePath,
        env: GymEnv | str | None = None,
        device: th.device | str = "auto",
        custom_objects: dict[str, Any] | None = None,
        print_system_info: bool = False,
        force_reset: bool = True,
        **kwargs: Any,
    ) -> SelfResumable:
        """
        Load the model from a zip-file, as SB3 does, but refuse arguments that do not exist or make no sense. As in SB3, a
        file holds objects that pickle restores: load only files of people whom you trust.

        ``learn(..., reset_num_timesteps=False)`` then takes up the run at the start of the rollout in which it was saved. With
        a ``seed``, it ends with the weights of the run that was never interrupted, to the last bit. Where the versions, the
        device, the threads or the environments are others than those of the file, a warning says that it need not.

        From a file saved by A2C or PPO (or another algorithm with such a policy), it takes the policy, the spaces,
        ``gamma``, gSDE, the seed and the settings of the log, with a warning. The optimizer starts anew, and all other
        arguments are REINFORCE's defaults, unless ``kwargs`` say otherwise.

        :param path: Path to the file (or a file-like) where to load the agent from
        :param env: The new environment to run the loaded model on, or its name (can be None if you only need prediction)
        :param device: Device on which the code should run
        :param custom_objects: Dictionary of objects to replace upon loading
        :param print_system_info: Whether to print the system info of the saved model and the current one
        :param force_reset: Force call to ``reset()`` before training to avoid unexpected behavior
        :param kwargs: Further arguments of the constructor, to change them
        :return: New model instance with loaded parameters
        :raises ValueError: If a name is not an argument, a value is not valid for its argument, or the policy in the file is
            of a kind that does not fit, or the file is none of a model, or damaged
        :raises OSError: If there is no file that can be read
        """
        known = {"policy_step_class", *arguments.constructor_arguments(cls), *inspect.signature(super().load).parameters}
        arguments.check_names(kwargs, known, f"{cls.__name__}.load")
        env = None if env is None else maybe_make_env(env, 0)  # as the constructor does
        items = model_file.read_items(path)
        path, former = files.own_or_converted(cls.__name__, path, items, device, custom_objects)
        with model_file.version_named(items):
            model = super().load(path, env, device, custom_objects, print_system_info, force_reset, **{**former, **kwargs})
        if kwargs.get("seed", items.get("seed")) != items.get("seed"):  # another one: not that run
            model._player.taken_up = None
        taken_up = model._player.taken_up
        if taken_up is not None and env is not None and n_launched() == 1:  # several workers meet only when they learn
            model._player.warn_of_differences(taken_up, 3)
        return model

    def get_parameters(self) -> dict[str, dict[str, Any]]:
        return files.with_names(super().get_parameters(), self.policy)

    def set_parameters(
        self, load_path_or_dict: str | TensorDict, exact_match: bool = True, device: th.device | str = "auto"
    ) -> None:
        """
        Load parameters as SB3 does, but all or nothing, and also from A2C or PPO. A saved optimizer state that does
        not fit is not taken over, with a warning; the optimizer then starts anew.

        :param load_path_or_dict: Location of the saved data (path or file-like, see ``save``), or a nested dictionary
        :param exact_match: Whether all parameters must be there
        :param device: Device to load them to
        :raises ValueError: If the parameters are those of another network
        """
        expected = set(self._get_torch_save_params()[0])
        with files.fitted(load_path_or_dict, self.policy, expected, exact_match, device) as parameters:
            super().set_parameters(parameters, exact_match, device)

    def save(self, path: FilePath, exclude: Iterable[str] | None = None, include: Iterable[str] | None = None) -> None:
        """
        Save the model as SB3 does, but as a whole or not at all, and so that the run can be taken up exactly: during a
        rollout, what is saved is the model at the start of this rollout.

        :param path: Path to the file (or a file-like)
        :param exclude: Names of attributes that should be excluded in addition to the default ones
        :param include: Names of attributes that might be excluded but should be included anyway
        :raises OSError: If the file cannot be written; what was at its place is then unchanged
        """
        file: Any = path if isinstance(path, io.BufferedIOBase) else io.BytesIO()
        with self._player.start.put_into(self):
            super().save(file, exclude, include)
        if not isinstance(path, io.BufferedIOBase):
            model_file.write(path, file.getbuffer())

    def _excluded_save_params(self) -> list[str]:
        own = ["workers", "_seeded_env", "_player", "_advisor", "_policy_steps", "_made_schedule"]
        # In files of version 0.1
        former = ["_n_rollout_episodes"]
        return [*super()._excluded_save_params(), *own, *former]

    def __getstate__(self) -> dict[str, Any]:
        # A copy makes a logger of its own when it learns: this one may hold open files
        state = {name: value for name, value in vars(self).items() if name != "_logger"}
        return {**state, "_custom_logger": False}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if hasattr(self, "_player"):  # in a shallow copy these parts are the original's
            self._player, self._advisor = copy.copy(self._player), copy.copy(self._advisor)
            self._policy_steps = {kind: copy.copy(step) for kind, step in self._policy_steps.items()}
            parts: list[Any] = [self._player, self._advisor, *self._policy_steps.values()]
            for part in parts:
                part.model = self
