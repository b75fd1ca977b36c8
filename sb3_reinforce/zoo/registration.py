"""Adds our algorithms to RL Zoo's, in the dictionaries and the class that all its scripts share."""

import copy
import functools
import importlib
import inspect
import random
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from sb3_contrib.common.maskable.callbacks import MaskableEvalCallback
from stable_baselines3.common.utils import LinearSchedule

from sb3_reinforce.arguments import check_names, constructor_arguments
from sb3_reinforce.maskable.reinforce import MaskableREINFORCE
from sb3_reinforce.recurrent.maskable import MaskableRecurrentREINFORCE
from sb3_reinforce.recurrent.reinforce import RecurrentREINFORCE
from sb3_reinforce.reinforce import REINFORCE
from sb3_reinforce.zoo.masked_environments import register_environments
from sb3_reinforce.zoo.minatar import register_games
from sb3_reinforce.zoo.search import (
    convert_recurrent_params,
    convert_reinforce_params,
    sample_recurrent_params,
    sample_reinforce_params,
)

#: Our algorithms, by the names that RL Zoo calls them
OURS: dict[str, type[REINFORCE]] = {
    "reinforce": REINFORCE,
    "reinforce_mask": MaskableREINFORCE,
    "reinforce_lstm": RecurrentREINFORCE,
    "reinforce_mask_lstm": MaskableRecurrentREINFORCE,
}
# The name of a study's best trial
BEST_TRIAL = "best"
# Keys of an entry that RL Zoo uses itself
ZOO_KEYS = (
    "callback",
    "env_kwargs",
    "env_wrapper",
    "frame_stack",
    "monitor_kwargs",
    "n_envs",
    "n_timesteps",
    "normalize",
    "vec_env_wrapper",
)
_EXP_MANAGER = "rl_zoo3.exp_manager"


def register() -> None:
    """
    Add REINFORCE to RL Zoo as ``reinforce``, and its variants as ``reinforce_mask``, ``reinforce_lstm`` and
    ``reinforce_mask_lstm``. Further calls change nothing.

    :raises ImportError: If RL Zoo is not installed
    """
    try:
        from rl_zoo3 import hyperparams_opt, utils
    except ModuleNotFoundError as error:
        if error.name != "rl_zoo3":
            raise
        raise ImportError('RL Zoo is not installed, please run `pip install "sb3-reinforce[zoo]"`.') from error

    # In place: RL Zoo's scripts import the dictionaries by name. Existing entries stay
    for algo, algorithm in OURS.items():
        is_recurrent = issubclass(algorithm, RecurrentREINFORCE)
        utils.ALGOS.setdefault(algo, algorithm)
        sampler, converter = (
            (sample_recurrent_params, convert_recurrent_params)
            if is_recurrent
            else (sample_reinforce_params, convert_reinforce_params)
        )
        hyperparams_opt.HYPERPARAMS_SAMPLER.setdefault(algo, sampler)
        hyperparams_opt.HYPERPARAMS_CONVERTER.setdefault(algo, converter)
    register_environments()
    register_games()

    exp_manager = sys.modules.get(_EXP_MANAGER)
    if exp_manager is None:
        # First the environments: RL Zoo imports a `custom_envs.py` with them, which may call this function
        importlib.import_module("rl_zoo3.import_envs")
        exp_manager = importlib.import_module(_EXP_MANAGER)
    if "ExperimentManager" in vars(exp_manager):
        _extend(exp_manager.ExperimentManager)
    else:
        # The call comes from a `custom_envs.py`, while that module is still being imported
        exp_manager.__class__ = _ExtendedOnFirstUse


def default_config(algo: str = "reinforce") -> Path:
    """
    :param algo: One of our algorithms
    :return: The file of its hyperparameters that is used unless the user names another
    """
    package = Path(__file__).parent.parent
    shipped = package / "zoo_configs" / f"{algo}.yml"
    # In a checkout the file is beside the package
    return shipped if shipped.is_file() else package.parent / "zoo_configs" / f"{algo}.yml"


