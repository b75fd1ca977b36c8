"""
The tests on each Python with the newest and with the oldest versions that pyproject.toml allows. `make test-matrix` calls it.

Each case has a virtual environment of its own, which is deleted when the case is done. Settings come from the environment:

- PYTHONS: the interpreters
- VERSIONS: `newest`, `oldest` or both. The oldest versions are those of `oldest.py`, without the extras that need newer ones
- TORCH: what pip installs as PyTorch, with arguments of pip. For the oldest versions another one takes its place
- PIP: what installs instead of the environment's own pip, as `uv pip`

Arguments are passed to pytest. It needs nothing but Python.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
PACKAGES = ["stable-baselines3", "sb3-contrib", "gymnasium", "torch", "numpy"]
#: What the oldest versions are tested with. The other extras need newer versions than the package itself
EXTRAS = ["plot", "progress"]


class Row(NamedTuple):
    """
    One line of the table.

    :param python: The version of Python, or what was asked for where there is none
    :param versions: `newest` or `oldest`
    :param installed: The versions of PACKAGES
    :param outcome: What the tests came to
    :param passed: Whether all is well
    """

    python: str
    versions: str
    installed: list[str]
    outcome: str
    passed: bool


def read(python: Path | str, *args: str) -> str:
    """
    :param python: An interpreter
    :param args: Its arguments
    :return: What it printed
    """
    return subprocess.run([str(python), *args], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def make_environment(python: str, folder: Path) -> tuple[Path, list[str]]:
    """
    :param python: An interpreter
    :param folder: Where to make a virtual environment
    :return: The interpreter of this environment, and the command that installs into it
    """
    other = shlex.split(os.environ.get("PIP", ""))
    read(python, "-m", "venv", *(["--without-pip"] if other else []), str(folder))
    inside = folder / "bin" / "python"
    if other:
        os.environ["VIRTUAL_ENV"] = str(folder)
        return inside, [*other, "install", "--quiet"]
    return inside, [str(inside), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]


def install(python: Path, command: list[str], oldest: bool, torch: list[str]) -> None:
    """
    :param python: The interpreter of a virtual environment
    :param command: What installs into it
    :param oldest: Whether to install the oldest versions
    :param torch: What to install as PyTorch, with arguments
    """

    def run(*args: str) -> None:
        print("+", shlex.join([*command, *args]), flush=True)
        subprocess.run([*command, *args], cwd=ROOT, check=True)

    if not oldest:
        run(*torch)
        run("-e", ".[test]")
        return
    run("packaging", "tomli")  # of `oldest.py`
    constraints = python.parents[1] / "oldest.txt"
    constraints.write_text(read(python, ".ci/oldest.py", "constraints", *EXTRAS) + "\n", encoding="utf-8")
    tools = read(python, ".ci/oldest.py", "tools").splitlines()
    print(constraints.read_text(encoding="utf-8"), flush=True)
    run("-c", str(constraints), *(re.sub(r"^torch\b.*", "torch", word) for word in torch))
    run("-c", str(constraints), "-e", f".[{','.join(EXTRAS)}]", *tools)


def counts(report: Path) -> str:
    """
    :param report: What pytest wrote with `--junitxml`
    :return: How many tests passed, failed and were skipped
    """
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    total, failed, broken, skipped = (int(suite.attrib[name]) for name in ("tests", "failures", "errors", "skipped"))
    numbers = {"passed": total - failed - broken - skipped, "failed": failed, "errors": broken, "skipped": skipped}
    return ", ".join(f"{number} {word}" for word, number in numbers.items() if number)


def run_case(python: str, versions: str, folder: Path, pytest_args: list[str]) -> Row:
    """
    :param python: An interpreter
    :param versions: `newest` or `oldest`
    :param folder: An empty folder for whatever the case needs
    :param pytest_args: Arguments of pytest
    :return: The line of the table
    """
    print(f"\n== {python}, {versions} versions", flush=True)
    try:
        number = read(python, "-c", "import platform; print(platform.python_version())")
    except (OSError, subprocess.CalledProcessError):
        return Row(python, versions, [], "no such Python", False)
    try:
        inside, command = make_environment(python, folder / "venv")
        install(inside, command, versions == "oldest", shlex.split(os.environ.get("TORCH", "torch")))
    except subprocess.CalledProcessError as error:
        return Row(number, versions, [], f"not installed: {shlex.join(error.cmd)}", False)
    question = "import sys\nfrom importlib.metadata import version\nprint(*map(version, sys.argv[1:]))"
    installed = read(inside, "-c", question, *PACKAGES).split()
    report = folder / "report.xml"
    tests = [str(inside), "-m", "pytest", "-n", "auto", "--maxprocesses", "8", f"--junitxml={report}", *pytest_args]
    code = subprocess.run(tests, cwd=ROOT).returncode
    outcome = counts(report) if report.is_file() else f"pytest ended with {code}"
    return Row(number, versions, installed, outcome, code == 0)


def table(rows: list[Row]) -> str:
    """
    :param rows: The cases
    :return: A table of them in Markdown
    """
    lines = [["Python", "versions", *PACKAGES, "tests"], ["---"] * (len(PACKAGES) + 3)]
    for row in rows:
        lines.append([row.python, row.versions, *(row.installed or ["-"] * len(PACKAGES)), row.outcome])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(pytest_args: list[str]) -> int:
    """
    :param pytest_args: Arguments of pytest
    :return: The exit status: 1 if anything failed
    """
    pythons = os.environ.get("PYTHONS", "python3.10 python3.11 python3.12 python3.13").split()
    chosen = os.environ.get("VERSIONS", "newest oldest").split()
    if not pythons or not chosen or not set(chosen) <= {"newest", "oldest"}:
        sys.exit("PYTHONS names at least one interpreter, VERSIONS is `newest`, `oldest` or both.")
    rows = []
    for python in pythons:
        for versions in chosen:
            folder = Path(tempfile.mkdtemp(prefix="sb3-reinforce-matrix-"))
            try:
                rows.append(run_case(python, versions, folder, pytest_args))
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    print(f"\n{table(rows)}")
    return 0 if all(row.passed for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
