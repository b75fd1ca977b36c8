"""What the benchmarks share: one thread, arguments, and the tables of a page."""

import argparse
import fcntl
import math
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO, Any

for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"  # before NumPy and PyTorch are imported

_main = sys.modules["__main__"]
if getattr(_main, "__spec__", None) is None and Path(getattr(_main, "__file__", "")).resolve().parent == Path(__file__).parent:
    # As a file it has imported NumPy already, with as many threads as there are cores: start again
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    os.execv(sys.executable, [sys.executable, "-m", f"benchmarks.{Path(_main.__file__).stem}", *sys.argv[1:]])

#: Plain REINFORCE, which speed and variance are measured with: Adam's steps, and a critic in raw units
PLAIN: dict[str, Any] = {
    "natural_gradient": False,
    "normalize_returns": False,
    "ent_coef": 0.0,
    "learning_rate": 3.5e-3,
    "n_steps": 512,
    "batch_size": 256,
}
#: The folder of the project
ROOT = Path(__file__).parents[1]


class BusyError(RuntimeError):
    """Another process is making the same file."""


def unfinished(path: Path) -> Path:
    """
    :param path: A file
    :return: The file that it is until it is whole
    """
    return path.with_name(path.name + ".partial")


@contextmanager
def claimed(path: Path) -> Iterator[IO[str] | None]:
    """
    Make a file that is there as a whole or not at all, with one process at it.

    :param path: The file
    :return: An empty file that takes its place at the end; ``None`` if the file is there
    :raises BusyError: If another process is at it
    """
    partial = unfinished(path)
    partial.parent.mkdir(parents=True, exist_ok=True)
    with open(partial, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(f"Another process is at {path}.") from error
        if path.exists():  # since a moment ago
            partial.unlink(missing_ok=True)
            yield None
            return
        file.truncate(0)
        yield file
        partial.rename(path)


def made_once(path: Path, make: Callable[[IO[str]], str]) -> str:
    """
    :param path: A file
    :param make: Writes it, if it is not there, and says what it came to
    :return: What it came to, or why it was not made
    """
    try:
        with claimed(path) as file:
            return "finished before" if file is None else make(file)
    except BusyError:
        return "another process is at it"


def stop(number: int, _: FrameType | None) -> None:
    """Have the children ended when the process is told to end."""
    sys.exit(128 + number)


def natural(text: str) -> int:
    """
    :param text: A number as it is written
    :return: That number
    :raises argparse.ArgumentTypeError: If it is negative, or no integer
    """
    if not re.fullmatch(r"\d+", text):
        raise argparse.ArgumentTypeError(f"must be an integer of at least 0, got {text!r}")
    return int(text)


def positive(text: str) -> int:
    """
    :param text: A number as it is written
    :return: That number
    :raises argparse.ArgumentTypeError: If it is not positive, or no integer
    """
    if not re.fullmatch(r"0*[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1, got {text!r}")
    return int(text)


def number(value: float) -> str:
    """
    :param value: A number
    :return: It with about four digits; a dash for none
    """
    if not math.isfinite(value):
        return "-"
    n_digits = math.floor(math.log10(max(abs(value), 0.1))) + 1
    return f"{value:,.{max(0, 3 - n_digits)}f}"


def spread(values: Any) -> str:
    """
    :param values: One value per seed, a series of pandas
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


def around_marks(path: Path, marks: tuple[str, str]) -> tuple[str, str]:
    """
    :param path: A page that holds the lines that say where the tables stand
    :param marks: Those lines
    :return: What is before the tables, and what is after them, with the lines
    :raises ValueError: If they are not there
    """
    before, begin, rest = (path.read_text() if path.exists() else "").partition(marks[0])
    _, end, after = rest.partition(marks[1])
    if not (begin and end):
        raise ValueError(f"{path} must hold the lines {marks[0]!r} and {marks[1]!r}, between which the tables go.")
    return before + begin, end + after


def put_between(path: Path, text: str, marks: tuple[str, str]) -> None:
    """
    :param path: A page, see :func:`around_marks`
    :param text: What is to stand between the lines
    :param marks: Those lines
    """
    before, after = around_marks(path, marks)
    path.write_text(f"{before}\n\n{text}\n\n{after}")
