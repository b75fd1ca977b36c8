"""The files that runs leave."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.learning.entries import is_of_today
from benchmarks.learning.plan import SPEED_STEPS, Run

COLUMNS = ("timesteps", "wall_seconds", "cpu_seconds", "n_episodes", "return_last_100", "eval_mean", "eval_std")


def read_metadata(path: Path) -> dict[str, Any]:
    """
    :param path: The file of a run
    :return: What its first line says
    :raises ValueError: If it says nothing
    """
    with open(path) as file:
        line = file.readline()
    try:
        info = json.loads(line.removeprefix("#"))
    except json.JSONDecodeError:
        info = None
    if not isinstance(info, dict) or not {"seed", "budget", "entry", "hyperparameters"} <= info.keys():
        raise ValueError(f"{path} must begin with a line of JSON, got {line[:40]!r}: remove it to repeat the run.")
    return info


def version_of(info: dict[str, Any]) -> str | None:
    """
    :param info: What the first line of a run's file says
    :return: The version of this package that it was made with, if it says so
    """
    return info.get("versions", {}).get("sb3_reinforce")


def check_complete(path: Path, info: dict[str, Any], kind: str = "learning") -> None:
    """
    :param path: The file of a run
    :param info: What its first line says
    :param kind: What was measured
    :raises ValueError: If its last row is missing
    """
    row = last_row(path)
    n_steps = {"solve": 0, "speed": SPEED_STEPS}.get(kind, info["budget"])
    try:
        complete = int(row["timesteps"]) >= min(n_steps, info["budget"])
        complete = complete and (kind == "speed" or np.isfinite(float(row["eval_mean"])))
    except (KeyError, ValueError):
        complete = False
    if not complete:
        raise ValueError(f"{path} must go to the end of its run, got a last row of {row}: remove it to repeat the run.")


def last_row(path: Path) -> dict[str, str]:
    """
    :param path: The file of a run, maybe an unfinished one
    :return: Its last complete row
    """
    lines = path.read_text().split("\n")[:-1] if path.exists() else []
    return dict(zip(COLUMNS, lines[-1].split(","), strict=False)) if len(lines) > 2 else {}


def is_finished(run: Run) -> bool:
    """
    :param run: A run
    :return: Whether its results are there
    :raises ValueError: If those that are there were made with another budget, or are damaged
    """
    if not run.path.exists():
        return False
    found = read_metadata(run.path)
    check_complete(run.path, found, run.kind)
    if found["budget"] != run.budget:
        raise ValueError(f"{run.path} has a budget of {found['budget']}, not {run.budget}: use another `--folder`.")
    if not is_of_today(found["hyperparameters"], run.algo, run.env_id, version_of(found)):
        print(f"{run}: finished, with other hyperparameters than today's. Remove {run.path} to repeat it.")
    return True
