"""Loading files and parameters of other algorithms, and the states of other optimizers."""

import io
import pathlib
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch as th
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.save_util import load_from_zip_file, save_to_zip_file
from stable_baselines3.common.type_aliases import TensorDict

from sb3_reinforce.actor_critic.state import all_or_nothing
from sb3_reinforce.model_file import is_own, read_items

#: The items of another algorithm's file about the network, the task, the log and the progress of the run. All other items
#: are arguments of that algorithm, with another meaning or for another method
_TAKEN_OVER = {
    "env",  # which is there only if it was requested
    "policy_class",
    "policy_kwargs",
    "observation_space",
    "action_space",
    "n_envs",
    "use_sde",
    "sde_sample_freq",
    "gamma",
    "seed",
    "verbose",
    "tensorboard_log",
    "_stats_window_size",
    "num_timesteps",
    "_total_timesteps",
    "_num_timesteps_at_start",
    "_episode_num",
    "ep_info_buffer",
    "ep_success_buffer",
    "start_time",
    "_last_obs",
    "_last_episode_starts",
    "_last_original_obs",
}


def without_foreign_arguments(
    path: str | pathlib.Path | io.BufferedIOBase, device: th.device | str, custom_objects: dict[str, Any] | None
) -> io.BytesIO:
    """
    :param path: A file that a model of another algorithm was saved to
    :param device: Device to load its tensors to
    :param custom_objects: See :meth:`stable_baselines3.common.base_class.BaseAlgorithm.load`
    :return: A file of its policy, without the arguments of the other algorithm
    """
    data, parameters, variables = load_from_zip_file(path, device=device, custom_objects=custom_objects)
    assert data is not None
    kept = {name: value for name, value in data.items() if name in _TAKEN_OVER}
    # The optimizer is part of the algorithm: A2C puts its own among the arguments of the policy
    of_optimizer = ("optimizer_class", "optimizer_kwargs")
    kept["policy_kwargs"] = {name: arg for name, arg in data.get("policy_kwargs", {}).items() if name not in of_optimizer}
    file = io.BytesIO()
    save_to_zip_file(file, kept, parameters, variables)
    file.seek(0)
    return file


class ParametersError(ValueError, RuntimeError):
    """
    Raised if parameters belong to another network. Also a ``RuntimeError``, like PyTorch's own error, which SB3's ``load``
    expects for files of old versions.

    :param message: The difference
    """

    def __init__(self, message: str):
        super().__init__(message)


def check_weights(policy: ActorCriticPolicy, weights: Mapping[str, th.Tensor], exact_match: bool) -> None:
    """
    :param policy: A policy
    :param weights: The tensors that it should load, by name
    :param exact_match: Whether all of them must be there
    :raises ParametersError: If they belong to another network
    """
    own = policy.state_dict()
    if not isinstance(weights, Mapping):
        raise ParametersError(f"The parameters must be a dictionary of tensors, got {type(weights).__name__}.")
    for name in [*own, *weights]:
        if name in weights and not isinstance(weights[name], th.Tensor):
            raise ParametersError(f"The parameters must be tensors, got {name} of type {type(weights[name]).__name__}.")
        if name in own and name in weights:
            got, expected = tuple(weights[name].shape), tuple(own[name].shape)
            if got != expected:
                raise ParametersError(
                    f"The parameters must be those of a policy like this one, got {name} of shape {got}, expected {expected}."
                )
        elif exact_match:
            raise ParametersError(
                "The parameters must be those of a policy like this one, got "
                + (f"none named {name} (Missing key(s) in state_dict)." if name in own else f"{name}, which it does not have.")
            )


@contextmanager
def fitted(
    load_path_or_dict: str | TensorDict,
    policy: ActorCriticPolicy,
    expected: set[str],
    exact_match: bool,
    device: th.device | str,
) -> Iterator[dict[str, Any]]:
    """
    Parameters that a policy and its optimizer can load: checked, and without an optimizer state that does
    not fit. The whole policy is restored if loading them fails.

    :param load_path_or_dict: Argument of ``set_parameters``
    :param policy: The policy, whose optimizer's groups are arranged like those in the parameters
    :param expected: The names of the parts that can be loaded
    :param exact_match: Argument of ``set_parameters``
    :param device: Argument of ``set_parameters``
    :return: The parameters
    :raises ValueError: If they belong to another network
    """
    loaded: Any = load_path_or_dict
    if not isinstance(loaded, dict):
        read_items(loaded)
        _, loaded, _ = load_from_zip_file(loaded, device=device, load_data=False)
    parameters = dict(loaded)
    if (exact_match and set(parameters) != expected) or not set(parameters) <= expected:
        raise ValueError(f"Names of parameters do not match agents' parameters: expected {expected}, got {set(parameters)}")
    if "policy" in parameters:
        check_weights(policy, parameters["policy"], exact_match)
    groups = [dict(group) for group in policy.optimizer.param_groups]
    try:
        with all_or_nothing(policy):
            if "policy.optimizer" in parameters:
                parameters["policy.optimizer"] = state_of_optimizer(policy, parameters["policy.optimizer"])
            yield parameters
    except BaseException:
        policy.optimizer.param_groups = groups
        raise


def with_names(parameters: dict[str, Any], policy: ActorCriticPolicy) -> dict[str, Any]:
    """
    :param parameters: The result of SB3's ``get_parameters``
    :param policy: The policy
    :return: The same with the names of the parameters in each group of the optimizer, by which the groups of another
        optimizer are arranged before it loads the state
    """
    # The weights of a compiled policy under the names that they have in the policy itself, as newer versions of SB3 save them
    parameters["policy"] = getattr(policy, "_orig_mod", policy).state_dict()
    for group, names in zip(parameters["policy.optimizer"]["param_groups"], parameter_names(policy), strict=True):
        group["names"] = names
    return parameters


