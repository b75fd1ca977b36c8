"""The results of the runs that have finished."""

from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.learning.files import COLUMNS, check_complete, read_metadata, version_of

NAMES = {
    "reinforce": "REINFORCE",
    "reinforce_mc": "REINFORCE, Monte Carlo",
    "a2c": "A2C",
    "ppo": "PPO",
    "ppo_cleanrl": "PPO, CleanRL's entry",
    "trpo": "TRPO",
    "trpo_narrow": "TRPO, first deviation 0.37",
}
REFERENCE = "trpo"


def read_run(path: Path, kind: str = "learning") -> tuple[dict[str, Any], pd.DataFrame]:
    """
    :param path: The file of a run
    :param kind: What was measured
    :return: What its first line says, and its rows
    :raises ValueError: If it is damaged
    """
    info = read_metadata(path)
    check_complete(path, info, kind)
    return info, pd.read_csv(path, comment="#")


def load(folder: Path, env_ids: list[str], algos: list[str], kind: str = "learning") -> tuple[pd.DataFrame, pd.DataFrame]:
    """
    :param folder: Folder of the results of that kind
    :param env_ids: Environments
    :param algos: Algorithms
    :param kind: What was measured
    :return: One row per run with its outcome, and the rows of all runs, both with the columns ``env``, ``algo`` and ``seed``
    :raises ValueError: If a file is damaged, or the runs on an environment have different budgets
    """
    outcomes, curves = [], []
    budgets: dict[str, int] = {}
    for env_id in env_ids:
        for algo in algos:
            for path in sorted((folder / env_id).glob(f"{algo}-*.csv")):
                info, rows = read_run(path, kind)
                if budgets.setdefault(env_id, info["budget"]) != info["budget"]:
                    raise ValueError(
                        f"{path} must have the budget of the runs beside it, {budgets[env_id]}, got {info['budget']}."
                    )
                key = {"env": env_id, "algo": algo, "seed": info["seed"]}
                last = rows.iloc[-1]
                what = {name: info[name] for name in ("budget", "entry", "hyperparameters")}
                what["version"] = version_of(info)
                outcomes.append({**key, **what, **last[["return_last_100", "eval_mean"]]})
                curves.append(rows.assign(**key))
    columns = ["env", "algo", "seed", "budget", "entry", "hyperparameters", "version", "return_last_100", "eval_mean"]
    runs = pd.DataFrame(outcomes, columns=columns).sort_values("seed", kind="stable")
    return runs, pd.concat(curves, ignore_index=True) if curves else pd.DataFrame(columns=[*COLUMNS, "env", "algo", "seed"])


def in_order(runs: pd.DataFrame, column: str, order: list[str]) -> list[str]:
    """
    :param runs: The runs
    :param column: One of its columns
    :param order: All values that it may have
    :return: Those that it has, in this order
    """
    present = set(runs[column])
    return [value for value in order if value in present]


def read_random(folder: Path) -> dict[str, float]:
    """
    :param folder: Folder of the results
    :return: The mean return of random actions, by environment, as far as it was measured
    :raises ValueError: If the file is damaged
    """
    path = folder / "random.csv"
    if not path.exists():
        return {}
    try:
        return dict(pd.read_csv(path)[["env", "mean"]].to_numpy().tolist())
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} must have the columns env and mean: remove it, and measure again with `random`.") from error
