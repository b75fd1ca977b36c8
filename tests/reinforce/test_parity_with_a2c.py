"""
One update against that of SB3's A2C on the same rollout.

With ``complete_episodes=False``, the value baseline, the joint step alone and A2C's optimizer, the two losses are the same.
By design they differ in one thing, which ``max_grad_norm`` switches off here: A2C clips the gradients of actor and critic
together, REINFORCE each by itself. The rollout is REINFORCE's; into A2C's buffer go the same numbers, with the bootstrap of
truncated steps added to their rewards, as A2C's own collection does.
"""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import A2C
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from sb3_reinforce import REINFORCE

N_ENVS, N_STEPS = 3, 24


class RandomWalk(gym.Env):
    """
    Episodes of 2 to 9 steps, of which every second is truncated.

    :param action_space: Any space of actions
    :param shape: Shape of the observations; of three axes: images
    """

    def __init__(self, action_space: spaces.Space, shape: tuple[int, ...] = (4,)):
        is_image = len(shape) == 3
        self.observation_space = (
            spaces.Box(0, 255, shape, np.uint8) if is_image else spaces.Box(-np.inf, np.inf, shape, np.float32)
        )
        self.action_space = action_space
        self.n_episodes = 0

    def _observe(self) -> np.ndarray:
        space = self.observation_space
        if space.dtype == np.uint8:
            return self.np_random.integers(0, 256, space.shape, dtype=np.uint8)  # type: ignore[arg-type]
        return self.np_random.normal(size=space.shape).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.n_episodes += 1
        self.left = int(self.np_random.integers(2, 10))
        return self._observe(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        over, cut = self.left == 0, self.n_episodes % 2 == 0
        return self._observe(), float(np.sum(action) + self.np_random.normal()), over and not cut, over and cut, {}


class SmallCnn(BaseFeaturesExtractor):
    """A features extractor with parameters, for actor and critic to share."""

    def __init__(self, observation_space: spaces.Box):
        super().__init__(observation_space, features_dim=8)
        self.layers = nn.Sequential(
            nn.Conv2d(observation_space.shape[0], 4, kernel_size=5, stride=3),
            nn.Tanh(),
            nn.Flatten(),
            nn.LazyLinear(8),
            nn.Tanh(),
        )
        with th.no_grad():
            self.layers(th.zeros(1, *observation_space.shape))

    def forward(self, observations: th.Tensor) -> th.Tensor:
        return self.layers(observations)


def make_env(action_space: spaces.Space, shape: tuple[int, ...]) -> DummyVecEnv:
    return DummyVecEnv([lambda: RandomWalk(action_space, shape)] * N_ENVS)


def play_into(
    buffer: Any, model: REINFORCE, final_observations: dict[tuple[int, int], np.ndarray], last_obs: np.ndarray
) -> None:
    """Copy a rollout of REINFORCE's into A2C's buffer, step by step."""
    ours = model.rollout_buffer
    in_steps = {
        name: np.swapaxes(getattr(ours, name).reshape(N_ENVS, N_STEPS, *getattr(ours, name).shape[1:]), 0, 1)
        for name in ("observations", "actions", "rewards", "episode_starts", "values")
    }
    rewards = in_steps["rewards"].copy()
    for (step, env_id), observation in final_observations.items():
        rewards[step, env_id] += model.gamma * value_of(model, observation[None])[0]
    buffer.reset()
    for step in range(N_STEPS):
        buffer.add(
            in_steps["observations"][step],
            in_steps["actions"][step],
            rewards[step],
            in_steps["episode_starts"][step],
            th.tensor(in_steps["values"][step]),
            th.zeros(N_ENVS),
        )
    buffer.compute_returns_and_advantage(
        th.tensor(value_of(model, last_obs)), dones=np.asarray(model._last_episode_starts)  # type: ignore[arg-type]
    )


def value_of(model: REINFORCE, observations: np.ndarray) -> np.ndarray:
    with th.no_grad():
        return model.policy.predict_values(th.as_tensor(observations)).flatten().numpy()


CASES: dict[str, dict[str, Any]] = {
    "discrete": {},
    "discrete_entropy": {"ent_coef": 0.1},
    "discrete_normalized": {"normalize_advantage": True},
    "discrete_gae": {"gae_lambda": 0.8, "ent_coef": 0.05, "normalize_advantage": True},
    "discrete_cnn": {"shape": (3, 36, 36), "gae_lambda": 0.9, "ent_coef": 0.05, "vf_coef": 0.7},
    "box": {"action_space": spaces.Box(-1, 1, (2,), np.float32)},
    "box_entropy": {"action_space": spaces.Box(-1, 1, (2,), np.float32), "ent_coef": 0.1},
    "box_normalized_gae": {
        "action_space": spaces.Box(-1, 1, (2,), np.float32),
        "normalize_advantage": True,
        "gae_lambda": 0.8,
        "ent_coef": 0.05,
    },
    "box_cnn": {"action_space": spaces.Box(-1, 1, (2,), np.float32), "shape": (3, 36, 36), "normalize_advantage": True},
}


@pytest.mark.parametrize("use_rms_prop", [True, False], ids=["rmsprop", "sgd"])
@pytest.mark.parametrize("case", CASES)
def test_one_update_is_that_of_a2c(case, use_rms_prop):
    arguments = dict(CASES[case])
    action_space, shape = arguments.pop("action_space", spaces.Discrete(3)), arguments.pop("shape", (4,))
    is_image = len(shape) == 3
    # What A2C makes by itself; plain gradient descent shows the gradients' scale, which RMSprop's first steps do not
    optimizer_kwargs = {"alpha": 0.99, "eps": 1e-5, "weight_decay": 0}
    policy_kwargs: dict[str, Any] = {"optimizer_class": th.optim.RMSprop, "optimizer_kwargs": optimizer_kwargs}
    if not use_rms_prop:
        policy_kwargs = {"optimizer_class": th.optim.SGD}
    if is_image:
        policy_kwargs |= {"features_extractor_class": SmallCnn, "net_arch": []}
    common: dict[str, Any] = {
        "ent_coef": 0.0,
        "learning_rate": 7e-4,
        "n_steps": N_STEPS,
        "gamma": 0.9,
        "gae_lambda": 1.0,
        "normalize_advantage": False,
        "max_grad_norm": 1e9,
        "seed": 3,
        "device": "cpu",
        **arguments,
    }
    name = "CnnPolicy" if is_image else "MlpPolicy"
    env = make_env(action_space, shape)
    model = REINFORCE(
        name,
        env,
        complete_episodes=False,
        baseline="value",
        n_critic_updates=0,
        natural_gradient=False,
        normalize_returns=False,
        policy_kwargs=policy_kwargs,
        **common,
    )
    reference_kwargs = dict(policy_kwargs)
    if use_rms_prop:
        reference_kwargs = {key: value for key, value in policy_kwargs.items() if not key.startswith("optimizer")}
    reference = A2C(name, make_env(action_space, shape), use_rms_prop=use_rms_prop, policy_kwargs=reference_kwargs, **common)
    _, callback = model._setup_learn(total_timesteps=1)
    reference._setup_learn(total_timesteps=1)

    final_observations: dict[tuple[int, int], np.ndarray] = {}
    step_number = [0]
    env_step_wait = env.step_wait

    def step_wait() -> Any:
        result = env_step_wait()
        for env_id, info in enumerate(result[3]):
            if result[2][env_id] and info["TimeLimit.truncated"]:
                final_observations[step_number[0], env_id] = info["terminal_observation"]
        step_number[0] += 1
        return result

    env.step_wait = step_wait  # type: ignore[method-assign]
    n_terminated = 0
    for _ in range(3):
        # From the same weights every time, but with what RMSprop remembers of the updates before
        reference.policy.load_state_dict(model.policy.state_dict())
        before = {key: value.clone() for key, value in model.policy.state_dict().items()}
        final_observations.clear()
        step_number[0] = 0
        assert model.collect_rollouts(model.env, callback, model.rollout_buffer, N_STEPS)  # type: ignore[arg-type]
        n_terminated += int(model.rollout_buffer.episode_starts.sum()) - len(final_observations)
        assert final_observations, "nothing was truncated"
        play_into(reference.rollout_buffer, model, final_observations, model._last_obs)  # type: ignore[arg-type]

        ours, theirs = model.rollout_buffer, reference.rollout_buffer
        assert np.allclose(ours.advantages, theirs.advantages.T.ravel(), atol=1e-5)
        assert np.allclose(ours.returns, theirs.returns.T.ravel(), atol=1e-5)

        model.train()
        reference.train()
        after = model.policy.state_dict()
        for key, value in reference.policy.state_dict().items():
            assert th.allclose(after[key], value, rtol=1e-4, atol=2e-6), key
            assert not th.equal(after[key], before[key]), f"{key} did not move"
        for key in ("train/policy_loss", "train/value_loss", "train/entropy_loss", "train/explained_variance"):
            assert model.logger.name_to_value[key] == pytest.approx(reference.logger.name_to_value[key], rel=1e-4, abs=1e-5)
    assert n_terminated > 0, "nothing terminated"
