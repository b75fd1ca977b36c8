"""An environment whose episodes end at different times in different ways, and vector environments of it."""

from collections.abc import Callable
from typing import Any, ClassVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from gymnasium.vector.utils import batch_space

VectorWrapper: Any = getattr(gym.vector, "VectorWrapper", object)  # since Gymnasium 1.0

BOX = spaces.Box(-np.inf, np.inf, (3,), np.float32)
DISCRETE = spaces.Discrete(10_000)
DICT = spaces.Dict({"position": BOX, "clock": spaces.Discrete(10_000), "picture": spaces.Box(0, 255, (2, 2, 1), np.uint8)})
SPACES = {"Box": BOX, "Discrete": DISCRETE, "Dict": DICT}


class Walk(gym.Env):
    """
    A random walk which an action pushes. It terminates where it goes too far, and is truncated at a limit drawn at each reset;
    sometimes both happen at once.

    :param space: Name of the observation space
    :param with_infos: Whether the infos hold anything
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 7}

    def __init__(self, space: str = "Box", with_infos: bool = False, render_mode: str | None = None):
        self.space, self.with_infos, self.render_mode = space, with_infos, render_mode
        self.observation_space = SPACES[space]
        self.action_space = spaces.Discrete(3)
        self.position = np.zeros(3, np.float32)
        self.clock = 0
        self.scale = 1.0
        self.n_resets = 0
        self.last_options: dict[str, Any] | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.position[:] = self.np_random.normal(size=3)
        self.limit = int(self.np_random.integers(2, 12))
        self.clock = 0
        self.n_resets += 1
        self.last_options = options
        return self._observe(), ({"limit": self.limit} if self.with_infos else {})

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.position[:] += self.scale * (self.np_random.normal(size=3) + (int(action) - 1))
        self.clock += 1
        reward = float(self.position.sum()) * 0.1
        terminated, truncated = bool(abs(self.position[0]) > 3.0), self.clock >= self.limit
        return self._observe(), reward, terminated, truncated, self._infos()

    def _infos(self) -> dict[str, Any]:
        if not self.with_infos:
            return {}
        infos: dict[str, Any] = {"clock": self.clock, "inner": {"far": bool(abs(self.position[0]) > 2.0)}, "name": "walk"}
        if self.clock % 2:
            infos["odd"] = np.array([self.clock, 1.5])
        return infos

    def _observe(self) -> Any:
        if self.space == "Box":
            return self.position.copy()
        clock = 100 * self.clock + int(abs(self.position[0]) * 10)
        if self.space == "Discrete":
            return clock
        return {"position": self.position.copy(), "clock": clock, "picture": np.full((2, 2, 1), self.clock, np.uint8)}

    def action_masks(self) -> np.ndarray:
        """Which actions may be taken."""
        return np.array([True, self.clock % 2 == 0, self.position[0] > 0])

    def add(self, a: int, b: int = 0) -> int:
        """The sum with the clock."""
        return self.clock + a + b

    def render(self) -> Any:
        return np.full((4, 6, 3), self.clock, np.uint8)


class NativeWalks(VectorEnv):
    """
    Many walks in one object, which hands out the same arrays at each step.

    :param mode: The autoreset mode, as the value of Gymnasium's enum
    :param n_envs: The number of walks
    :param space: Name of the observation space
    :param with_mask: Whether it knows the option ``reset_mask``
    :param declared: Whether the metadata say the mode
    """

    def __init__(
        self, mode: str = "NextStep", n_envs: int = 5, space: str = "Box", with_mask: bool = True, declared: bool = True
    ):
        self.mode, self.num_envs, self.with_mask = mode, n_envs, with_mask
        self.walks = [Walk(space) for _ in range(n_envs)]
        self.single_observation_space, self.single_action_space = self.walks[0].observation_space, self.walks[0].action_space
        self.observation_space = batch_space(self.single_observation_space, n_envs)
        self.action_space = batch_space(self.single_action_space, n_envs)
        self.metadata = {"autoreset_mode": gym.vector.AutoresetMode(mode)} if declared else {}
        self.rewards, self.flags = np.zeros(n_envs), np.zeros((2, n_envs), bool)
        self.obs = self._zeros()
        self.n_full_resets = 0
        self.difficulty = 1

    def _zeros(self) -> Any:
        if isinstance(self.single_observation_space, spaces.Dict):
            parts = self.single_observation_space.spaces
            return {key: np.zeros((self.num_envs, *part.shape), part.dtype) for key, part in parts.items()}
        space = self.single_observation_space
        return np.zeros((self.num_envs, *space.shape), space.dtype)  # type: ignore[misc]

    def _put(self, into: Any, i: int, obs: Any) -> None:
        if isinstance(into, dict):
            for key in into:
                into[key][i] = obs[key]
        else:
            into[i] = obs

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        mask = np.ones(self.num_envs, bool)
        if self.with_mask and options and "reset_mask" in options:
            mask = options["reset_mask"]
        self.n_full_resets += bool(mask.all())
        for i in np.flatnonzero(mask):
            self._put(self.obs, i, self.walks[i].reset(seed=None if seed is None else seed + int(i))[0])
            self.flags[:, i] = False
        return self.obs, {}

    def step(self, actions: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        infos: dict[str, Any] = {}
        final = self._zeros()
        for i, walk in enumerate(self.walks):
            done = bool(self.flags[:, i].any())
            assert not (done and self.mode == "Disabled"), "an episode goes on after its end"
            if done and self.mode == "NextStep":
                obs, self.rewards[i], self.flags[:, i] = walk.reset()[0], 0.0, False
            else:
                obs, self.rewards[i], self.flags[0, i], self.flags[1, i], _ = walk.step(actions[i])
            if self.flags[:, i].any() and self.mode == "SameStep":
                self._put(final, i, obs)
                infos = {"final_obs": final, "_final_obs": self.flags.any(0).copy()}
                obs = walk.reset()[0]
            self._put(self.obs, i, obs)
        terminated, truncated = self.flags.copy()
        if self.mode == "SameStep":
            self.flags[:] = False
        return self.obs, self.rewards, terminated, truncated, infos

    def action_masks(self) -> np.ndarray:
        """Which actions may be taken in each environment."""
        return np.stack([walk.action_masks() for walk in self.walks])

    def close_extras(self, **kwargs: Any) -> None:
        self.was_closed = True


class PoolOfWalks:
    """
    Stands in for EnvPool: ``reset`` takes the environments and returns these only, and a step after an episode's end resets.

    :param n_envs: The number of walks
    :param space: Name of the observation space
    :param seed: The seed of the first walk
    """

    render_mode = None

    def __init__(self, n_envs: int = 5, space: str = "Box", seed: int = 0):
        self.walks = NativeWalks("NextStep", n_envs, space)
        self.seed, self.fresh = seed, True
        self.config = {"num_envs": n_envs, "batch_size": n_envs, "max_num_players": 1, "seed": seed}
        self.all_env_ids = np.arange(n_envs, dtype=np.int32)
        self.observation_space, self.action_space = self.walks.single_observation_space, self.walks.single_action_space

    def reset(self, env_id: np.ndarray | None = None) -> tuple[Any, dict[str, Any]]:
        env_ids = self.all_env_ids if env_id is None else env_id
        mask = np.isin(self.all_env_ids, env_ids)
        obs, _ = self.walks.reset(seed=self.seed if self.fresh else None, options={"reset_mask": mask})
        self.fresh = False
        rows = {key: value[env_ids] for key, value in obs.items()} if isinstance(obs, dict) else obs[env_ids]
        return rows, {"env_id": env_ids, "players": {"env_id": env_ids}, "elapsed_step": np.zeros(len(env_ids), np.int32)}

    def step(self, actions: np.ndarray) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        *result, _ = self.walks.step(actions)
        infos = {"env_id": self.all_env_ids, "players": {"env_id": self.all_env_ids}, "elapsed_step": self.all_env_ids}
        return (*result, infos)  # type: ignore[return-value]

    def close(self) -> None:
        self.walks.close()


class DropsOptions(VectorWrapper):
    """Does not pass the options of a reset on."""

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self.env.reset(seed=seed)


class CopiesOptions(VectorWrapper):
    """Passes a copy of the options of a reset on."""

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self.env.reset(seed=seed, options=None if options is None else {**options})


class TakesMask(VectorWrapper):
    """Reads the mask of a reset, but passes it not on."""

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        options = dict(options or {})
        self.mask = options.pop("reset_mask", None)
        return self.env.reset(seed=seed, options=options)


class RefusesMask(VectorWrapper):
    """Refuses to reset single environments."""

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if options and "reset_mask" in options and not options["reset_mask"].all():
            raise ValueError("All or none")
        return self.env.reset(seed=seed, options=options)


def makers(n_envs: int, **kwargs: Any) -> list[Callable[[], gym.Env]]:
    """
    :param n_envs: The number of walks
    :param kwargs: Arguments of each
    :return: Functions that make them
    """
    return [lambda: Walk(**kwargs) for _ in range(n_envs)]
