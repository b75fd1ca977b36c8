# %% [markdown]
# # Your own environment
#
# From an idea to a trained agent, with the mistake that is made most often.
# %%
import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

from sb3_reinforce import REINFORCE

torch.set_num_threads(1)


# %% [markdown]
# ## The task
#
# A car stands up to 300 metres from its place in a car park. It can accelerate and brake. It should stand at its
# place as soon as it can.
#
# - **Observation**: the distance in millimetres, as the sensor tells it, and the speed in metres per second.
# - **Action**: the acceleration, from full braking (-1) to full throttle (1).
# - **Reward**: a cost for the distance, in every second.
# - **End**: after 60 seconds. That is a time limit and no end of the task, so it is left to the `TimeLimit`
#   wrapper.
# %%
class Parking(gym.Env):
    """A car on a line: be at 0, at rest."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.distance, self.speed = self.np_random.uniform(-300, 300), 0.0
        return self.observe(), {}

    def observe(self):
        return np.array([1000 * self.distance, self.speed], np.float32)

    def step(self, action):
        self.speed += 3.0 * float(np.clip(action[0], -1, 1))
        self.distance += self.speed
        return self.observe(), -abs(self.distance) / 100, False, False, {}


check_env(Parking())


def make():
    return TimeLimit(Parking(), max_episode_steps=60)


# %% [markdown]
# `check_env` has found nothing wrong. So let us train.
# %%
env = make_vec_env(make, n_envs=8, seed=0)
raw = REINFORCE("MlpPolicy", env, gae_lambda=0.95, seed=0, device="cpu").learn(60_000)

mean, deviation = evaluate_policy(raw, make_vec_env(make, seed=100), n_eval_episodes=50)
print(f"mean return: {mean:.0f}, deviation {deviation:.0f}")
# %% [markdown]
# Is that good? A car that does nothing stands 150 metres away on average, and pays 1.5 in each of the 60 seconds:
# -90.
#
# ## The mistake
#
# Networks learn slowly from numbers that are far from 1, and the distance is up to 300,000. `VecNormalize` keeps
# a running mean and deviation of the observations, and puts them on one scale. Rewards need no scale.
# %%
env = VecNormalize(make_vec_env(make, n_envs=8, seed=0), norm_reward=False)
model = REINFORCE("MlpPolicy", env, gae_lambda=0.95, seed=0, device="cpu").learn(60_000)

test_env = VecNormalize(make_vec_env(make, seed=100), norm_reward=False, training=False)
test_env.obs_rms = env.obs_rms  # the same scale
mean, deviation = evaluate_policy(model, test_env, n_eval_episodes=50)
print(f"mean return: {mean:.0f}, deviation {deviation:.0f}")


# %% [markdown]
# ## Look at it
#
# Returns are one number. Pictures tell more: where are the cars after each second?
# %%
def drive(model, normalize, n_cars=12):
    distances = np.zeros((n_cars, 61))
    for car in range(n_cars):
        env = Parking()
        observation, _ = env.reset(seed=car)
        distances[car, 0] = env.distance
        for second in range(60):
            action, _ = model.predict(normalize(observation), deterministic=True)
            observation, *_ = env.step(action)
            distances[car, second + 1] = env.distance
    return distances


figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), dpi=80, sharey=True)
axes[0].plot(drive(raw, lambda observation: observation).T, linewidth=1)
axes[0].set(title="raw observations", xlabel="second", ylabel="distance, metres")
axes[0].set_ylim(-400, 400)
axes[1].plot(drive(model, env.normalize_obs).T, linewidth=1)
axes[1].set(title="normalized observations", xlabel="second")
plt.show()
# %% [markdown]
# ## Keep it
#
# The statistics belong to the environment: save both.
# %%
model.save("parking")
env.save("parking_statistics.pkl")

env = VecNormalize.load("parking_statistics.pkl", make_vec_env(make))
model = REINFORCE.load("parking", env=env, device="cpu")
# %% [markdown]
# ## A list to go through
#
# 1. `check_env` is silent.
# 2. Observations are of the size of 1: scaled by you, or by `VecNormalize`.
# 3. Actions go from -1 to 1.
# 4. An end of the task is `terminated`, a time limit is `truncated`.
# 5. All randomness comes from `self.np_random`.
# 6. You know what doing nothing is worth, and what the best would be.
