"""Tables and figures of the runs that have finished.

Nothing is left out and nothing is made up: where there are fewer seeds, the tables say how many there are.
"""

from pathlib import Path
from typing import Any

import pandas as pd
from scipy import stats

from benchmarks.common import around_marks, markdown, number, put_between, spread
from benchmarks.learning.aggregates import aggregates, without_one
from benchmarks.learning.entries import is_of_today, read_yaml, zoo_algo
from benchmarks.learning.figures import figure
from benchmarks.learning.plan import LONG, MONTE_CARLO, MUJOCO, OURS, PICTURES, counted
from benchmarks.learning.results import NAMES, in_order, load, read_random
from benchmarks.learning.times import set_clocks, steps_to_solve, times

#: The others that the comparison has
COMPARED = ("ppo", "a2c", "trpo")
PUBLISHED = Path(__file__).with_name("published.yml")
#: Between these lines of a page stands the comparison with each of the others
SUMMARY_MARKS = (
    "<!-- Written by `benchmarks.learning report`, the comparison: begin -->",
    "<!-- Written by `benchmarks.learning report`, the comparison: end -->",
)
#: Between these lines of a page stand the tables
MARKS = "<!-- Written by `benchmarks.learning report`: begin -->", "<!-- Written by `benchmarks.learning report`: end -->"


def outdated(runs: pd.DataFrame) -> str:
    """
    :param runs: The runs
    :return: REINFORCE's runs whose hyperparameters are not those of today's entries
    """
    names = []
    for (env_id, algo), group in runs[runs["algo"].map(zoo_algo) == OURS].groupby(["env", "algo"], sort=False):
        for seed, entry, version in zip(group["seed"], group["hyperparameters"], group["version"], strict=True):
            if not is_of_today(entry, algo, env_id, version):
                names.append(f"{algo}-{seed} on {env_id}")
    return ", ".join(names) or "None."


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


def beside_published(columns: dict[str, tuple[str, pd.DataFrame]], steps: str) -> str:
    """
    :param columns: By the heading of a column, an algorithm of ours and the runs that its final evaluations are taken from
    :param steps: Published results of runs of this length
    :return: A table of our returns beside published ones, which are bold where they are higher than all of ours
    """
    published = {name: entry for name, entry in read_yaml(PUBLISHED).items() if entry["steps"] == steps}
    groups = [
        {env: group["eval_mean"] for env, group in of[of["algo"] == algo].groupby("env")} for algo, of in columns.values()
    ]
    empty = pd.Series(dtype=float)
    rows = []
    for env_id in MUJOCO:
        theirs = [entry["returns"].get(env_id) for entry in published.values()]
        ours = [group.get(env_id, empty) for group in groups]
        if any(map(len, ours)) and any(value is not None for value in theirs):
            best = max(group.mean() for group in ours if len(group))
            cells = ["-" if value is None else f"**{number(value)}**" if value > best else number(value) for value in theirs]
            rows.append([env_id, *map(spread, ours), *cells])
    if not rows:
        return "No run has finished."
    sources = "\n".join(f"- {source}." for source in dict.fromkeys(entry["from"] for entry in published.values()))
    return (
        f"{markdown(['environment', *columns, *published], rows)}\n\nBold: higher than ours. The published ones:\n\n{sources}"
    )


def comparison(runs: pd.DataFrame, random: dict[str, float], env_ids: list[str]) -> str:
    """
    Where REINFORCE is ahead, level or behind. It is level where the interval of :func:`margin` around the difference of the
    means has zero in it, and the question is open where there is one seed of either.

    :param runs: The runs
    :param random: The mean returns of random actions
    :param env_ids: Environments
    :return: A table of environments and other algorithms: the difference of the final evaluations, relative to what the other
        has learned
    """
    groups = {key: group["eval_mean"].dropna() for key, group in runs.groupby(["env", "algo"])}
    empty = pd.Series(dtype=float)
    rows = []
    for env_id in env_ids:
        ours = groups.get((env_id, OURS), empty)
        others = [counted(algo, env_id, groups) for algo in COMPARED]
        if len(ours) and any(key in groups for key in others):
            verdicts = [verdict(ours, groups.get(key, empty), random.get(env_id)) for key in others]
            names = ["" if algo in COMPARED else f" ({NAMES[algo]})" for _, algo in others]
            rows.append([env_id, spread(ours), *(text + name for text, name in zip(verdicts, names, strict=True))])
    return markdown(["environment", NAMES[OURS], *(f"beside {NAMES[algo]}" for algo in COMPARED)], rows)


