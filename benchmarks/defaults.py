"""
What does one line learn on tasks that nobody tuned?

    python -m benchmarks.defaults run [--workers 2] [--algos ...] [--tasks ...] [--steps ...]    # goes on where it was stopped
    python -m benchmarks.defaults change [--workers 2] [--changes ...] [--tasks ...] [--envs 1]  # one change at a time
    python -m benchmarks.defaults report                                                         # the tables
    python -m benchmarks.defaults report --page BENCHMARKS.md --changes-page docs/how_to_choose.md --front-page README.md

Each run is a CSV of its own in ``results/defaults``. The seeds of the report start at 0; those that defaults are chosen
with start at 100.
"""

import argparse
import signal
import sys
from pathlib import Path

from benchmarks.common import around_marks, positive, put_between, stop  # first: one thread
from benchmarks.suite.many import run_all
from benchmarks.suite.one_run import RANDOM
from benchmarks.suite.plan import CHANGES, N_MORE_STEPS, N_STEPS, RESULTS, changed, reported
from benchmarks.suite.report import ALGOS, changes, front, report
from benchmarks.suite.tasks import TASKS

MARKS = "<!-- Written by `benchmarks.defaults report`: begin -->", "<!-- Written by `benchmarks.defaults report`: end -->"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    runs = commands.add_parser("run", help="the runs of the report")
    runs.add_argument("--algos", nargs="+", choices=(RANDOM, *ALGOS), default=[RANDOM, *ALGOS], metavar="ALGO")
    runs.add_argument("--steps", nargs="+", type=int, choices=(N_STEPS, N_MORE_STEPS), default=[N_STEPS, N_MORE_STEPS])
    single = commands.add_parser("change", help="runs with one change of the defaults at a time")
    single.add_argument(
        "--changes", nargs="+", choices=CHANGES, default=list(CHANGES), metavar="CHANGE", help=", ".join(CHANGES)
    )
    single.add_argument("--envs", type=positive, default=1, help="number of environments")
    tables = commands.add_parser("report", help="the tables")
    for command in (runs, single, tables):
        command.add_argument("--folder", type=Path, default=RESULTS, help="where the results lie")
    for command in (runs, single):
        command.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="TASK", help=", ".join(TASKS))
        command.add_argument("--workers", type=positive, default=2, help="number of runs at a time")
    for name, what in (("page", "all of them"), ("changes-page", "that of the changes"), ("front-page", "the short one")):
        tables.add_argument(f"--{name}", type=Path, help=f"page to put the tables into: {what}")
    args = parser.parse_args()
    if args.command == "report":
        pages = ((args.page, report), (args.changes_page, changes), (args.front_page, front))
        for page, _ in pages:
            if page is not None:
                around_marks(page, MARKS)
        for page, make in pages:
            text = make(args.folder)
            print(text, end="\n\n")
            if page is not None:
                put_between(page, text, MARKS)
        return
    signal.signal(signal.SIGTERM, stop)
    if args.command == "change":
        todo = changed(args.changes, args.envs, args.folder)
    else:
        steps = {0, *args.steps}
        todo = [run for run in reported(args.folder) if run.algo in args.algos and run.n_steps in steps]
    sys.exit(not run_all([run for run in todo if run.task in args.tasks], args.workers))


if __name__ == "__main__":
    main()
