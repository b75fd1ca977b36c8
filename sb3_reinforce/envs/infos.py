"""The infos of a vector environment, which are one dict of arrays, as one dict for each environment."""

import copy
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from sb3_reinforce.envs.batches import as_numpy

Rows = dict[int, dict[str, Any]]

#: Where vector environments that reset in the same step leave an episode's last observation and info. The second name of the
#: observation is the one before Gymnasium 1.0
FINAL_OBSERVATION = ("final_obs", "final_observation")
FINAL_INFO = "final_info"
_FINAL = {*FINAL_OBSERVATION, FINAL_INFO}


def split(infos: Any, n_envs: int) -> Rows:
    """
    :param infos: The infos of a vector environment: a dict of arrays and further dicts, with a mask ``_key`` beside those keys
        that only some environments have. Or a list with a dict for each environment
    :param n_envs: The number of environments that they are about
    :return: The infos of each environment that has any
    """
    if not isinstance(infos, dict):
        return {i: dict(info) for i, info in enumerate(infos) if info}
    rows: Rows = {}
    for key, value in infos.items():
        if _is_mask(key, infos):
            continue
        mask = infos.get(f"_{key}")
        env_ids = list(range(n_envs)) if mask is None else np.flatnonzero(as_numpy(mask)).tolist()
        if not env_ids:
            continue
        if isinstance(value, dict):
            nested = split(value, n_envs)
            # Without a mask, those that have nothing inside do not have it
            env_ids = env_ids if mask is not None else list(nested)
            values: Iterable[Any] = [nested.get(i, {}) for i in env_ids]
        else:
            values = _column(value, env_ids, n_envs)
        for i, of_env in zip(env_ids, values, strict=True):
            rows.setdefault(i, {})[key] = of_env
    return rows


def _is_mask(key: str, infos: dict[str, Any]) -> bool:
    return isinstance(key, str) and key.startswith("_") and key[1:] in infos


def _column(value: Any, env_ids: Sequence[int], n_envs: int) -> Iterable[Any]:
    """The values of some environments, none of which changes when the vector environment goes on."""
    if isinstance(value, (list, tuple)) and len(value) == n_envs:
        return copy.deepcopy([value[i] for i in env_ids])
    if isinstance(value, np.ndarray) or hasattr(value, "detach"):
        array = as_numpy(value)
        if array.ndim and len(array) == n_envs:
            array = array.copy() if len(env_ids) == n_envs else array[env_ids]
            if array.ndim == 1 and array.dtype.kind in "biuf":
                return array.tolist()
            # Gymnasium leaves the objects of its environments in the array
            return copy.deepcopy(list(array)) if array.dtype.kind == "O" else list(array)
    return [value] * len(env_ids)  # about the vector environment as a whole


def without_final(infos: Any, n_envs: int, ended: Sequence[int]) -> tuple[Any, Rows]:
    """
    Take the last observations and infos of episodes out of the infos of a step.

    :param infos: The infos of a vector environment
    :param n_envs: The number of environments that they are about
    :param ended: The environments whose episodes have ended
    :return: The other infos, and the last observation and info of each environment in ``ended``, as far as there are any
    """
    if isinstance(infos, dict):
        if not any(key in infos for key in _FINAL):
            return infos, {}
        rest: Any = {key: value for key, value in infos.items() if key not in _FINAL and key[1:] not in _FINAL}
        final = split({key: value for key, value in infos.items() if key not in rest}, n_envs) if ended else {}
    else:
        rest = [{key: value for key, value in info.items() if key not in _FINAL} for info in infos]
        final = {i: {key: value for key, value in infos[i].items() if key in _FINAL} for i in ended}
    return rest, {i: final[i] for i in ended if i in final}
