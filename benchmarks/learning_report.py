"""
Tables and figures of the runs of ``learning.py`` that have finished. Imported by it: ``python benchmarks/learning.py report``.

Nothing is left out and nothing is made up: where there are fewer seeds, the tables say how many there are.
"""

import inspect
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from learning import (
    COLUMNS,
    FURTHER_MUJOCO,
    MUJOCO,
    N_ROWS,
    SOLVE,
    SOLVE_IN_A_ROW,
    check_complete,
    find_entry,
    read_metadata,
    zoo_algo,
)

from sb3_reinforce import REINFORCE

NAMES = {
    "reinforce": "REINFORCE",
    "reinforce_mc": "REINFORCE, Monte Carlo",
    "a2c": "A2C",
    "ppo": "PPO",
    "trpo": "TRPO",
}
COLOURS = {"reinforce": "#c0392b", "reinforce_mc": "#e67e22", "a2c": "#2e6fab", "ppo": "#7fb3d9", "trpo": "#4f9d69"}
OURS, REFERENCE = "reinforce", "ppo"
N_BOOTSTRAPS = 2000
#: The share of the way from random actions to the lower one of two final returns that both have to go
COMMON_SHARE = 0.9
#: Fewer episodes than these make no mean return
MIN_EPISODES = 20
#: Tianshou's published results, best test return, mean over 10 seeds, on v3 environments (v2: Reacher and the pendulums):
#: https://github.com/thu-ml/tianshou/blob/master/examples/mujoco/README.md
PUBLISHED = {
    "reinforce_mc": (
        "Tianshou's REINFORCE, 10M steps",
        {
            "InvertedPendulum-v5": 1000.0,
            "InvertedDoublePendulum-v5": 7726.2,
            "Reacher-v5": -5.5,
            "Swimmer-v5": 35.6,
            "Hopper-v5": 416.0,
            "Walker2d-v5": 440.9,
            "HalfCheetah-v5": 1138.8,
            "Ant-v5": 1108.1,
            "Humanoid-v5": 464.3,
        },
    ),
    "reinforce": (
        "Tianshou's A2C, 1M steps",
        {
            "InvertedDoublePendulum-v5": 9258.0,
            "Reacher-v5": -6.7,
            "Swimmer-v5": 36.6,
            "Hopper-v5": 1253.0,
            "Walker2d-v5": 1092.0,
            "HalfCheetah-v5": 1830.0,
        },
    ),
}
#: Between these lines of a page stand the tables
MARKS = "<!-- Written by `learning.py report`: begin -->", "<!-- Written by `learning.py report`: end -->"


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