def own_or_converted(
    algorithm: str,
    path: str | pathlib.Path | io.BufferedIOBase,
    items: Mapping[str, Any],
    device: th.device | str,
    custom_objects: dict[str, Any] | None,
) -> tuple[str | pathlib.Path | io.BufferedIOBase, dict[str, Any]]:
    """
    From a file saved by A2C or PPO (or another algorithm with such a policy), the policy, the spaces, ``gamma``, gSDE, the
    seed and the settings of the log are taken over, with a warning. The optimizer starts anew, and all other arguments
    are REINFORCE's defaults, unless the arguments of ``load`` say otherwise.

    :param algorithm: Name of the class that loads the file
    :param path: A file that a model was saved to
    :param items: What it holds besides parameters, by name
    :param device: Device to load its tensors to
    :param custom_objects: See :meth:`stable_baselines3.common.base_class.BaseAlgorithm.load`
    :return: The file to load, and the arguments that a model of this class had before they were arguments
    """
    if "policy_class" not in items or is_own(items):
        is_former = is_own(items) and "normalize_returns" not in items
        return path, {"normalize_returns": False} if is_former else {}
    warnings.warn(
        "The file was saved by another algorithm: its policy, gamma, gSDE, seed and settings of the log are taken "
        f"over, all other arguments are those of {algorithm}.load or its defaults.",
        UserWarning,
        stacklevel=3,
    )
    return without_foreign_arguments(path, device, custom_objects), {}


def parameter_names(policy: ActorCriticPolicy) -> list[list[str | None]]:
    """
    :param policy: A policy
    :return: The names of the parameters in each group of its optimizer
    """
    names = {parameter: name for name, parameter in policy.named_parameters()}
    return [[names.get(parameter) for parameter in group["params"]] for group in policy.optimizer.param_groups]


def arrange_like(policy: ActorCriticPolicy, groups: Sequence[Mapping[str, Any]]) -> None:
    """
    Arrange the groups of the policy's optimizer like those of a saved state, if the names of their parameters allow it.

    :param policy: The policy
    :param groups: The groups of the state, with the names of their parameters
    """
    named = dict(policy.named_parameters())
    optimizer = policy.optimizer
    saved, own = [group.get("names", []) for group in groups], parameter_names(policy)
    if saved != own and {name for names in saved for name in names} == {name for names in own for name in names} <= set(named):
        options = optimizer.param_groups[0]
        optimizer.param_groups = [
            {**options, "params": [named[name] for name in group["names"]], "critic": group["critic"]} for group in groups
        ]


def state_of_optimizer(policy: ActorCriticPolicy, state: Mapping[str, Any]) -> dict[str, Any]:
    """
    The state that the policy's optimizer should load: the saved one, if it fits this optimizer, else an empty one, with a
    warning.

    :param policy: The policy
    :param state: The saved state
    :return: A state that the optimizer can load
    :raises ParametersError: If it is not the state of an optimizer
    """
    optimizer = policy.optimizer
    if not (isinstance(state, Mapping) and {"state", "param_groups"} <= set(state)):
        raise ParametersError(f"The state of an optimizer must have `state` and `param_groups`, got {type(state).__name__}.")
    arrange_like(policy, state["param_groups"])
    reason = _mismatch(optimizer, state)
    if reason is None:
        groups = [{key: value for key, value in group.items() if key != "names"} for group in state["param_groups"]]
        return {**state, "param_groups": groups}
    warnings.warn(
        f"The state of the optimizer was not taken over, and it starts anew: the saved one {reason}.",
        UserWarning,
        stacklevel=7,
    )
    optimizer.state.clear()
    return optimizer.state_dict()


def _state_names(optimizer: th.optim.Optimizer, options: Mapping[str, Any]) -> set[str] | None:
    """What an optimizer stores for each parameter, found by a trial step; ``None`` if it cannot make one."""
    parameter = th.nn.Parameter(th.zeros(1))
    parameter.grad = th.zeros(1)
    try:
        other = type(optimizer)([parameter])  # type: ignore[call-arg]
        other.param_groups[0].update({name: value for name, value in options.items() if name != "params"})
        other.step()
    except Exception:  # the user's own optimizer may want anything
        return None
    return set(other.state[parameter])


def _mismatch(optimizer: th.optim.Optimizer, state: Mapping[str, Any]) -> str | None:
    """How a saved state differs from that of this optimizer; ``None`` if it fits."""
    saved, own = state["param_groups"], optimizer.param_groups
    if not all(isinstance(group, Mapping) and "critic" in group for group in saved):
        return "does not tell the critic's parameters from the actor's, as that of another algorithm"
    sizes, expected = ([len(group["params"]) for group in groups] for groups in (saved, own))
    if sizes != expected:
        return f"has groups of {sizes} parameters, expected {expected}"
    # One of them may lack options of another version of PyTorch, but not both
    options, expected_options = set(saved[0]) - {"names"}, set(own[0])
    if options - expected_options and expected_options - options:
        return f"has the options {sorted(options - expected_options)}, and not {sorted(expected_options - options)}"
    names = _state_names(optimizer, saved[0])
    for values in state["state"].values():
        if names is not None and set(values) != names:
            return f"has {sorted(values)} for each parameter, expected {sorted(names)}"
    parameters = [parameter for group in own for parameter in group["params"]]
    indices = [index for group in saved for index in group["params"]]
    for index, parameter in zip(indices, parameters, strict=True):
        for name, value in state["state"].get(index, {}).items():
            if isinstance(value, th.Tensor) and value.dim() > 0 and value.shape != parameter.shape:
                return f"has {name} of shape {tuple(value.shape)} for a parameter of shape {tuple(parameter.shape)}"
    return None
