"""Playing many episodes side by side, to choose the best of several attempts at an instance."""

from collections.abc import Sequence
from typing import Any

import numpy as np


def play(model: Any, envs: Sequence[Any], deterministic: bool = False, seed: int = 0) -> np.ndarray:
    """
    Play one episode in each environment. All episodes must take the same number of steps.

    :param model: A model with masks; ``None``: any action that is allowed
    :param envs: Environments, which show what came of it
    :param deterministic: Whether the model takes its most likely actions
    :param seed: Seed of the first environment (the next has the next one), and of the random actions
    :return: The return of each episode
    """
    rng = np.random.default_rng(seed)
    observations = np.stack([env.reset(seed=seed + index)[0] for index, env in enumerate(envs)])
    returns, done = np.zeros(len(envs)), False
    while not done:
        masks = np.stack([env.action_masks() for env in envs])
        if model is None:
            actions = np.where(masks, rng.random(masks.shape), -1.0).argmax(axis=1)
        else:
            actions, _ = model.predict(observations, action_masks=masks, deterministic=deterministic)
        steps = [env.step(int(action)) for env, action in zip(envs, actions, strict=True)]
        observations, done = np.stack([step[0] for step in steps]), steps[0][2]
        returns += [step[1] for step in steps]
    return returns


def best_of(envs: Sequence[Any], returns: np.ndarray, n_attempts: int) -> list[Any]:
    """
    :param envs: Environments that were played, those of an instance side by side
    :param returns: The return of each
    :param n_attempts: Number of attempts at each instance
    :return: The environment of the best attempt at each instance
    """
    best = returns.reshape(-1, n_attempts).argmax(axis=1)
    return [envs[instance * n_attempts + attempt] for instance, attempt in enumerate(best)]