def load(folder: Path, env_ids: list[str], algos: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """
    :param folder: Folder of the results
    :param env_ids: Environments
    :param algos: Algorithms
    :return: One row per run with its outcome, and the rows of all runs, both with the columns ``env``, ``algo`` and ``seed``
    :raises ValueError: If a file is damaged, or the runs on an environment have different budgets
    """
    outcomes, curves = [], []
    budgets: dict[str, int] = {}
    for env_id in env_ids:
        for algo in algos:
            for path in sorted((folder / env_id).glob(f"{algo}-*.csv")):
                info, rows = read_run(path)
                if budgets.setdefault(env_id, info["budget"]) != info["budget"]:
                    raise ValueError(
                        f"{path} must have the budget of the runs beside it, {budgets[env_id]}, got {info['budget']}."
                    )
                key = {"env": env_id, "algo": algo, "seed": info["seed"]}
                last = rows.iloc[-1]
                what = {name: info[name] for name in ("budget", "entry", "hyperparameters")}
                outcomes.append({**key, **what, **last[["return_last_100", "eval_mean"]]})
                curves.append(rows.assign(**key))
    columns = ["env", "algo", "seed", "budget", "entry", "hyperparameters", "return_last_100", "eval_mean"]
    runs = pd.DataFrame(outcomes, columns=columns).sort_values("seed", kind="stable")
    return runs, pd.concat(curves, ignore_index=True) if curves else pd.DataFrame(columns=[*COLUMNS, "env", "algo", "seed"])


#: What a run was made with whose entry names no learning rate: the constructor's default at that time
FORMER_LEARNING_RATE = "lin_1.0e-2_1.0e-4"


def outdated(runs: pd.DataFrame) -> str:
    """
    :param runs: The runs
    :return: REINFORCE's runs whose hyperparameters are not those of today's entries
    """
    defaults = {name: parameter.default for name, parameter in inspect.signature(REINFORCE).parameters.items()}

    def essence(entry: dict[str, Any]) -> dict[str, Any]:
        chosen = {name: value for name, value in entry.items() if name not in defaults or value != defaults[name]}
        return chosen | {"n_timesteps": 0}

    names = []
    for (env_id, algo), group in runs[runs["algo"].map(zoo_algo) == OURS].groupby(["env", "algo"], sort=False):
        today = essence(find_entry(algo, env_id)[1])
        for seed, entry in zip(group["seed"], group["hyperparameters"], strict=True):
            if essence({"learning_rate": FORMER_LEARNING_RATE, **entry}) != today:
                names.append(f"{algo}-{seed} on {env_id}")
    return ", ".join(names) or "None."


def in_order(runs: pd.DataFrame, column: str, order: list[str]) -> list[str]:
    """
    :param runs: The runs
    :param column: One of its columns
    :param order: All values that it may have
    :return: Those that it has, in this order
    """
    present = set(runs[column])
    return [value for value in order if value in present]


def number(value: float) -> str:
    """
    :param value: A number
    :return: It with about four digits; a dash for none
    """
    if not math.isfinite(value):
        return "-"
    n_digits = math.floor(math.log10(max(abs(value), 0.1))) + 1
    return f"{value:,.{max(0, 3 - n_digits)}f}"


def spread(values: pd.Series) -> str:
    """
    :param values: One value per seed
    :return: Their mean, standard deviation and number
    """
    deviation = f" ± {number(values.std())}" if len(values) > 1 else ""
    return f"{number(values.mean())}{deviation} ({len(values)})" if len(values) else "-"


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """
    :param header: Names of the columns
    :param rows: The cells
    :return: A table in Markdown
    """
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, ["---"] + ["--:"] * (len(header) - 1), *rows])


def table(runs: pd.DataFrame, column: str, env_ids: list[str], algos: list[str]) -> str:
    """
    :param runs: The runs
    :param column: What to tell of them
    :param env_ids: Environments
    :param algos: Algorithms
    :return: A table of environments and algorithms: mean, standard deviation over the seeds and their number
    """
    groups = {key: group[column] for key, group in runs.groupby(["env", "algo"])}
    empty = pd.Series(dtype=float)
    rows = [[env_id, *(spread(groups.get((env_id, algo), empty)) for algo in algos)] for env_id in env_ids]
    return markdown(["environment", *(NAMES[algo] for algo in algos)], rows)


def entries(runs: pd.DataFrame, env_ids: list[str], algos: list[str]) -> str:
    """
    :param runs: The runs
    :param env_ids: Environments
    :param algos: Algorithms
    :return: A table of the entries that the runs took their hyperparameters from, with what they train in, and of the budgets
    """
    sources = [f"{entry}; {around(kwargs)}" for entry, kwargs in zip(runs["entry"], runs["hyperparameters"], strict=True)]
    found = runs.assign(entry=sources).groupby(["env", "algo"])["entry"].agg(lambda values: " / ".join(sorted(set(values))))
    budgets = runs.groupby("env")["budget"].first()
    rows = [[env_id, f"{budgets[env_id]:,}", *(str(found.get((env_id, algo), "-")) for algo in algos)] for env_id in env_ids]
    return markdown(["environment", "timesteps", *(NAMES[algo] for algo in algos)], rows)


def around(entry: dict[str, Any]) -> str:
    """
    :param entry: An entry of RL Zoo
    :return: How many environments it trains in, and what is normalized there
    """
    n_envs = entry.get("n_envs", 1)
    text = f"{n_envs} environment{'s' if n_envs > 1 else ''}"
    normalize = entry.get("normalize")
    if normalize:
        text += ", normalized" if normalize is True else f", normalized: `{normalize}`"
    return text


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


def beside_published(runs: pd.DataFrame, algo: str) -> str:
    """
    :param runs: The runs
    :param algo: A variant of REINFORCE
    :return: A table of its returns beside published ones
    """
    what, published = PUBLISHED[algo]
    rows = []
    for env_id, value in published.items():
        ours = runs[(runs["env"] == env_id) & (runs["algo"] == algo)]
        if len(ours):
            rows.append([env_id, spread(ours["eval_mean"]), spread(ours["return_last_100"]), number(value)])
    header = ["environment", f"{NAMES[algo]}, evaluation at the end", "training return", what]
    return markdown(header, rows) if rows else "No run has finished."


