"""Which runs there are."""

from pathlib import Path
from typing import Any

import yaml

from benchmarks.common import ROOT
from benchmarks.suite.one_run import RANDOM, Run
from benchmarks.suite.tasks import CHOOSE, CONTINUOUS, TASKS, UNTOUCHED

RESULTS = ROOT / "benchmarks" / "results" / "defaults"
OURS, ZOO, REFERENCE = "reinforce", "zoo", "ppo"
OTHERS = ("ppo", "a2c", "trpo")
N_STEPS, N_MORE_STEPS = 100_000, 300_000
#: Number of environments beside the single one
N_ENVS = 8
N_SEEDS, N_SEEDS_OF_OTHERS, N_SEEDS_OF_MORE_STEPS = 10, 5, 3
#: The tasks on which no seed may fail, and their number of seeds
NEVER_FAILED = {"CartPole-v1": 20, "Acrobot-v1": N_SEEDS}
#: Seeds that defaults are chosen with are in no report
FIRST_CHOOSING_SEED, N_CHOOSING_SEEDS = 100, 5
#: What the page "How to choose" tries: one change of the defaults at a time
CHANGES: dict[str, dict[str, Any]] = {
    "none": {},
    "gae_lambda=0.95": {"gae_lambda": 0.95},
    "gae_lambda=0.98": {"gae_lambda": 0.98},
    "ent_coef=0": {"ent_coef": 0.0},
    "ent_coef=0.01": {"ent_coef": 0.01},
    "ent_coef=0.02": {"ent_coef": 0.02},
    "ent_coef=0.04": {"ent_coef": 0.04},
    "n_steps=256": {"n_steps": 256},
    "n_steps=4096": {"n_steps": 4096},
    "target_kl=0.003": {"target_kl": 0.003},
    "target_kl=0.03": {"target_kl": 0.03},
    "natural_gradient=False": {"natural_gradient": False, "learning_rate": 3e-3},
    "n_critic_updates=20": {"n_critic_updates": 20},
    "normalize_returns=False": {"normalize_returns": False},
    "gamma=0.98": {"gamma": 0.98},
    "baseline=leave_one_out": {"baseline": "leave_one_out"},
    "baseline=None": {"baseline": None},
    "log_std_init=-1": {"policy_kwargs": {"log_std_init": -1.0}},
    "use_sde=True": {"use_sde": True},
}
#: Changes that mean something to some tasks alone
CHANGED_TASKS: dict[str, set[str]] = {
    **{label: CHOOSE.keys() - CONTINUOUS for label in CHANGES if label.startswith("ent_coef")},
    **{label: CONTINUOUS for label in ("log_std_init=-1", "use_sde=True")},
}


def zoo_default() -> dict[str, Any]:
    """
    :return: The arguments that the zoo's default entry passes to the constructor
    """
    entries = yaml.safe_load((ROOT / "zoo_configs" / "reinforce.yml").read_text())
    return {name: value for name, value in entries["default"].items() if name not in ("n_timesteps", "policy")}


def reported(folder: Path = RESULTS) -> list[Run]:
    """
    :param folder: Where the results lie
    :return: The runs of the report, one seed after the other, so that one that is stopped leaves complete sweeps
    """
    runs = [Run(RANDOM, task, 0, 1, 0, folder) for task in TASKS]
    ours: tuple[tuple[str, dict[str, Any]], ...] = ((OURS, {}), (ZOO, zoo_default()))
    for seed in range(N_SEEDS):
        runs += [Run(algo, task, N_STEPS, 1, seed, folder, "", change) for algo, change in ours for task in TASKS]
        runs += [Run(OURS, task, N_STEPS, N_ENVS, seed, folder) for task in TASKS]
        runs += [Run(algo, task, N_MORE_STEPS, 1, seed, folder, "", change) for algo, change in ours for task in UNTOUCHED]
    for task, n_seeds in NEVER_FAILED.items():
        runs += [Run(OURS, task, N_STEPS, 1, seed, folder) for seed in range(N_SEEDS, n_seeds)]
    for seed in range(N_SEEDS_OF_OTHERS):
        runs += [Run(algo, task, N_STEPS, 1, seed, folder) for algo in OTHERS for task in TASKS]
    for seed in range(N_SEEDS_OF_MORE_STEPS):
        runs += [Run(algo, task, N_MORE_STEPS, 1, seed, folder) for algo in OTHERS for task in UNTOUCHED]
    return runs


def changed(labels: list[str], n_envs: int = 1, folder: Path = RESULTS) -> list[Run]:
    """
    :param labels: Names of :data:`CHANGES`
    :param n_envs: Number of environments
    :param folder: Where the results lie
    :return: The runs that the defaults are chosen by
    """
    seeds = range(FIRST_CHOOSING_SEED, FIRST_CHOOSING_SEED + N_CHOOSING_SEEDS)
    return [
        Run(OURS, task, N_STEPS, n_envs, seed, folder / "changes", label, CHANGES[label])
        for seed in seeds
        for label in labels
        for task in CHOOSE
        if task in CHANGED_TASKS.get(label, CHOOSE)
    ]
