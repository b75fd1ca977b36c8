# %% [markdown]
# # Why is the policy gradient noisy, and what helps?
#
# The argument of the page *The algorithm*, with numbers. First on a choice between two arms, where everything can
# be computed. Then on CartPole.
# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

from sb3_reinforce import REINFORCE, GradientMonitor

torch.set_num_threads(1)
rng = np.random.default_rng(0)
# %% [markdown]
# ## The score function
#
# A policy chooses arm A with probability $p = 1 / (1 + e^{-\theta})$, else arm B. The score is $\partial \log \pi
# / \partial \theta$: it is $1 - p$ for A, and $-p$ for B. Its expectation is zero:
# %%
theta = 0.4
p = 1 / (1 + np.exp(-theta))
score = np.array([1 - p, -p])
print("expected score:", p * score[0] + (1 - p) * score[1])
# %% [markdown]
# The gradient of the expected reward is the expectation of reward times score. Compare it with the slope of the
# expected reward itself:
# %%
rewards = np.array([10.0, 1.0])


def expected_reward(theta):
    p = 1 / (1 + np.exp(-theta))
    return p * rewards[0] + (1 - p) * rewards[1]


estimate = p * rewards[0] * score[0] + (1 - p) * rewards[1] * score[1]
slope = (expected_reward(theta + 1e-6) - expected_reward(theta - 1e-6)) / 2e-6
print(f"expectation of reward times score: {estimate:.6f}, slope: {slope:.6f}")
# %% [markdown]
# ## Two situations
#
# In the first, A pays +10 and B pays -10. In the second A pays +10 and B pays +1. A person would avoid B in both.
# What does a single sample do?
# %%
situations = {"+10 / -10": (10, -10), "+10 / +1": (10, 1), "+10 / +1, less 5.5": (10 - 5.5, 1 - 5.5)}
for name, (a, b) in situations.items():
    effects = ["more" if weight > 0 else "less" for weight in (a, b)]
    print(f"{name:20} a sample of A makes A {effects[0]} likely, one of B makes B {effects[1]} likely")
# %% [markdown]
# In the second situation a sample of B makes B more likely, although it is the worse arm. Subtracting a baseline
# mends that. The expectation stays, and the variance falls:
# %%
baselines = np.linspace(-5, 15, 200)
samples = np.stack([(rewards[0] - baselines) * score[0], (rewards[1] - baselines) * score[1]])
mean = p * samples[0] + (1 - p) * samples[1]
variance = p * (samples[0] - mean) ** 2 + (1 - p) * (samples[1] - mean) ** 2

figure, axes = plt.subplots(1, 2, figsize=(8, 3), dpi=80)
axes[0].plot(baselines, mean)
axes[0].set(ylim=(0, 1.5 * mean[0]), xlabel="baseline", title="expectation of the estimate")
axes[1].plot(baselines, variance)
axes[1].set(xlabel="baseline", title="its variance")
plt.show()
print(f"least variance with a baseline of {baselines[np.argmin(variance)]:.1f}")
# %% [markdown]
# ## Larger batches
#
# The mean of $n$ samples has an $n$-th of the variance, and costs $n$ times as much.
# %%
chosen = rng.random((10_000, 64)) < p
single = np.where(chosen, rewards[0] * score[0], rewards[1] * score[1])
for n in (1, 4, 16, 64):
    print(f"{n:3} samples: variance {single[:, :n].mean(axis=1).var():.3f}")
# %% [markdown]
# ## On CartPole
#
# `GradientMonitor` measures the variance of the gradient while a model learns, and what it would have been with
# other baselines on the same episodes. It does not change the training.
# %%
monitor = GradientMonitor(every_n_updates=1, compare_baselines=True)
# Without discount all these estimates have the same expectation
common = {"n_episodes": 20, "gamma": 1.0, "normalize_advantage": False, "seed": 0, "device": "cpu"}
model = REINFORCE("MlpPolicy", "CartPole-v1", baseline="leave_one_out", **common)
model.learn(30_000, callback=monitor)
table = monitor.summary()
ratios = table.filter(like="variance_ratio_").median().sort_values()
ratios.index = ratios.index.str.removeprefix("gradient/variance_ratio_")
ratios.round(2)
# %% [markdown]
# A ratio of 2 means twice the variance of leave-one-out with reward-to-go. `whole_episode` weighs every action
# with the return of its whole episode.
# %%
figure, ax = plt.subplots(figsize=(7, 3), dpi=80)
ax.barh(ratios.index, ratios)
ax.axvline(1, color="0.3", linewidth=1)
ax.set_xlabel("variance of the gradient, leave-one-out with reward-to-go = 1")
plt.tight_layout()
plt.show()
# %% [markdown]
# ## And the mean?
#
# That all these estimates have the same expectation (except for the small bias of `mean`) is what the page *Is
# the estimate right?* shows.