class _ExtendedOnFirstUse(ModuleType):
    """A module that is still being imported, whose class can be extended only when it is first accessed."""

    @property
    def ExperimentManager(self) -> type:
        try:
            manager = vars(self)["ExperimentManager"]
        except KeyError:
            raise AttributeError(f"module {self.__name__!r} has no attribute 'ExperimentManager' yet") from None
        self.__class__ = ModuleType  # type: ignore[assignment]
        _extend(manager)
        return manager


def _extend(manager: Any) -> None:
    """
    Teach RL Zoo's ``ExperimentManager`` what it cannot look up for this algorithm. In place, as scripts import it by name.

    :param manager: The class
    """
    if "_extended_for_reinforce" in vars(manager):
        return
    manager._extended_for_reinforce = True
    manager.__init__ = _with_default_config(manager.__init__)
    manager.read_hyperparameters = _with_any_trial(manager.read_hyperparameters)
    manager.load_trial = _with_best_trial(manager.load_trial)
    manager._preprocess_hyperparams = _with_own_keys(manager._preprocess_hyperparams)
    manager.objective = _with_drawn_gamma(manager.objective)
    manager.create_callbacks = _with_masks(manager.create_callbacks, "EvalCallback", MaskableEvalCallback)
    manager.objective = _with_masks(manager.objective, "TrialEvalCallback", _trial_callback())
    manager.hyperparameters_optimization = _with_prepared_storage(manager.hyperparameters_optimization)


def _with_default_config(init: Callable[..., None]) -> Callable[..., None]:
    signature = inspect.signature(init)

    @functools.wraps(init)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        if self.algo in OURS and not signature.bind(self, *args, **kwargs).arguments.get("config"):
            self.config = str(default_config(self.algo))

    return wrapper


