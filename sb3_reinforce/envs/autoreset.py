"""When a vector environment resets an environment whose episode has ended, and whether it can reset some of them alone."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv, VectorEnv
from gymnasium.wrappers.vector import NormalizeReward

# The values of Gymnasium's AutoresetMode, which has been there only since Gymnasium 1.1
SAME_STEP, NEXT_STEP, DISABLED = "SameStep", "NextStep", "Disabled"

#: The option of ``reset`` that says which environments to reset
RESET_MASK = "reset_mask"


def layers_of(venv: VectorEnv) -> list[VectorEnv]:
    """
    :param venv: A vector environment
    :return: It and what its wrappers wrap, from the outside in
    """
    layers = [venv]
    while isinstance(inner := getattr(layers[-1], "env", None), VectorEnv):
        layers.append(inner)
    return layers


def declared_mode(venv: VectorEnv) -> str | None:
    """
    :param venv: A vector environment
    :return: The autoreset mode that it or its metadata say, ``None`` if they say nothing
    :raises ValueError: If they say something else
    """
    base = layers_of(venv)[-1]
    metadata: Any = venv.metadata
    mode = (metadata or {}).get("autoreset_mode")
    if metadata is base.metadata:
        # The dict may belong to a class, and another environment may have written into it
        is_shared = metadata is getattr(VectorEnv, "metadata", None)
        mode = getattr(base, "autoreset_mode", None if is_shared else mode)
    if mode is None:
        return None
    value = getattr(mode, "value", mode)
    if value not in (SAME_STEP, NEXT_STEP, DISABLED):
        raise ValueError(
            f"`autoreset_mode` in the metadata of a vector environment must be an AutoresetMode of Gymnasium, got {mode!r}."
        )
    return value


class MaskedReset:
    """
    Resets of some environments of a vector environment. Whether they are possible shows at the first reset of all
    environments, which gets a mask as well: the innermost environment has looked at the mask, or it has not.

    :param venv: The vector environment
    """

    def __init__(self, venv: VectorEnv):
        self.venv = venv
        self.base = layers_of(venv)[-1]
        self.forgets = forgets_resets(self.base)
        #: ``None`` before the first reset
        self.possible: bool | None = False if self.forgets else None
        self._arrived = False

    def reset_all(self, seed: Any, options: dict[str, Any] | None) -> tuple[Any, Any]:
        """
        :param seed: The seed or seeds
        :param options: Further options
        :return: The observations and infos of all environments
        """
        if self.possible is not None:
            return self.venv.reset(seed=seed, options=options)
        mask = np.ones(self.venv.num_envs, dtype=bool)
        try:
            result, seen = self._reset(mask, seed, options)
        except Exception:  # of an option that it does not know; any other error comes again
            if isinstance(self.base, (SyncVectorEnv, AsyncVectorEnv)) and self._arrived:
                raise
            result, seen = self.venv.reset(seed=seed, options=options), False
        self.possible = seen
        return result

    def reset_some(
        self, env_ids: np.ndarray, seed: Any = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, Any] | None:
        """
        :param env_ids: The environments to reset
        :param seed: The seed or seeds
        :param options: Further options
        :return: The observations and infos, of these or of all environments. ``None`` if a wrapper refused, and nothing was
            reset
        """
        mask = np.zeros(self.venv.num_envs, dtype=bool)
        mask[env_ids] = True
        try:
            return self._reset(mask, seed, options)[0]
        except (AssertionError, NotImplementedError, TypeError, ValueError):
            if self._arrived:
                raise
            self.possible = False
            return None

    def _reset(self, mask: np.ndarray, seed: Any, options: dict[str, Any] | None) -> tuple[tuple[Any, Any], bool]:
        self._arrived = False
        with self._watched() as watched, self._kept_returns(mask):
            result = self.venv.reset(seed=seed, options={**(options or {}), RESET_MASK: mask})
        return result, any(name.read for name in watched)

    @contextmanager
    def _watched(self) -> Iterator[list["_WatchedName"]]:
        """
        Give the innermost environment a copy of the options that reach it. The name of the mask in it notes whether it is
        looked up, and the wrappers keep theirs: Gymnasium's environments remove the mask from the options, before the
        wrappers have seen it.
        """
        base, watched = self.base, []
        reset, own = base.reset, vars(self.base).get("reset")

        def watching(*args: Any, options: dict[str, Any] | None = None, **kwargs: Any) -> Any:
            self._arrived = True
            if options is not None and RESET_MASK in options:
                watched.append(_WatchedName(RESET_MASK))
                options = {watched[-1] if name == RESET_MASK else name: value for name, value in options.items()}
            return reset(*args, options=options, **kwargs)

        base.reset = watching  # type: ignore[method-assign]
        try:
            yield watched
        finally:
            if own is None:
                del base.reset
            else:
                base.reset = own  # type: ignore[method-assign]

    @contextmanager
    def _kept_returns(self, mask: np.ndarray) -> Iterator[None]:
        """Gymnasium's ``NormalizeReward`` forgets the returns of all environments at any reset. Its scale depends on them."""
        layers: list[Any] = [layer for layer in layers_of(self.venv) if isinstance(layer, NormalizeReward)]
        kept = [layer.accumulated_reward.copy() for layer in layers]
        try:
            yield
        finally:
            for layer, returns in zip(layers, kept, strict=True):
                layer.accumulated_reward = np.where(mask, layer.accumulated_reward, returns)


class _WatchedName(str):
    """The name of an option, which notes whether it is looked up, also in copies of the options."""

    read = False

    def __eq__(self, other: object) -> bool:
        is_same = str.__eq__(self, other)
        self.read = self.read or is_same is True
        return is_same

    __hash__ = str.__hash__

    def __deepcopy__(self, memo: dict[int, Any]) -> "_WatchedName":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return str, (str(self),)  # what the processes of the environments get


class _OneStep(gym.Env):
    """Every episode has one step, and a reward of 1."""

    observation_space = spaces.Discrete(1)
    action_space = spaces.Discrete(1)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[int, dict[str, Any]]:
        return 0, {}

    def step(self, action: Any) -> tuple[int, float, bool, bool, dict[str, Any]]:
        return 0, 1.0, True, False, {}


def forgets_resets(base: VectorEnv) -> bool:
    """
    The processes of ``AsyncVectorEnv(shared_memory=False)``, in Gymnasium up to 1.4 at least, go on to reset an environment in
    its next step although it has been reset since its episode ended.

    :param base: A vector environment without its wrappers
    :return: Whether it is such a one
    """
    if not isinstance(base, AsyncVectorEnv) or base.shared_memory or declared_mode(base) in (SAME_STEP, DISABLED):
        return False
    probe = AsyncVectorEnv([_OneStep], shared_memory=False, context=getattr(base, "context", None))
    try:
        probe.reset()
        probe.step(np.zeros(1, dtype=np.int64))
        probe.reset()
        return bool(probe.step(np.zeros(1, dtype=np.int64))[1][0] != 1.0)
    finally:
        probe.close()
