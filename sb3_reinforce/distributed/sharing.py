"""The data that the workers of a job exchange, and the settings that must be the same for all of them."""

import zlib
from collections.abc import Sequence
from itertools import chain, zip_longest
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecNormalize

from sb3_reinforce.arguments import constructor_arguments
from sb3_reinforce.distributed.moments import Moments

#: Count, mean and variance
Statistics = tuple[float, np.ndarray, np.ndarray]
#: Arguments that may differ between workers
_OWN_ARGUMENTS = {"n_steps", "seed", "verbose", "stats_window_size", "tensorboard_log"}


class Report(NamedTuple):
    """
    A worker's report of its rollout to the others.

    :param goes_on: ``False``: a callback has stopped the worker
    :param n_played: Steps of its environments
    :param n_timesteps: Recorded timesteps
    :param n_episodes: Recorded episodes
    :param cut: Whether an episode was cut at the horizon
    :param cuts_expected: Whether a cut was expected
    :param infos: The ``info`` of the finished episodes, as far as it is logged
    """

    goes_on: bool
    n_played: int
    n_timesteps: int = 0
    n_episodes: int = 0
    cut: bool = False
    cuts_expected: bool = False
    infos: tuple[dict[str, Any], ...] = ()

    @classmethod
    def of_all(cls, reports: Sequence["Report"]) -> "Report":
        """
        :param reports: The report of each worker
        :return: Their joint report; training goes on if it does for all workers
        """
        # In turn, so that a window over the last episodes has some from each worker
        in_turn = chain.from_iterable(zip_longest(*(each.infos for each in reports)))
        return cls(
            all(each.goes_on for each in reports),
            sum(each.n_played for each in reports),
            sum(each.n_timesteps for each in reports),
            sum(each.n_episodes for each in reports),
            any(each.cut for each in reports),
            any(each.cuts_expected for each in reports),
            tuple(info for info in in_turn if info is not None),
        )


def comparable_arguments(model: OnPolicyAlgorithm) -> dict[str, Any]:
    """
    :param model: A model
    :return: The arguments of its constructor that must be the same for all workers, as far as they can be compared, and the
        structure of its policy
    """
    names = constructor_arguments(type(model)) - _OWN_ARGUMENTS
    found = {name: getattr(model, name, None) for name in sorted(names)}
    # These values cannot be compared, but their classes can
    strategies = {"policy_step_class": getattr(model, "policy_step_class", None)}
    if not isinstance(found.get("baseline"), str | None):
        strategies["baseline"] = type(found["baseline"])
    return {
        **{name: value for name, value in found.items() if isinstance(value, bool | int | float | str | None)},
        **{name: getattr(kind, "__qualname__", None) for name, kind in strategies.items()},
        "device": model.device.type,
        "observation_space": str(model.observation_space),
        "optimizer_class": type(model.policy.optimizer).__name__,
        "policy": str({name: tuple(parameter.shape) for name, parameter in model.policy.named_parameters()}),
    }


def check_same(gathered: list[dict[str, Any]]) -> None:
    """
    :param gathered: Items of each worker, by their names
    :raises ValueError: If they are not the same
    """
    first = gathered[0]
    for rank, items in enumerate(gathered):
        for name in first.keys() | items.keys():
            if first.get(name) != items.get(name):
                raise ValueError(
                    f"`{name}` must be the same for all workers, got {first.get(name)!r} on rank 0 "
                    f"and {items.get(name)!r} on rank {rank}."
                )


def normalizers(env: VecEnv | None, training_only: bool = False) -> list[RunningMeanStd]:
    """
    :param env: The environments
    :param training_only: Whether to leave out statistics that are not gathered at the moment
    :return: The statistics that ``VecNormalize`` keeps of them
    """
    found: list[RunningMeanStd] = []
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, VecNormalize) and (env.training or not training_only):
            observations = getattr(env, "obs_rms", None)
            found += observations.values() if isinstance(observations, dict) else [observations] if observations else []
            found.append(env.ret_rms)
        env = env.venv
    return found


def statistics_of(normalizer: RunningMeanStd) -> Statistics:
    """
    :param normalizer: Statistics
    :return: A copy of them, to the last bit, which their moments are not
    """
    return normalizer.count, np.copy(normalizer.mean), np.copy(normalizer.var)


def set_statistics(normalizer: RunningMeanStd, statistics: Statistics) -> None:
    """
    :param normalizer: Statistics, which are replaced
    :param statistics: The new ones, of which a copy is kept
    """
    count, mean, var = statistics
    normalizer.count, normalizer.mean, normalizer.var = count, np.copy(mean), np.copy(var)


def moments_of(normalizer: RunningMeanStd) -> Moments:
    """
    :param normalizer: Statistics
    :return: The moments that they describe
    """
    return Moments(normalizer.count, normalizer.mean, normalizer.var * normalizer.count)


def set_moments(normalizer: RunningMeanStd, moments: Moments) -> None:
    """
    :param normalizer: Statistics, which are replaced
    :param moments: The new moments
    """
    normalizer.count, normalizer.mean = moments.n, moments.mean
    normalizer.var = moments.deviation / moments.n


def checksum(policy: ActorCriticPolicy) -> int:
    """
    :param policy: A policy
    :return: A number that tells whether two workers have the same weights
    """
    result = 0
    for tensor in (*policy.parameters(), *policy.buffers()):
        result = zlib.crc32(tensor.detach().cpu().contiguous().view(-1).view(th.uint8).numpy().data, result)
    return result
