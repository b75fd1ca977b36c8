"""What stands at the front of the repository fits what is in it."""

import re
from pathlib import Path

import pytest
import yaml

from tests.helpers import ROOT

GITHUB = ROOT / ".github"
if not GITHUB.is_dir():
    pytest.skip("not a clone", allow_module_level=True)

WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))


@pytest.mark.parametrize("path", [*WORKFLOWS, *sorted((GITHUB / "ISSUE_TEMPLATE").glob("*.yml"))], ids=lambda path: path.name)
def test_it_is_yaml(path: Path) -> None:
    assert isinstance(yaml.safe_load(path.read_text()), dict)


def test_the_workflows_test_every_python_that_the_package_supports() -> None:
    classifiers = re.findall(r"Programming Language :: Python :: (3\.\d+)", (ROOT / "pyproject.toml").read_text())
    jobs = yaml.safe_load((GITHUB / "workflows" / "tests.yml").read_text())["jobs"]
    assert jobs["tests"]["strategy"]["matrix"]["python"] == classifiers and len(classifiers) > 3


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_the_workflows_call_targets_of_make(path: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    called = re.findall(r"run: make (\S+)", path.read_text())
    assert called and set(called) <= targets


def test_a_release_needs_no_password() -> None:
    upload = yaml.safe_load((GITHUB / "workflows" / "release.yml").read_text())["jobs"]["upload"]
    assert upload["permissions"] == {"id-token": "write"} and "password" not in str(upload) and "secrets" not in str(upload)


def test_pre_commit_runs_what_make_lint_and_make_type_run() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    assert [hook["id"] for hook in hooks] == ["ruff", "black", "mypy"]
    makefile = (ROOT / "Makefile").read_text()
    assert all(f"$(BIN)/{hook['id']}" in makefile for hook in hooks)


def test_the_citation_names_software_and_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["type"] == "software" and citation["license"] == "MIT"
    assert any(reference["authors"][0]["family-names"] == "Williams" for reference in citation["references"])