# === Aggregates ===


def score_matrices(
    runs: pd.DataFrame, column: str, random: dict[str, float], algos: list[str]
) -> tuple[dict[str, np.ndarray], list[str]]:
    """
    Scores that are 0 for random actions and 1 for the mean of PPO, on the tasks where both REINFORCE and PPO have runs, of
    the algorithms that have runs on all of them.

    :param runs: The runs
    :param column: What of them is the score
    :param random: The mean returns of random actions
    :param algos: Algorithms
    :return: By algorithm, scores of shape ``(n_seeds, n_tasks)``: as many seeds as each task has; and the tasks
    """
    scores = {key: group[column].dropna().to_numpy() for key, group in runs.groupby(["env", "algo"])}
    tasks = []
    for env_id in MUJOCO:
        complete = env_id in random and all(len(scores.get((env_id, algo), ())) for algo in (OURS, REFERENCE))
        # Where PPO learns nothing there is no scale
        if complete and scores[env_id, REFERENCE].mean() > random[env_id]:
            tasks.append(env_id)
    matrices = {}
    for algo in algos if tasks else []:
        n_seeds = min(len(scores.get((env_id, algo), ())) for env_id in tasks)
        if not n_seeds:
            continue
        columns = [
            (scores[env_id, algo][:n_seeds] - random[env_id]) / (scores[env_id, REFERENCE].mean() - random[env_id])
            for env_id in tasks
        ]
        matrices[algo] = np.stack(columns, axis=1)
    return matrices, tasks


def interval(point: np.ndarray, bounds: np.ndarray) -> str:
    """
    :param point: An estimate
    :param bounds: Those of its interval
    :return: Both
    """
    low, high = np.asarray(bounds).ravel()
    return f"{np.asarray(point).item():.2f} [{low:.2f}, {high:.2f}]"


def estimate(data: dict[str, Any], metric: Callable[..., float]) -> dict[str, str]:
    """
    :param data: Scores by name, or pairs of them
    :param metric: A function of them
    :return: Its values, with 95 % stratified bootstrap intervals over the seeds
    """
    from rliable import library

    if not data:
        return {}
    np.random.seed(0)  # rliable draws from NumPy's global generator, whatever random state it is given
    points, bounds = library.get_interval_estimates(data, lambda *scores: np.array([metric(*scores)]), reps=N_BOOTSTRAPS)
    single = {name for name, scores in data.items() if len(scores[1] if isinstance(scores, tuple) else scores) == 1}
    # There is no drawing of seeds from one
    return {name: f"{points[name].item():.2f}" if name in single else interval(points[name], bounds[name]) for name in data}


def aggregates(runs: pd.DataFrame, column: str, random: dict[str, float], algos: list[str]) -> str:
    """
    :param runs: The runs
    :param column: What of them is the score
    :param random: The mean returns of random actions
    :param algos: Algorithms
    :return: A table of the interquartile means of the normalized scores, and of the probabilities of improvement
    """
    try:
        from rliable import metrics
    except ModuleNotFoundError:
        return 'rliable is not installed: `pip install "sb3-reinforce[benchmark]"`.'
    matrices, tasks = score_matrices(runs, column, random, algos)
    if not tasks:
        return "No MuJoCo task has finished runs of REINFORCE and PPO, and the return of random actions (`random`)."
    means = estimate(matrices, metrics.aggregate_iqm)
    pairs = {algo: (matrices[OURS], matrices[algo]) for algo in matrices if algo != OURS}
    chances = estimate(pairs, metrics.probability_of_improvement)
    rows = [[NAMES[algo], str(len(matrices[algo])), means[algo], chances.get(algo, "-")] for algo in matrices]
    header = ["", "seeds", f"IQM ({NAMES[REFERENCE]} = 1, random = 0)", f"probability that {NAMES[OURS]} is better"]
    missing = [env_id for env_id in MUJOCO if env_id not in tasks]
    missing += [NAMES[algo] for algo in algos if algo not in matrices]
    left_out = f" Left out for want of runs: {', '.join(missing)}." if missing else ""
    return f"Over {len(tasks)} tasks: {', '.join(tasks)}.{left_out}\n\n{markdown(header, rows)}"


# === Time until a return ===