def verdict(ours: pd.Series, theirs: pd.Series, random: float | None) -> str:
    """
    :param ours: One value per seed
    :param theirs: The same of the other
    :param random: What random actions come to
    :return: Ahead, level or behind, and by how much
    """
    if not len(theirs):
        return "-"
    difference = ours.mean() - theirs.mean()
    if min(len(ours), len(theirs)) == 1:
        return f"open: {number(theirs.mean())} (one seed)"
    if not abs(difference) > margin(ours, theirs):
        return f"level: {number(theirs.mean())}"
    word = "**ahead**" if difference > 0 else "*behind*"
    learned = float("nan") if random is None else theirs.mean() - random
    if not learned > 0:
        return f"{word}: {number(theirs.mean())}, which has learned nothing"
    share = difference / learned
    by = f"{share:+.0%}" if share < 1 else f"{min(1 + share, 100):.0f} times" + (" or more" if share >= 99 else "")
    return f"{word}: {number(theirs.mean())}, {by}"


def margin(ours: pd.Series, theirs: pd.Series) -> float:
    """
    :param ours: One value per seed, two of them or more
    :param theirs: The same of the other
    :return: Half the width of the 95 % interval of the difference of their means, after Welch (1947): with Student's
        distribution, and the variances of the two not taken to be equal
    """
    errors = [group.var() / len(group) for group in (ours, theirs)]
    if not sum(errors):
        return 0.0
    freedom = sum(errors) ** 2 / sum(error**2 / (len(group) - 1) for error, group in zip(errors, (ours, theirs), strict=True))
    return float(stats.t.ppf(0.975, freedom) * sum(errors) ** 0.5)


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
    long, _ = load(folder / "long", list(LONG), [OURS], "long")
    last = curves.groupby(["env", "algo", "seed"], as_index=False).last()
    speeds = last.assign(steps_per_second=last["timesteps"] / last["cpu_seconds"])
    return {
        "Mean training return of the last 100 episodes": table(runs, "return_last_100", env_ids, algos),
        "Evaluation at the end, deterministic": table(runs, "eval_mean", env_ids, algos),
        "MuJoCo tasks together: evaluation at the end": aggregates(runs, "eval_mean", random, algos),
        "MuJoCo tasks together: training return": aggregates(runs, "return_last_100", random, algos),
        "MuJoCo tasks together: without one of them": without_one(runs, random),
        "CPU time until a return that both reach": times(runs, curves, random, env_ids, algos),
        "Steps and CPU time until three deterministic evaluations in a row pass": steps_to_solve(folder),
        "Timesteps per CPU second of training": table(speeds, "steps_per_second", env_ids, algos),
        "Hyperparameters": entries(runs, env_ids, algos),
        "Runs of REINFORCE with other hyperparameters than today's": outdated(runs),
        "Beside published results of about as many steps": beside_published(
            {NAMES[OURS]: (OURS, runs), NAMES[MONTE_CARLO]: (MONTE_CARLO, runs)}, "1M"
        ),
        "Beside published results of more steps": beside_published(
            {
                f"{NAMES[OURS]}, as above": (OURS, runs),
                f"{NAMES[MONTE_CARLO]}, as above": (MONTE_CARLO, runs),
                f"{NAMES[OURS]}, 3M": (OURS, long),
            },
            "10M",
        ),
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
        around_marks(page, MARKS)
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
        put_between(page, text, MARKS)
        if SUMMARY_MARKS[0] in page.read_text():
            put_between(page, comparison(runs, read_random(folder), env_ids), SUMMARY_MARKS)
    sheets: dict[str, list[str]] = {"classic": [], "mujoco": [], "pictures": []}
    for env_id in env_ids:
        sheets["mujoco" if env_id in MUJOCO else "pictures" if env_id in PICTURES else "classic"].append(env_id)
    for name, group in sheets.items():
        for suffix, x in (("", "timesteps"), ("_cpu", "cpu_seconds")):
            if group:
                path = docs / f"learning_{name}{suffix}.png"
                figure(curves, x, group, algos, path)
                print(f"wrote {path}")
