# %% [markdown]
# # Getting started
#
# Train an agent, look at how it learned, test it, save it. The same in words: the page *Getting started*.
#
# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_reinforce import REINFORCE

torch.set_num_threads(1)  # small networks gain nothing from more
# %% [markdown]
# ## The environment
#
# A pole stands on a cart. The agent pushes the cart to the left or to the right, gets 1 for each step, and the
# episode ends when the pole falls, or after 500 steps.
#
# Four environments play side by side.
# %%
env = make_vec_env("CartPole-v1", n_envs=4, seed=0)
print(env.observation_space)
print(env.action_space)


# %% [markdown]
# ## Training
#
# A callback notes the return of each episode. It is an ordinary callback of Stable-Baselines3.
# %%
class Returns(BaseCallback):
    def __init__(self):
        super().__init__()
        self.found = []

    def _on_step(self):
        for info in self.locals["infos"]:
            if "episode" in info:
                self.found.append((self.num_timesteps, info["episode"]["r"]))
        return True


returns = Returns()
model = REINFORCE("MlpPolicy", env, seed=0, device="cpu").learn(30_000, callback=returns)
# %%
timesteps, found = np.array(returns.found).T
figure, ax = plt.subplots(figsize=(7, 3.2), dpi=80)
ax.plot(timesteps, found, ".", markersize=4, alpha=0.4, label="one episode")
ax.plot(timesteps, pd.Series(found).rolling(20).mean(), label="mean of 20")
ax.set(xlabel="timesteps", ylabel="return")
ax.legend(loc="upper left")
plt.show()
# %% [markdown]
# ## How good is it?
#
# `evaluate_policy` plays in a fresh environment, and takes the most likely action in each step.
# %%
mean, deviation = evaluate_policy(model, make_vec_env("CartPole-v1", seed=100), n_eval_episodes=20)
print(f"{mean:.0f} +- {deviation:.0f}")
# %% [markdown]
# ## Watch it
#
# One episode: the place of the cart, and the angle of the pole.
# %%
env = make_vec_env("CartPole-v1", seed=7)
observation, states, done = env.reset(), [], [False]
while not done[0]:
    states.append(observation[0])
    action, _ = model.predict(observation, deterministic=True)
    observation, reward, done, info = env.step(action)

figure, axes = plt.subplots(2, 1, figsize=(7, 3.6), dpi=80, sharex=True)
axes[0].plot(np.array(states)[:, 0])
axes[0].set_ylabel("place")
axes[1].plot(np.degrees(np.array(states)[:, 2]))
axes[1].set(ylabel="angle, degrees", xlabel="step")
plt.show()
# %% [markdown]
# ## Keep it
# %%
model.save("cartpole")
again = REINFORCE.load("cartpole", device="cpu")
actions = [agent.predict(observation, deterministic=True)[0][0] for agent in (model, again)]
print("the same action:", actions[0] == actions[1])
# %% [markdown]
# ## What next
#
# - an environment of your own: the notebook *Your own environment*;
# - what to change when it does not learn: the page *How to choose*.
