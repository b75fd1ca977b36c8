"""What a rollout began with, so that a saved run can be taken up there exactly."""

import copy
import platform
import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.vec_env import VecEnv

from sb3_reinforce.distributed.sharing import normalizers
from sb3_reinforce.model_file import VERSION
from sb3_reinforce.version import __version__

#: Attributes of a model that change while it plays
_COUNTED = ("num_timesteps", "_episode_num", "ep_info_buffer", "ep_success_buffer", "_current_progress_remaining")
#: The attribute with which a file holds the start
SAVED_AS = "_rollout_start"
#: Count, mean and variance
Statistics = tuple[float, np.ndarray, np.ndarray]


class RolloutStart(NamedTuple):
    """
    What a rollout began with, besides the weights, which do not change while it is played.

    :param counted: The model's attributes that change while it plays, by name; empty between two rollouts
    :param generators: The states of the random generators of each worker; empty for a model without a seed
    :param statistics: The count, mean and variance of each of ``VecNormalize``'s statistics
    :param seeds: What the seeds of its resets are derived from
    :param cuts_expected: Whether episodes are expected to be cut at the horizon
    :param made_with: What its numbers may depend on: versions and the kind of processor
    """

    counted: dict[str, Any]
    generators: list[dict[str, Any]]
    statistics: list[Statistics]
    seeds: tuple[int | None, int]
    cuts_expected: bool
    made_with: dict[str, str]

    @classmethod
    def of(
        cls,
        model: Any,
        rng: np.random.Generator | None,
        seeds: tuple[int | None, int],
        cuts_expected: bool,
        with_generators: bool,
    ) -> "RolloutStart":
        """
        :param model: A model that does not play at the moment
        :param rng: The generator of its actions
        :param seeds: What the seeds of the resets are derived from
        :param cuts_expected: Whether episodes are expected to be cut at the horizon
        :param with_generators: Whether the states of the generators are wanted, for which all workers must ask
        :return: What its next rollout begins with
        """
        generators = model.workers.gather(states_of_generators(model.device, rng)) if with_generators else []
        return cls({}, generators, copies_of_statistics(model.env), seeds, cuts_expected, made_with())

    def with_counts(self, model: Any) -> "RolloutStart":
        """
        :param model: The model, whose rollout begins
        :return: The same with the model's counts
        """
        return self._replace(counted={name: copy.copy(getattr(model, name)) for name in _COUNTED})

    @contextmanager
    def put_into(self, model: Any) -> Iterator[None]:
        """
        Make a model, while it is saved, what it was at the start.

        :param model: The model
        """
        now = {name: getattr(model, name) for name in self.counted}
        try:
            vars(model).update({**self.counted, SAVED_AS: self._asdict(), VERSION: __version__})
            yield
        finally:
            self.of_attributes(vars(model))
            vars(model).update(now)

    @classmethod
    def of_attributes(cls, attributes: dict[str, Any]) -> "RolloutStart | None":
        """
        :param attributes: The attributes of a model, perhaps from a file, whose start is removed from them
        :return: The start; ``None`` if there is none that this version knows
        """
        saved, _ = attributes.pop(SAVED_AS, None), attributes.pop(VERSION, None)
        if not isinstance(saved, dict) or not set(cls._fields) <= set(saved):
            return None
        return cls(**{name: saved[name] for name in cls._fields})

    def restore_statistics(self, env: VecEnv | None) -> None:
        """
        :param env: Environments, whose ``VecNormalize`` gets these statistics, unless they were switched off or are of another
            kind
        """
        found = normalizers(env, training_only=True)
        if [np.shape(each.mean) for each in found] == [np.shape(mean) for _, mean, _ in self.statistics]:
            for each, (count, mean, var) in zip(found, self.statistics, strict=True):
                each.count, each.mean, each.var = count, np.copy(mean), np.copy(var)

    def restore_generators(self, device: th.device, rng: np.random.Generator | None, rank: int, size: int) -> None:
        """
        :param device: Device of the model
        :param rng: The generator of the model's actions
        :param rank: The index of this worker
        :param size: The number of workers
        """
        if not self.generators:
            return
        differing = [f"{name} {old} instead of {new}" for name, old, new in self._differences(size)]
        if differing:
            warnings.warn(
                "The run is taken up, but need not end with the weights of one that was never interrupted, as the file was "
                f"saved with {', '.join(differing)}.",
                UserWarning,
                stacklevel=7,
            )
        if len(self.generators) == size:
            restore_generators(self.generators[rank], device, rng)

    def _differences(self, size: int) -> list[tuple[str, Any, Any]]:
        now = made_with()
        pairs = [("workers", len(self.generators), size)]
        pairs += [(name, self.made_with.get(name), now[name]) for name in now]  # type: ignore[misc]
        return [pair for pair in pairs if pair[1] != pair[2]]


def made_with() -> dict[str, str]:
    """
    :return: The versions and the kind of processor that a run's numbers may depend on
    """
    return {
        "sb3_reinforce": __version__,
        "torch": str(th.__version__),
        "numpy": np.__version__,
        "machine": platform.machine(),
    }


def copies_of_statistics(env: VecEnv | None) -> list[Statistics]:
    """
    :param env: Environments
    :return: The statistics that ``VecNormalize`` gathers of them
    """
    return [(each.count, np.copy(each.mean), np.copy(each.var)) for each in normalizers(env, training_only=True)]


def states_of_generators(device: th.device, rng: np.random.Generator | None) -> dict[str, Any]:
    """
    :param device: Device of the model
    :param rng: The generator of the model's actions
    :return: The states of all generators that training draws from
    """
    return {
        "torch": th.get_rng_state().numpy().copy(),
        "cuda": th.cuda.get_rng_state(device).numpy().copy() if device.type == "cuda" else None,
        "numpy": np.random.get_state(),
        "python": random.getstate(),
        "actions": None if rng is None else rng.bit_generator.state,
    }


def restore_generators(states: Mapping[str, Any], device: th.device, rng: np.random.Generator | None) -> None:
    """
    :param states: The result of :func:`states_of_generators`
    :param device: Device of the model
    :param rng: The generator of the model's actions
    """
    th.set_rng_state(th.from_numpy(states["torch"]))
    if states["cuda"] is not None and device.type == "cuda":
        th.cuda.set_rng_state(th.from_numpy(states["cuda"]), device)
    np.random.set_state(states["numpy"])
    random.setstate(states["python"])
    if states["actions"] is not None and rng is not None:
        rng.bit_generator.state = states["actions"]