def _with_any_trial(read_hyperparameters: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(read_hyperparameters)
    def wrapper(self: Any) -> Any:
        # Without this check RL Zoo would go on without the study
        if self.trial_id == BEST_TRIAL or (self.algo in OURS and self.trial_id is not None):
            if not (self.storage and self.study_name):
                raise ValueError(
                    f"`--trial-id {self.trial_id}` is a trial of a study: please pass its `--storage` and `--study-name` too."
                )
            if self.trial_id == 0:
                self.trial_id = "0"  # RL Zoo takes the number 0 to mean no trial
        return read_hyperparameters(self)

    return wrapper


def _with_best_trial(load_trial: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
    @functools.wraps(load_trial)
    def wrapper(
        self: Any, storage: str, study_name: str, trial_id: int | str | None = None, convert: bool = True
    ) -> dict[str, Any]:
        if isinstance(trial_id, str):
            trial_id = None if trial_id == BEST_TRIAL else int(trial_id)
        try:
            return load_trial(self, storage, study_name, trial_id, convert)
        except (IndexError, KeyError) as error:
            if self.algo not in OURS:
                raise
            missing = "no such study" if isinstance(error, KeyError) else f"no trial {trial_id} in the study"
            raise ValueError(f"There is {missing}: {study_name!r} in {storage!r}.") from error

    return wrapper


def _with_own_keys(preprocess: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(preprocess)
    def wrapper(self: Any, hyperparams: dict[str, Any]) -> Any:
        if self.algo not in OURS:
            return preprocess(self, hyperparams)
        hyperparams = _preprocess_own_keys(self, hyperparams)
        # RL Zoo makes the schedule of `learning_rate` itself, and does not accept a finished one
        learning_rate = hyperparams.get("learning_rate")
        if callable(learning_rate):
            hyperparams = {**hyperparams, "learning_rate": 0.0}
        processed, *rest = preprocess(self, hyperparams)
        if callable(learning_rate):
            processed["learning_rate"] = learning_rate
        return (processed, *rest)

    return wrapper


def _preprocess_own_keys(manager: Any, hyperparams: dict[str, Any]) -> dict[str, Any]:
    """
    :param manager: An ``ExperimentManager``
    :param hyperparams: An entry, as it is in a file
    :return: The entry, in which the keys that RL Zoo does not know are ready
    :raises ValueError: If a key exists neither in RL Zoo nor as an argument of the algorithm, or its value must be a number
        or a schedule and is neither
    """
    from rl_zoo3.utils import ALGOS

    algorithm = ALGOS[manager.algo]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(algorithm).parameters.values())
    if algorithm is OURS[manager.algo] or not takes_any:
        # Here, before a folder is made: the error is the same for a new run, a resumed run and a search
        check_names(hyperparams, [*constructor_arguments(algorithm), *ZOO_KEYS], algorithm.__name__)  # type: ignore[arg-type]
    for key in ("learning_rate", "critic_learning_rate", "target_kl", "ent_coef"):
        value = hyperparams.get(key)
        if value is None:
            continue
        between = re.fullmatch(r"lin_([^_]+)_([^_]+)", value) if isinstance(value, str) else None
        try:
            if between is not None:
                start, end = map(float, between.groups())
                hyperparams[key] = LinearSchedule(start, end, end_fraction=1.0)
                continue
            # Under the name for which RL Zoo makes schedules
            schedule = manager._preprocess_schedules({"learning_rate": value})["learning_rate"]
        except ValueError as error:
            raise ValueError(
                f"`{key}` must be a number (2.0e-4, not 2e-4, in YAML), lin_NUMBER or lin_START_END, got {value!r}."
            ) from error
        # RL Zoo converts `learning_rate` itself, and the algorithm checks numbers
        if key != "learning_rate" and isinstance(value, str):
            hyperparams[key] = schedule
    return hyperparams


def _trial_callback() -> type:
    from rl_zoo3.callbacks import TrialEvalCallback

    class MaskableTrialEvalCallback(TrialEvalCallback, MaskableEvalCallback):
        """Reports the evaluations of a trial, which get the masks."""

    return MaskableTrialEvalCallback


def _with_masks(method: Callable[..., Any], name: str, callback: type) -> Callable[..., Any]:
    """RL Zoo's method, with another callback of that name for algorithms whose evaluations need masks."""

    @functools.wraps(method)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not issubclass(OURS.get(self.algo, REINFORCE), MaskableREINFORCE):
            return method(self, *args, **kwargs)
        module = sys.modules[_EXP_MANAGER]
        before = getattr(module, name)
        setattr(module, name, callback)
        try:
            return method(self, *args, **kwargs)
        finally:
            setattr(module, name, before)

    return wrapper


def _with_drawn_gamma(objective: Callable[..., float]) -> Callable[..., float]:
    @functools.wraps(objective)
    def wrapper(self: Any, trial: Any) -> float:
        if self.algo in OURS and self.normalize:
            # The reward is scaled with the discount factor of the trial, as in later training from this trial.
            # The sampler may be called twice: a trial gives the same values.
            from rl_zoo3.hyperparams_opt import HYPERPARAMS_SAMPLER

            drawn = HYPERPARAMS_SAMPLER[self.algo](trial, self.n_actions, self.n_envs, {})
            self = copy.copy(self)  # trials may run in several threads
            if "gamma" in drawn:
                self.normalize_kwargs = {**self.normalize_kwargs, "gamma": drawn["gamma"]}
        return objective(self, trial)

    return wrapper


def _with_prepared_storage(optimize: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(optimize)
    def wrapper(self: Any) -> None:
        if self.algo in OURS and self.storage is not None and not self.storage.endswith(".log"):
            _create_tables(self.storage)
        optimize(self)

    return wrapper


def _create_tables(storage: str, n_attempts: int = 10) -> None:
    """
    Create the tables of a database. If two workers do so at the same time, one of them fails, and has to try again.

    :param storage: Address of the database
    :param n_attempts: Number of attempts; if all fail, the search itself reports the error
    """
    import optuna
    from sqlalchemy.exc import DBAPIError

    for _ in range(n_attempts):
        try:
            optuna.storages.get_storage(storage)
            return
        except (DBAPIError, optuna.exceptions.StorageInternalError):
            time.sleep(random.uniform(0.05, 0.3))
