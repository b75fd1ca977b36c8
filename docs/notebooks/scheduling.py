# %% [markdown]
# # A scheduling problem
#
# Six jobs wait for one machine. Each takes some time, and each has a weight: how urgent it is. In which order
# should they run, so that the weighted sum of the times at which they end is small?
#
# For this problem the best order is known (Smith, 1956): by weight over duration, largest first. So we can see
# how near a learned policy comes. It is a problem of the kind that REINFORCE is for:
#
# - the only reward comes at the end;
# - some actions are not allowed (a job that is done);
# - each episode has an instance of its own, and some instances cost more than others whatever one does.
# %%
import gymnasium as gym
import matplotlib.pyplot as plt
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env

from sb3_reinforce import MaskableREINFORCE

torch.set_num_threads(1)


# %%
class Machine(gym.Env):
    """Six jobs on one machine. An action is the job that runs next."""

    n_jobs = 6
    observation_space = spaces.Box(0, 1, (3 * n_jobs,), np.float32)
    action_space = spaces.Discrete(n_jobs)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.durations, self.weights = self.np_random.uniform(0.1, 1.0, (2, self.n_jobs))
        self.waiting = np.ones(self.n_jobs, bool)
        self.order = []
        return self.observe(), {}

    def observe(self):
        numbers = np.concatenate([self.durations, self.weights, self.waiting])
        return numbers.astype(np.float32)

    def action_masks(self):
        return self.waiting

    def step(self, action):
        self.waiting[action] = False
        self.order.append(int(action))
        done = not self.waiting.any()
        return self.observe(), -self.cost(self.order) if done else 0.0, done, False, {}

    def cost(self, order):
        return float(np.cumsum(self.durations[order]) @ self.weights[order])

    def best_order(self):
        return np.argsort(-self.weights / self.durations)


# %% [markdown]
# ## Attempts at the same instance
#
# The cost depends on the instance more than on the order. So a good order of a costly instance looks worse than a
# bad order of a cheap one. With `group_size=8` eight environments get the same instance, and each attempt is
# judged by the mean of the other seven. No critic is needed.
# %%
def train(**arguments):
    env = make_vec_env(Machine, n_envs=32, seed=0)
    common = {"n_episodes": 1, "gamma": 1.0, "baseline": "leave_one_out", "sub_sampling_factor": 4}
    model = MaskableREINFORCE("MlpPolicy", env, **common, **arguments, seed=0, device="cpu")
    return model.learn(60_000)


models = {"groups of 8": train(group_size=8), "all instances mixed": train()}


# %% [markdown]
# ## Test
#
# New instances, and the same ones for all: how far is each order above the best one?
# %%
def orders(choose, n_instances=200):
    """How far the orders that `choose` makes are above the best, relative to it."""
    gaps = []
    for seed in range(10_000, 10_000 + n_instances):
        env = Machine()
        observation, _ = env.reset(seed=seed)
        while env.waiting.any():
            observation, *_ = env.step(choose(env, observation))
        best = env.cost(env.best_order())
        gaps.append(env.cost(env.order) / best - 1)
    return np.array(gaps)


def by_model(model):
    def choose(env, observation):
        action, _ = model.predict(observation, action_masks=env.action_masks(), deterministic=True)
        return action

    return choose


rng = np.random.default_rng(0)
gaps = {
    "any order": orders(lambda env, _: rng.choice(np.flatnonzero(env.waiting))),
    "shortest first": orders(lambda env, _: np.argmin(np.where(env.waiting, env.durations, np.inf))),
    "most urgent first": orders(lambda env, _: np.argmax(np.where(env.waiting, env.weights, -np.inf))),
    **{f"learned, {name}": orders(by_model(model)) for name, model in models.items()},
}
for name, gap in gaps.items():
    print(f"{name:30} {gap.mean():6.1%} above the best, the best in {np.mean(gap < 1e-9):5.1%}")
# %%
figure, ax = plt.subplots(figsize=(8, 3.4), dpi=80)
ax.boxplot(list(gaps.values()), showfliers=False)
ax.set_xticks(range(1, len(gaps) + 1), [name.replace(", ", ",\n") for name in gaps])
ax.set_ylabel("cost above the best, relative")
plt.tight_layout()
plt.show()
# %% [markdown]
# ## Further
#
# Job-shop scheduling and tours, beside dispatching rules, MaskablePPO and solvers: `examples/scheduling`. What
# groups give, and when: the page *Many attempts at one instance*.
