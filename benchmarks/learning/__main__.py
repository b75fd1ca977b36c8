"""
How well does REINFORCE learn? Beside SB3's A2C and PPO and sb3-contrib's TRPO, with the same budgets and seeds.

REINFORCE takes its entries from ``zoo_configs/reinforce.yml``, the others RL Zoo's own: that of the environment itself,
else of its nearest older version, else SB3's defaults with ``VecNormalize``. Nothing of an entry is changed but its budget,
which its schedules follow: number of environments and wrappers (``VecNormalize``) are the entry's. ``reinforce_mc`` is
REINFORCE with whole episodes and ``gae_lambda=1``, pure Monte Carlo (except for the critic's value of the last state where a
time limit cuts an episode); its entry is REINFORCE's, overridden by what ``learning_mc.yml`` beside this file has for the
environment. ``ppo_cleanrl`` is PPO with CleanRL's hyperparameters, ``trpo_narrow`` TRPO with a small first deviation of the
actions; these, and PPO's for MinAtar's games, are in ``learning_others.yml``. ``Delayed...`` environments pay the whole
return at the end, and have a discount of 1 for every algorithm: with less, the longer an episode the less its end would
count.

    python -m benchmarks.learning run [--algos ...] [--envs ...] [--seeds 0 1 ...] [--workers 2] [--folder DIR]
    python -m benchmarks.learning solve             # steps until deterministic evaluations pass, see SOLVE
    python -m benchmarks.learning speed             # the first steps of each run, all algorithms in turn
    python -m benchmarks.learning long              # three million steps of REINFORCE on the largest tasks
    python -m benchmarks.learning random            # the returns of random actions
    python -m benchmarks.learning report            # tables and figures of whatever has finished

Each run is a process of its own, and leaves one file, ``FOLDER/ENV/ALGO-SEED.csv``, that
``pandas.read_csv(path, comment="#")`` reads. Its first line is a comment that holds JSON: what was run, with which
hyperparameters and versions. About 200 rows follow:

- ``timesteps``, ``wall_seconds``, ``cpu_seconds`` (of the process, its children included) since ``learn()`` began,
- ``n_episodes`` finished so far, and ``return_last_100``, the mean return of the last 100 episodes as the algorithm counts
  them (REINFORCE leaves out those that it does not record),
- ``eval_mean``, ``eval_std``: in the last row only, of 20 deterministic episodes after training, raw rewards, with the
  statistics of ``VecNormalize`` frozen. The weights are the last ones, never the best.

The file is called ``.csv.partial`` until that last row is written. Runs that are finished are skipped, unfinished ones start
again, so a benchmark can be stopped at any time and resumed. A run that fails leaves its error in ``ALGO-SEED.log``.

The runs take days, and a machine is not equally fast on all of them. ``speed`` repeats the first steps of the runs with seeds
0 to 2, one process at a time and the algorithms of an environment one after the other; the report sets the clock of each
run by it.
"""

import argparse
import signal
import sys
from pathlib import Path

from benchmarks.common import ROOT, natural, positive, stop
from benchmarks.learning.one_run import train
from benchmarks.learning.plan import (
    ALGOS,
    BUDGETS,
    CLASSIC,
    LONG,
    MUJOCO,
    OURS,
    RESULTS,
    SOLVE,
    SOLVERS,
    SPEED_SEEDS,
    Run,
    plan,
)
from benchmarks.learning.random_actions import measure_random
from benchmarks.learning.runner import Runner


def parse() -> argparse.Namespace:
    """
    :return: The command line's arguments
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="train")
    run.add_argument("--algos", nargs="+", choices=ALGOS, help="algorithms (default: all, but reinforce_mc on MuJoCo alone)")
    solve = commands.add_parser("solve", help="measure the steps until three evaluations in a row pass")
    solve.add_argument("--algos", nargs="+", choices=ALGOS, default=list(SOLVERS), help="algorithms")
    long = commands.add_parser("long", help="train three times as long")
    long.add_argument("--algos", nargs="+", choices=ALGOS, default=[OURS], help="algorithms")
    for command in (run, solve, long):
        command.add_argument("--seeds", nargs="+", type=natural, help="seeds (default: as many as each environment gets)")
        command.add_argument("--workers", type=positive, default=2, help="number of runs at a time")
        command.add_argument("--budget-factor", type=float, default=1.0, help=argparse.SUPPRESS)
    speed = commands.add_parser("speed", help="measure the CPU time of the first steps, one process at a time")
    speed.add_argument("--algos", nargs="+", choices=ALGOS, help="algorithms (default: as for `run`)")
    commands.add_parser("random", help="measure the returns of random actions")
    commands.add_parser("report", help="tables and figures of the runs that have finished")
    for name, command in commands.choices.items():
        known, envs = {"solve": (list(SOLVE), list(SOLVE)), "long": (list(LONG), list(LONG))}.get(
            name, (list(BUDGETS), [*CLASSIC, *MUJOCO])
        )
        envs = known if name == "report" else envs
        command.add_argument("--envs", nargs="+", choices=known, default=envs, metavar="ENV", help=", ".join(known))
        command.add_argument("--folder", type=Path, default=RESULTS / "learning", help="folder of the results")
    commands.choices["report"].add_argument("--algos", nargs="+", choices=ALGOS, default=list(ALGOS), help="algorithms")
    commands.choices["report"].add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of the figures")
    commands.choices["report"].add_argument("--page", type=Path, help="page to put the tables into (BENCHMARKS.md)")
    one = commands.add_parser("one")
    for argument, kind in {"algo": str, "env_id": str, "seed": int, "budget": int, "folder": Path, "kind": str}.items():
        one.add_argument(argument, type=kind)
    return parser.parse_args()


def main() -> None:
    args = parse()
    if args.command == "one":
        train(Run(args.algo, args.env_id, args.seed, args.budget, args.folder, args.kind))
    elif args.command == "random":
        measure_random(args.envs, args.folder / "random.csv")
    elif args.command == "report":
        from benchmarks.learning.report import report  # with pandas and matplotlib

        report(args.folder, args.docs, args.envs, args.algos, args.page)
    else:
        signal.signal(signal.SIGTERM, stop)
        if args.command == "speed":
            runs, n_workers = plan(args.algos, args.envs, SPEED_SEEDS, args.folder, kind="speed"), 1
        else:
            kind = "learning" if args.command == "run" else args.command
            runs = plan(args.algos, args.envs, args.seeds, args.folder, args.budget_factor, kind)
            n_workers = args.workers
        sys.exit(not Runner(runs, n_workers).run())


if __name__ == "__main__":
    main()
