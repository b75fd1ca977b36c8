"""Checks of arguments. Each error is one sentence: the argument, what was expected, and what it got."""

import difflib
import inspect
import math
import sys
from collections.abc import Callable, Iterable
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy

from sb3_reinforce.monte_carlo.baselines import Value, make_baseline


def check_positive_int(name: str, value: object, least: int = 1) -> None:
    """
    :param name: Name of the argument
    :param value: What was given
    :param least: The smallest value it takes
    :raises ValueError: If the value is not an integer of at least ``least``
    """
    if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"`{name}` must be an integer of at least {least}, got {value!r}.")


def check_number(
    name: str,
    value: object,
    low: float,
    high: float = math.inf,
    low_excluded: bool = False,
    infinite: bool = False,
    schedule: bool = False,
) -> None:
    """
    :param name: Name of the argument
    :param value: What was given
    :param low: The smallest value it takes
    :param high: The largest value it takes
    :param low_excluded: Whether ``low`` itself is not allowed
    :param infinite: Whether infinity is allowed
    :param schedule: Whether the argument also takes a schedule (which the caller checks); only for the message
    :raises ValueError: If the value is not a number in that range
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    is_number = is_number and (infinite or _is_finite(value))  # type: ignore[arg-type]
    if not is_number or not low <= value <= high or (low_excluded and value == low):  # type: ignore[operator]
        if high < math.inf:
            expected = f"a number in [{low}, {high}]"
        elif low == -math.inf:
            expected = "a finite number"
        else:
            kind = "number" if infinite else "finite number"
            expected = f"a {kind} {'greater than' if low_excluded else 'of at least'} {low}"
        raise ValueError(f"`{name}` must be {expected}{' or a schedule' if schedule else ''}, got {value!r}.")


def _is_finite(value: Real) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


def check_flag(name: str, value: object, *third: str | None) -> None:
    """
    :param name: Name of the argument
    :param value: What was given
    :param third: A third answer, ``None`` or a word
    :raises ValueError: If the value is neither ``True`` nor ``False``, nor the third answer
    """
    if not isinstance(value, bool | np.bool_) and not (isinstance(value, str | None) and value in third):
        answers = f"True, False or {third[0]!r}" if third else "True or False"
        raise ValueError(f"`{name}` must be {answers}, got {value!r}.")


def check_arguments(arguments: dict[str, Any]) -> None:
    """
    Check the arguments of the algorithm, as far as they do not depend on the environments.

    :param arguments: The attributes of the algorithm, by the names of its arguments
    :raises ValueError: If one of them, or a combination, makes no sense
    """
    get = arguments.__getitem__
    check_positive_int("n_critic_updates", get("n_critic_updates"), least=0)
    for name in ("group_size", "cg_max_steps"):
        check_positive_int(name, get(name))
    for name in ("batch_size", "n_steps", "n_episodes", "horizon", "sub_sampling_factor"):
        if get(name) is not None:
            check_positive_int(name, get(name))
    check_number("gamma", get("gamma"), 0, 1)
    check_number("gae_lambda", get("gae_lambda"), 0, 1)
    if get("ent_coef") is not None and not callable(get("ent_coef")):
        check_number("ent_coef", get("ent_coef"), -math.inf, schedule=True)
    check_number("vf_coef", get("vf_coef"), 0)
    check_number("max_grad_norm", get("max_grad_norm"), 0, low_excluded=True, infinite=True)
    if not callable(get("target_kl")):  # a schedule may end at zero
        check_number("target_kl", get("target_kl"), 0, low_excluded=True, schedule=True)
    check_number("cg_damping", get("cg_damping"), 0)
    for name in (
        "reward_to_go",
        "complete_episodes",
        "bootstrap_on_truncation",
        "discount_state_distribution",
        "normalize_returns",
        "seed_rollouts",
    ):
        check_flag(name, get(name))
    check_flag("normalize_advantage", get("normalize_advantage"), "group")
    check_flag("natural_gradient", get("natural_gradient"), None)
    check_learning_rate("learning_rate", get("learning_rate"))
    if get("critic_learning_rate") is not None:
        check_learning_rate("critic_learning_rate", get("critic_learning_rate"))
    if get("average_over") not in ("timesteps", "episodes"):
        raise ValueError(f"`average_over` must be 'timesteps' or 'episodes', got {get('average_over')!r}.")
    make_baseline(get("baseline"))
    _check_combinations(get)


def as_plain_number(value: Any) -> Any:
    """
    :param value: An argument
    :return: The same, with numbers as Python's own. NumPy's would pass the precision of their dtype on to products, and
        in some places SB3 takes only Python's
    """
    if isinstance(value, np.number | np.bool_):
        return value.item()
    return float(value) if isinstance(value, Real) and not isinstance(value, int | float) else value


def constructor_arguments(algorithm: type[OnPolicyAlgorithm]) -> set[str]:
    """
    :param algorithm: A class of algorithms
    :return: The names of the arguments of its constructor and of its base classes' constructors
    """
    classes = [base for base in algorithm.__mro__ if issubclass(base, OnPolicyAlgorithm)]
    return {name for base in classes for name in inspect.signature(base).parameters}


def check_policy_class(policy: type[BasePolicy], base: type[BasePolicy]) -> None:
    """
    :param policy: The class of the policy
    :param base: The class that it must be derived from
    :raises ValueError: If it is not, or if it is one of sb3-contrib's recurrent policies where SB3's are expected
    """
    if issubclass(policy, base) and (base is not ActorCriticPolicy or not _is_recurrent(policy)):
        return
    if base is ActorCriticPolicy:
        raise ValueError(
            "`policy` must be a subclass of SB3's ActorCriticPolicy that is neither recurrent nor maskable, "
            f"got {policy.__name__}."
        )
    raise ValueError(f"`policy` must be a subclass of {base.__name__}, got {policy.__name__}.")


def _is_recurrent(policy: type[BasePolicy]) -> bool:
    # There can be no such policy before this module has been imported
    recurrent = sys.modules.get("sb3_contrib.common.recurrent.policies")
    return recurrent is not None and issubclass(policy, recurrent.RecurrentActorCriticPolicy)


def check_policy_step(policy_step_class: object, base: type, natural_gradient: bool | None) -> None:
    """
    :param policy_step_class: The class of the policy step
    :param base: The class that it must be derived from
    :param natural_gradient: Whether the natural step was also requested
    :raises ValueError: If it is not such a class, or both were requested
    """
    if not (isinstance(policy_step_class, type) and issubclass(policy_step_class, base)):
        raise ValueError(f"`policy_step_class` must be a subclass of {base.__name__} or None, got {policy_step_class!r}.")
    if natural_gradient:
        raise ValueError(
            "`natural_gradient=True` is a policy step itself, and cannot be used with a `policy_step_class`, got "
            f"{policy_step_class.__name__}."
        )


def check_names(given: Iterable[str], known: Iterable[str], function: str) -> None:
    """
    :param given: Names of arguments that were given
    :param known: Names of arguments that exist
    :param function: Name of the function that got them
    :raises ValueError: If one of them does not exist
    """
    known = list(known)
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f", did you mean `{close[0]}`?" if close else "."
            raise ValueError(f"`{function}` has no argument `{name}`{hint}")


def check_learning_rate(name: str, value: object) -> None:
    """
    :param name: Name of the argument
    :param value: What was given
    :raises ValueError: If the value is neither a non-negative number nor a schedule
    """
    if not callable(value):
        check_number(name, value, 0, schedule=True)


def value_at(name: str, value: Any, progress_remaining: float, low: float = -math.inf) -> float:
    """
    :param name: Name of an argument that may be a schedule
    :param value: A number, or a function of the progress remaining, which may return an array of one number
    :param progress_remaining: Which share of the timesteps is still to come, from 1 to 0
    :param low: The smallest value it takes
    :return: The number at that time
    :raises ValueError: If it is not a finite number of at least ``low``
    """
    if callable(value):
        value = value(progress_remaining)
    if isinstance(value, th.Tensor | np.ndarray) and math.prod(value.shape) == 1:
        value = value.item()
    check_number(name, value, low)
    return float(value)


def check_over_time(name: str, value: Any, progress_remaining: float, low: float = -math.inf) -> None:
    """
    :param name: Name of an argument that may be a schedule
    :param value: A number, or a function of the progress remaining
    :param progress_remaining: Which share of the timesteps is still to come now
    :param low: The smallest value it takes
    :raises ValueError: If the value at the start, now or at the end is not a finite number of at least ``low``
    """
    for progress in (1.0, progress_remaining, 0.0):
        value_at(name, value, progress, low)


def _check_combinations(get: Callable[[str], Any]) -> None:
    baseline = get("baseline")
    is_value = isinstance(make_baseline(baseline), Value)
    if get("gae_lambda") < 1 and (not is_value or not get("reward_to_go")):
        raise ValueError(
            f"`gae_lambda` below 1 needs baseline='value' and reward_to_go=True, got gae_lambda={get('gae_lambda')} "
            f"with baseline={baseline!r} and reward_to_go={get('reward_to_go')}."
        )
    if not get("complete_episodes") and not is_value:
        raise ValueError(
            "`complete_episodes=False` bootstraps the unfinished episodes and needs baseline='value', "
            f"got baseline={baseline!r}."
        )
    if not get("complete_episodes") and get("n_episodes") is not None:
        raise ValueError(
            "`n_episodes` counts whole episodes and needs complete_episodes=True, "
            f"got n_episodes={get('n_episodes')} with complete_episodes=False."
        )
    if get("normalize_advantage") == "group" and get("group_size") == 1:
        raise ValueError("`normalize_advantage='group'` needs groups, a `group_size` above 1, got group_size=1.")
    if get("group_size") > 1 and get("n_episodes") != 1:
        raise ValueError(
            "`group_size` above 1 needs n_episodes=1, as later episodes begin differently, "
            f"got group_size={get('group_size')} with n_episodes={get('n_episodes')}."
        )


def check_divides_environments(group_size: int, n_envs: int) -> None:
    """
    :param group_size: Number of environments in a group
    :param n_envs: Number of environments
    :raises ValueError: If they do not divide into such groups
    """
    if n_envs % group_size:
        raise ValueError(f"`group_size` must divide the number of environments, got {group_size} with {n_envs} environments.")


def check_holds_two_episodes(n_envs: int, n_steps: int, n_episodes: int | None, baseline: object) -> None:
    """
    :param n_envs: Number of environments
    :param n_steps: Least number of steps per environment
    :param n_episodes: Number of episodes per environment, or ``None``
    :param baseline: The baseline, which is computed from the other episodes
    :raises ValueError: If no update can ever hold two episodes
    """
    quota = n_steps if n_episodes is None else n_episodes
    if n_envs == 1 and quota == 1:
        name = "n_steps" if n_episodes is None else "n_episodes"
        raise ValueError(f"`baseline={baseline!r}` needs at least two episodes per update, got one environment with {name}=1.")
