"""The oldest versions, with which `make test-matrix` runs these tests, are the lower bounds of the project file."""

import importlib.util
from types import ModuleType
from typing import Any

import pytest

from tests.helpers import ROOT


def load(name: str) -> ModuleType:
    """
    :param name: A script of the folder `.ci`
    :return: It as a module
    """
    spec = importlib.util.spec_from_file_location(f"ci_{name}", ROOT / ".ci" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ci, matrix = load("oldest"), load("matrix")
OURS: dict[str, Any] = ci.tomllib.loads(ci.PROJECT.read_text(encoding="utf-8"))["project"]
PYTHONS = [line.split(":: ")[-1] for line in OURS["classifiers"] if line.startswith("Programming Language :: Python :: 3.")]


def project(*dependencies: str, **extras: list[str]) -> dict[str, Any]:
    return {"name": "My_Project", "dependencies": list(dependencies), "optional-dependencies": extras}


def test_a_lower_bound_becomes_the_version() -> None:
    assert ci.oldest(project("some_thing>=2.7,<3", "other<4,>=1.2.3"), []) == ["other==1.2.3", "some-thing==2.7"]


def test_what_has_no_lower_bound_is_left_to_pip() -> None:
    assert ci.oldest(project("free", "capped<3", "not-this!=1.2"), []) == []


def test_the_highest_of_several_bounds_counts() -> None:
    described = project("a>=1.9", more=["a>=1.10", "my-project[most]"], most=["a[x]>=1.2", "b>=3"])
    assert ci.oldest(described, []) == ["a==1.9"]
    assert ci.oldest(described, ["more"]) == ["a==1.10", "b==3"]


def test_extras_that_name_each_other_end() -> None:
    described = project(one=["My.Project[two]"], two=["my_project[one]", "a>=1"])
    assert ci.oldest(described, ["one"]) == ["a==1"]


@pytest.mark.parametrize(("python", "version"), [("3.9", "1"), ("3.10", "2"), ("3.13", "2")])
def test_a_bound_counts_for_the_python_that_it_is_for(python: str, version: str) -> None:
    described = project("a>=1", "a>=2; python_version >= '3.10'", "b>=1; python_version < '3'")
    assert ci.oldest(described, [], python) == [f"a=={version}"]


def test_tools_are_what_the_tests_need_besides_extras() -> None:
    assert ci.tools(project(test=["my-project[plot]", "pytest", "x; python_version < '3'"])) == [
        "pytest",
        "x; python_version < '3'",
    ]


@pytest.mark.parametrize("python", PYTHONS)
def test_every_run_time_dependency_has_an_oldest_version(python: str) -> None:
    names = [line.split("==")[0] for line in ci.oldest(OURS, [], python)]
    assert sorted(names) == sorted(matrix.PACKAGES)


def test_the_matrix_runs_every_python_that_the_project_names() -> None:
    assert len(PYTHONS) >= 4
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"PYTHONS ?= {' '.join('python' + python for python in PYTHONS)}\n" in makefile
    workflow = (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")
    assert f"python: [{', '.join(f'{chr(34)}{python}{chr(34)}' for python in PYTHONS)}]" in workflow
