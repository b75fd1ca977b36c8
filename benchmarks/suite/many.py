"""Many runs, a few at a time."""

from multiprocessing import get_context

from benchmarks.suite.one_run import Run, train


def try_to_train(run: Run) -> tuple[Run, str, bool]:
    """
    :param run: What to run
    :return: The run, what it came to, and whether it has succeeded
    """
    try:
        return run, train(run), True
    except Exception as error:
        return run, f"FAILED: {error!r}", False


def run_all(runs: list[Run], n_workers: int) -> bool:
    """
    :param runs: What to run
    :param n_workers: How many at a time
    :return: Whether all have succeeded
    """
    todo = [run for run in runs if not run.path.exists()]
    print(f"{len(runs)} runs, {len(runs) - len(todo)} of them finished before", flush=True)
    all_succeeded = True
    with get_context("spawn").Pool(n_workers) as pool:  # ends them, however this is left
        for i, (run, outcome, succeeded) in enumerate(pool.imap_unordered(try_to_train, todo), start=1):
            all_succeeded = all_succeeded and succeeded
            print(f"{i} of {len(todo)}: {run}: {outcome}", flush=True)
    return all_succeeded
