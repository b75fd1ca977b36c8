"""
The code of README and documentation runs: each page from its top to its end, on small budgets.

Shell commands install packages, or train for hours. They are compared with what there is: the target of make, the module, the
example. Where they are run on a small budget is said in `RUN_ELSEWHERE`.
"""

import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from stable_baselines3 import A2C

from sb3_reinforce import REINFORCE
from sb3_reinforce.zoo.cli import VERBS
from tests.helpers import ROOT

PAGES = sorted(
    path
    for folder in (ROOT, ROOT / "docs")
    for path in (folder.glob("*.md") if folder == ROOT else folder.rglob("*.md"))
    if "_build" not in path.parts
)
#: The largest number of timesteps in a call of `learn`
BUDGET = 600
#: Commands that are not run from the page: where they are
RUN_ELSEWHERE = {
    "pip install": "tests/package/test_package.py installs the wheel; other packages would need an index",
    "make": "the targets are checked; they make the environment that the tests run in",
    "pre-commit": "needs a network",
    ".ci/run": "runs these tests",
    "python -m sb3_reinforce.zoo": "tests/zoo",
    "python -m benchmarks": "tests/benchmarks",
    "python benchmarks/": "tests/benchmarks",
    "python examples/": "tests/package/test_examples.py",
    "torchrun": "tests/distributed",
}
#: Commands that are cheap, and run
RUN = ("python -m sb3_reinforce",)


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def with_small_budgets(code: str) -> str:
    """The same code, in which no call of `learn` takes more than `BUDGET` timesteps."""

    def smaller(match: re.Match[str]) -> str:
        number, following = match.groups()
        if number is not None:
            return f".learn({min(int(number), BUDGET)}{following}"
        return f".learn({BUDGET}{'' if following == ')' else ', '}{following}"

    return re.sub(r"\.learn\((\d[\d_]*)?(.)", smaller, code)


def commands(page: Path) -> Iterator[str]:
    """The shell commands of a page, without comments."""
    for block in blocks(page, "bash"):
        for line in block.replace("\\\n", " ").splitlines():
            for command in re.sub(r"\s+#.*|^#.*", "", line).split("&&"):
                for single in command.split(";"):
                    if single.strip():
                        yield " ".join(single.split())


WITH_CODE = [page for page in PAGES if blocks(page, "python")]
COMMANDS = sorted({command for page in PAGES for command in commands(page)})


def test_budgets_are_made_smaller() -> None:
    assert with_small_budgets("m.learn()") == "m.learn(600)"
    assert with_small_budgets("m.learn(callback=c)") == "m.learn(600, callback=c)"
    assert with_small_budgets("m.learn(100_000, callback=c)") == "m.learn(600, callback=c)"
    assert with_small_budgets("m.learn(64).save()") == "m.learn(64).save()"


def test_the_pages_are_found() -> None:
    names = {name_of(page) for page in WITH_CODE}
    assert {"README.md", "docs/getting_started.md", "docs/proof.md", "docs/guides/masks_and_memory.md"} <= names
    assert len(names) > 15


@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
@pytest.mark.filterwarnings("error::DeprecationWarning:sb3_reinforce")
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = with_small_budgets("\n".join(blocks(page, "python")))
    if "tensorboard_log" in program and find_spec("tensorboard") is None:
        pytest.skip("TensorBoard is not installed")
    monkeypatch.chdir(tmp_path)  # pages write files
    monkeypatch.setenv("MPLBACKEND", "Agg")
    # In this process, as to import everything anew takes longer than most pages do
    exec(compile(program, name_of(page), "exec"), {"__name__": "page"})


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_of_a_page_exists(command: str) -> None:
    known = [start for start in (*RUN_ELSEWHERE, *RUN) if f"{command} ".startswith((f"{start} ", f"{start}.", start + "/"))]
    assert known or command.startswith(tuple(start for start in RUN_ELSEWHERE if start.endswith("/"))), "say where it is run"
    words = command.split()
    if words[0] == "make":
        target = next(word for word in words[1:] if "=" not in word)
        assert re.search(rf"^{target}:.*##", (ROOT / "Makefile").read_text(), re.MULTILINE), f"no target {target}"
    elif words[:2] == ["python", "-m"]:
        path = ROOT.joinpath(*words[2].split("."))
        assert path.with_suffix(".py").is_file() or (path / "__main__.py").is_file(), f"no module {words[2]}"
        if words[2] == "sb3_reinforce.zoo":
            assert words[3] in (*VERBS, "VERB")
    for word in words:
        if word.startswith(("examples/", "benchmarks/")) and word.endswith(".py"):
            assert (ROOT / word).is_file(), f"no file {word}"


@pytest.mark.parametrize("command", [command for command in COMMANDS if command in RUN])
def test_a_cheap_command_of_a_page_runs(command: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, *command.split()[1:]], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and done.stdout, done.stderr


def test_the_page_of_arguments_has_all_of_them_with_their_defaults() -> None:
    rows = re.findall(r"^\| (`.*?`) \| (.*?) \|", (ROOT / "docs" / "arguments.md").read_text(encoding="utf-8"), re.MULTILINE)
    shown = {
        name: default.strip("`")
        for names, defaults in rows
        for name, default in zip(re.findall(r"`(\w+)`", names), defaults.split(", "), strict=True)
    }
    ours = inspect.signature(REINFORCE).parameters
    new = [name for name in ours if name not in inspect.signature(A2C).parameters or name in ("gamma", "gae_lambda")]
    assert set(new) <= set(shown) <= set(ours)
    for name, default in shown.items():
        value = ours[name].default
        assert default in (str(value), f'"{value}"'), name


def test_the_front_page_can_be_read_in_four_minutes() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 130