def first_reached(curve: pd.DataFrame, threshold: float) -> tuple[float, float]:
    """
    :param curve: The rows of a run
    :param threshold: A return
    :return: CPU seconds and timesteps until the mean training return first is that high; infinity if it never is
    """
    reached = curve[(curve["return_last_100"] >= threshold) & (curve["n_episodes"] >= MIN_EPISODES)]
    return (reached["cpu_seconds"].iloc[0], reached["timesteps"].iloc[0]) if len(reached) else (math.inf, math.inf)


def set_clocks(curves: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """
    Runs of different days are made comparable: the clock of each is set so that its first steps take as long as they took
    where the algorithms were measured in turn (``learning.py speed``). An environment with an algorithm that has not been
    measured so is left as it is.

    :param curves: The rows of the runs
    :param folder: Folder of the results
    :return: The rows, with other ``cpu_seconds``
    """
    measured = {}
    for (env_id, algo), _ in curves.groupby(["env", "algo"]):
        ends = [read_run(path, "speed")[1].iloc[-1] for path in (folder / "speed" / env_id).glob(f"{algo}-*.csv")]
        if ends:
            measured[env_id, algo] = np.median([end["timesteps"] / end["cpu_seconds"] for end in ends]), ends[0]["timesteps"]
    complete = {env_id for env_id, group in curves.groupby("env") if all((env_id, a) in measured for a in set(group["algo"]))}

    def scaled(run: pd.DataFrame) -> pd.Series:
        key = run["env"].iloc[0], run["algo"].iloc[0]
        if key[0] not in complete:
            return run["cpu_seconds"]
        speed, n_steps = measured[key]
        return run["cpu_seconds"] * (n_steps / speed / np.interp(n_steps, run["timesteps"], run["cpu_seconds"]))

    parts = [scaled(run) for _, run in curves.groupby(["env", "algo", "seed"], sort=False)]
    return curves.assign(cpu_seconds=pd.concat(parts)) if parts else curves


def times(runs: pd.DataFrame, curves: pd.DataFrame, random: dict[str, float], env_ids: list[str], algos: list[str]) -> str:
    """
    :param runs: The runs
    :param curves: Their rows
    :param random: The mean returns of random actions
    :param env_ids: Environments
    :param algos: Algorithms
    :return: A table of the medians over the seeds of the CPU seconds, and of the timesteps, until a return that both
        REINFORCE and the other algorithm reach on average. Without the environments where REINFORCE has a horizon, which
        makes its training returns those of other episodes
    """
    horizons = {env for env, kwargs in zip(runs["env"], runs["hyperparameters"], strict=True) if kwargs.get("horizon")}
    finals = runs.groupby(["env", "algo"])["return_last_100"].mean()
    by_run = {key: list(group.groupby("seed")) for key, group in curves.groupby(["env", "algo"])}
    rows = []
    for env_id in env_ids:
        for algo in algos:
            both = [(env_id, OURS), (env_id, algo)]
            if algo == OURS or env_id in horizons or env_id not in random or not all(key in by_run for key in both):
                continue
            threshold = random[env_id] + COMMON_SHARE * (min(finals[key] for key in both) - random[env_id])
            if threshold <= random[env_id]:
                continue
            medians = [np.median([first_reached(curve, threshold) for _, curve in by_run[key]], axis=0) for key in both]
            (our_time, our_steps), (their_time, their_steps) = medians
            ratio = their_time / our_time if math.isfinite(our_time) else math.nan
            cells = [threshold, our_time, their_time, ratio, our_steps, their_steps]
            rows.append([f"{env_id}, {NAMES[algo]}", *(number(float(cell)) for cell in cells)])
    header = ["", "return", "REINFORCE, CPU s", "other, CPU s", "other / REINFORCE", "REINFORCE, steps", "other, steps"]
    what = (
        f"The return is {COMMON_SHARE:.0%} of the way from random actions to the lower of the two mean training returns at "
        f"the end. Medians over the seeds of when the mean of the last 100 episodes ({MIN_EPISODES} or more) first is there; "
        "a dash where half of the runs or more never are."
    )
    return (
        f"{what}\n\n{markdown(header, rows)}"
        if rows
        else "No environment has runs of REINFORCE, another algorithm and random actions."
    )


def steps_to_solve(folder: Path) -> str:
    """
    :param folder: Folder of the results
    :return: A table of the steps and CPU seconds until the first of three consecutive evaluations that pass
    """
    rows = []
    for env_id, (_, enough) in SOLVE.items():
        for algo, name in NAMES.items():
            reached = []
            for path in sorted((folder / "solve" / env_id).glob(f"{algo}-*.csv")):
                _, run = read_run(path, "solve")
                passed = (run["eval_mean"] >= enough).astype(int)
                # 1 where this evaluation and the next ones pass
                starts = run[passed[::-1].rolling(SOLVE_IN_A_ROW).min()[::-1] == 1]
                reached.append((math.inf, math.inf) if starts.empty else starts[["timesteps", "cpu_seconds"]].iloc[0])
            if reached:
                steps, seconds = np.array(reached, dtype=float).T
                solved = f"{np.isfinite(steps).sum()} of {len(steps)}"
                figures = (np.median(steps), np.min(steps), np.max(steps), np.median(seconds))
                rows.append([f"{env_id}, {name}", number(enough), solved, *(number(float(figure)) for figure in figures)])
    header = ["", "return", "solved", "median steps", "least", "most", "median CPU s"]
    return f"CPU seconds as they were measured.\n\n{markdown(header, rows)}" if rows else "No run has finished."


# === Figures ===


def mean_curve(curves: pd.DataFrame, x: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """
    :param curves: The rows of the runs of an algorithm on an environment
    :param x: The column along which to go
    :return: Points along it that all runs have reached, and mean and standard deviation over the runs of the training return
    """
    runs = [run.dropna(subset="return_last_100") for _, run in curves.groupby("seed")]
    runs = [run for run in runs if len(run)]
    if not runs:
        return np.empty(0), np.empty(0), np.empty(0)
    start, end = max(run[x].iloc[0] for run in runs), min(run[x].iloc[-1] for run in runs)
    grid = np.geomspace(max(start, 1e-2), end, N_ROWS) if x == "cpu_seconds" else np.linspace(start, end, N_ROWS)
    values = np.stack([np.interp(grid, run[x], run["return_last_100"]) for run in runs])
    return grid, values.mean(axis=0), values.std(axis=0, ddof=1) if len(runs) > 1 else np.zeros(N_ROWS)


def draw(axis: Any, curves: pd.DataFrame, x: str, algos: list[str]) -> None:
    """
    :param axis: Where to draw
    :param curves: The rows of the runs on an environment
    :param x: The column along which to go
    :param algos: Algorithms
    """
    for algo in reversed(algos):  # REINFORCE on top
        ours = curves[curves["algo"] == algo]
        grid, mean, deviation = mean_curve(ours, x)
        if len(grid):
            axis.plot(grid, mean, color=COLOURS[algo], linewidth=1.6)
            axis.fill_between(grid, mean - deviation, mean + deviation, color=COLOURS[algo], alpha=0.18, linewidth=0)
    counts = curves.groupby("algo")["seed"].nunique()
    seeds = f"{counts.min()}" if counts.nunique() == 1 else f"{counts.min()}-{counts.max()}"
    axis.set_title(f"{curves['env'].iloc[0]}  ({seeds} seed{'s' if seeds != '1' else ''})", fontsize=9)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8)
    if x == "cpu_seconds":
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    else:
        axis.xaxis.set_major_formatter(
            lambda value, _: f"{value / 1e6:g}M" if value >= 1e6 else f"{value / 1e3:g}k" if value else "0"
        )


def figure(curves: pd.DataFrame, x: str, env_ids: list[str], algos: list[str], path: Path) -> None:
    """
    :param curves: The rows of the runs
    :param x: The column along which to go
    :param env_ids: Environments, at least one
    :param algos: Algorithms
    :param path: Where the figure goes
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    n_columns = min(4, len(env_ids))
    n_rows = -(-len(env_ids) // n_columns)
    size = (3.2 * n_columns, 2.6 * n_rows + 0.7)
    sheet, axes = plt.subplots(n_rows, n_columns, figsize=size, layout="constrained", squeeze=False)
    for axis in axes.flat[len(env_ids) :]:
        axis.set_axis_off()
    for axis, env_id in zip(axes.flat, env_ids, strict=False):
        draw(axis, curves[curves["env"] == env_id], x, algos)
    sheet.supxlabel("CPU seconds of training, one thread" if x == "cpu_seconds" else "timesteps", fontsize=10)
    sheet.supylabel("mean return of the last 100 training episodes", fontsize=10)
    drawn = in_order(curves[curves["env"].isin(env_ids)], "algo", algos)
    handles = [plt.Line2D([], [], color=COLOURS[algo], linewidth=2) for algo in drawn]
    names = [NAMES[algo] for algo in drawn]
    sheet.legend(handles, names, loc="outside upper center", ncols=len(drawn), frameon=False, fontsize=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.savefig(path, dpi=130)
    plt.close(sheet)


def around_marks(path: Path, marks: tuple[str, str] = MARKS) -> tuple[str, str]:
    """
    :param path: A page that holds the lines that say where the tables stand
    :param marks: Those lines
    :return: What is before the tables, and what is behind them, with the lines
    :raises ValueError: If they are not there
    """
    before, begin, rest = (path.read_text() if path.exists() else "").partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not (begin and end):
        raise ValueError(f"{path} must hold the lines {marks[0]!r} and {marks[1]!r}, between which the tables go.")
    return before + begin, end + after


def put_between(path: Path, text: str, marks: tuple[str, str] = MARKS) -> None:
    """
    :param path: A page, see :func:`around_marks`
    :param text: What is to stand between the lines
    :param marks: Those lines
    """
    before, after = around_marks(path, marks)
    path.write_text(f"{before}\n\n{text}\n\n{after}")


def tables(folder: Path, runs: pd.DataFrame, curves: pd.DataFrame, env_ids: list[str], algos: list[str]) -> dict[str, str]:
    """
    :param folder: Folder of the results
    :param runs: The runs
    :param curves: Their rows, with their clocks set
    :param env_ids: Environments
    :param algos: Algorithms
    :return: All tables, by title
    """
    random = read_random(folder)
    last = curves.groupby(["env", "algo", "seed"], as_index=False).last()
    speeds = last.assign(steps_per_second=last["timesteps"] / last["cpu_seconds"])
    return {
        "Mean training return of the last 100 episodes": table(runs, "return_last_100", env_ids, algos),
        "Evaluation at the end, deterministic": table(runs, "eval_mean", env_ids, algos),
        "MuJoCo tasks together: evaluation at the end": aggregates(runs, "eval_mean", random, algos),
        "MuJoCo tasks together: training return": aggregates(runs, "return_last_100", random, algos),
        "CPU time until a return that both reach": times(runs, curves, random, env_ids, algos),
        "Steps and CPU time until three deterministic evaluations in a row pass": steps_to_solve(folder),
        "Timesteps per CPU second of training": table(speeds, "steps_per_second", env_ids, algos),
        "Hyperparameters": entries(runs, env_ids, algos),
        "Runs of REINFORCE with other hyperparameters than today's": outdated(runs),
        "Pure Monte Carlo and the published REINFORCE": beside_published(runs, "reinforce_mc"),
        "The entries and the published A2C": beside_published(runs, "reinforce"),
    }


def report(folder: Path, docs: Path, env_ids: list[str], algos: list[str], page: Path | None = None) -> None:
    """
    :param folder: Folder of the results; ``report.md`` goes there
    :param docs: Folder of the figures
    :param env_ids: Environments
    :param algos: Algorithms
    :param page: A page to put the tables into, see :func:`put_between`
    :raises ValueError: If a file is damaged, the page has no place for the tables, or there are none for it
    """
    if page is not None:
        around_marks(page)
    runs, curves = load(folder, env_ids, algos)
    if page is not None and runs.empty:
        raise ValueError(f"{folder} must hold finished runs to put into {page}, which is left as it is.")
    curves = set_clocks(curves, folder)
    env_ids, algos = in_order(runs, "env", env_ids), in_order(runs, "algo", algos)
    sections = tables(folder, runs, curves, env_ids, algos)
    text = "\n\n".join(f"### {title}\n\n{body}" for title, body in sections.items())
    text = f"Mean ± standard deviation over the seeds (number of seeds).\n\n{text}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.md").write_text(f"{text}\n")
    print(text)
    if page is not None:
        put_between(page, text)
    mujoco = [env_id for env_id in env_ids if env_id in MUJOCO | FURTHER_MUJOCO]
    for name, group in (("classic", [env_id for env_id in env_ids if env_id not in mujoco]), ("mujoco", mujoco)):
        for suffix, x in (("", "timesteps"), ("_cpu", "cpu_seconds")):
            if group:
                path = docs / f"learning_{name}{suffix}.png"
                figure(curves, x, group, algos, path)
                print(f"wrote {path}")
