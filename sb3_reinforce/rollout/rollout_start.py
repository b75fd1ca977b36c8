"""What a rollout began with, so that a saved run can be taken up there exactly."""

import copy
import platform
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.vec_env import VecEnv

from sb3_reinforce.distributed.sharing import Statistics, normalizers, set_statistics, statistics_of
from sb3_reinforce.model_file import VERSION
from sb3_reinforce.version import __version__

#: Attributes of a model that change while it plays
_COUNTED = (
    "num_timesteps",
    "_episode_num",
    "ep_info_buffer",
    "ep_success_buffer",
    "_current_progress_remaining",
    "_warned_of_horizon",
)
#: The attribute with which a file holds the start
SAVED_AS = "_rollout_start"
#: What the numbers of a run may depend on
MADE_WITH: dict[str, Callable[[Any], str]] = {
    "sb3_reinforce": lambda model: __version__,
    "torch": lambda model: str(th.__version__),
    "numpy": lambda model: np.__version__,
    "a processor of kind": lambda model: platform.machine(),
    "device": lambda model: model.device.type,
    "threads": lambda model: str(th.get_num_threads()),
    "environments": lambda model: str(model.n_envs),
    "statistics of VecNormalize": lambda model: str(len(normalizers(model.env))),
}


class RolloutStart(NamedTuple):
    """
    What a rollout began with, besides the weights, which do not change while it is played.

    :param counted: The model's attributes that change in a rollout, by name; empty between two rollouts
    :param generators: The states of the random generators of each worker; empty for a model without a seed
    :param statistics: The count, mean and variance of each of ``VecNormalize``'s statistics
    :param seeds: What the seeds of its resets are derived from
    :param cuts_expected: Whether episodes are expected to be cut at the horizon
    :param made_with: What its numbers may depend on, such as versions; only in a file
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
        return cls({}, generators, copies_of_statistics(model.env), seeds, cuts_expected, {})

    def with_counts(self, model: Any) -> "RolloutStart":
        """
        :param model: The model, whose rollout begins
        :return: The same with the model's counts
        """
        return self._replace(counted={name: copy.copy(getattr(model, name)) for name in _COUNTED})

    def with_baseline(self, model: Any) -> "RolloutStart":
        """
        :param model: The model, whose rollout is played and not yet weighed
        :return: The same with a copy of the model's baseline, unless that cannot be copied
        """
        try:
            baseline = copy.deepcopy(model.baseline)
        except Exception:  # whatever a user's own objects raise
            return self
        return self._replace(counted={**self.counted, "baseline": baseline})

    @contextmanager
    def put_into(self, model: Any) -> Iterator[None]:
        """
        Make a model, while it is saved, what it was at the start.

        :param model: The model
        """
        now = {name: getattr(model, name) for name in self.counted}
        try:
            start = self._replace(counted={}, made_with=self.made_with or made_with(model))
            # SB3 also writes each value of a dictionary as text, but not of a tuple
            vars(model).update({**self.counted, SAVED_AS: tuple(start._asdict().items()), VERSION: __version__})
            yield
        finally:
            for name in (SAVED_AS, VERSION):
                vars(model).pop(name, None)
            vars(model).update(now)

    @classmethod
    def of_attributes(cls, attributes: dict[str, Any]) -> "RolloutStart | None":
        """
        :param attributes: The attributes of a model, perhaps from a file, whose start is removed from them
        :return: The start; ``None`` if there is none that this version knows
        """
        saved = dict(attributes.pop(SAVED_AS, None) or ())
        attributes.pop(VERSION, None)
        if not set(cls._fields) <= set(saved):
            return None
        start = cls(**{name: saved[name] for name in cls._fields})
        return start._replace(made_with={name: start.made_with[name] for name in MADE_WITH if name in start.made_with})

    def restore_statistics(self, env: VecEnv | None) -> None:
        """
        :param env: Environments, whose ``VecNormalize`` gets these statistics, unless they were switched off or are of another
            kind
        """
        found = normalizers(env, training_only=True)
        if [np.shape(each.mean) for each in found] == [np.shape(mean) for _, mean, _ in self.statistics]:
            for each, statistics in zip(found, self.statistics, strict=True):
                set_statistics(each, statistics)

    def differences(self, model: Any) -> list[str]:
        """
        :param model: The model
        :return: What its numbers may depend on and has changed since the file was saved
        """
        now = made_with(model)
        return [f"{name} {old} instead of {now[name]}" for name, old in self.made_with.items() if old != now[name]]

    def restore_generators(self, model: Any, rng: np.random.Generator | None) -> None:
        """
        :param model: The model
        :param rng: The generator of its actions
        """
        workers = model.workers
        if len(self.generators) == workers.size:
            restore_generators(self.generators[workers.rank], model.device, rng)


class Wish(NamedTuple):
    """
    How a worker would begin a call of ``learn``.

    :param n_envs: Number of its environments
    :param resets_seeded: Whether each rollout should start from a reset with seeds
    :param has_seed: Whether its model has a seed
    :param seed: What the seeds of the resets are derived from
    :param n_rollouts: The number of rollouts since this seed was set
    :param taken_up: What the first rollout begins with, if a run is taken up
    """

    n_envs: int
    resets_seeded: bool
    has_seed: bool
    seed: int | None
    n_rollouts: int
    taken_up: RolloutStart | None


class Agreement(NamedTuple):
    """
    What all workers have agreed on: what rank 0 wishes, as far as all can.

    :param first_env: The number of this worker's first environment among those of all
    :param resets_seeded: Whether each rollout starts from a reset with seeds
    :param generators_known: Whether the states of the generators of all workers are kept
    :param seed: What the seeds of the resets are derived from
    :param n_rollouts: The number of rollouts since this seed was set
    :param taken_up: What the first rollout begins with, if a run is taken up
    """

    first_env: int = 0
    resets_seeded: bool = False
    generators_known: bool = False
    seed: int | None = None
    n_rollouts: int = 0
    taken_up: RolloutStart | None = None

    @classmethod
    def of(cls, wishes: list[Wish], rank: int) -> "Agreement":
        """
        :param wishes: The wishes of all workers
        :param rank: The index of this worker
        :return: What they agree on
        """
        return cls(
            sum(wish.n_envs for wish in wishes[:rank]),
            all(wish.resets_seeded for wish in wishes),
            all(wish.has_seed for wish in wishes),
            wishes[0].seed,
            wishes[0].n_rollouts,
            wishes[0].taken_up,
        )


def made_with(model: Any) -> dict[str, str]:
    """
    :param model: A model
    :return: What the numbers of its run may depend on, by name
    """
    return {name: of(model) for name, of in MADE_WITH.items()}


def copies_of_statistics(env: VecEnv | None) -> list[Statistics]:
    """
    :param env: Environments
    :return: The statistics that ``VecNormalize`` gathers of them
    """
    return [statistics_of(each) for each in normalizers(env, training_only=True)]


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
