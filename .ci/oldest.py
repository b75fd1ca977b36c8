"""
The oldest versions that pyproject.toml allows, as constraints for pip: `>=` becomes `==`.

Run it with the Python that they are for, as a bound may depend on it: `python .ci/oldest.py constraints plot progress`.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def requirements(project: dict[str, Any], extras: list[str]) -> Iterator[Requirement]:
    """
    :param project: The table `project` of a pyproject.toml
    :param extras: Extras of this project
    :return: What it needs at run time, and what these extras and those that they name need
    """
    ours = canonicalize_name(project["name"])
    optional = project.get("optional-dependencies", {})
    yield from map(Requirement, project["dependencies"])
    waiting, seen = list(extras), set()
    while waiting:
        extra = waiting.pop()
        if extra in seen:
            continue
        seen.add(extra)
        for requirement in map(Requirement, optional[extra]):
            if canonicalize_name(requirement.name) == ours:
                waiting.extend(requirement.extras)
            else:
                yield requirement


def lower_bounds(requirement: Requirement) -> list[Version]:
    """
    :param requirement: A requirement
    :return: The versions that it names as the oldest
    """
    return [Version(item.version) for item in requirement.specifier if item.operator in (">=", "~=")]


def oldest(project: dict[str, Any], extras: list[str], python: str | None = None) -> list[str]:
    """
    :param project: The table `project` of a pyproject.toml
    :param extras: Extras of this project
    :param python: The Python that the constraints are for, as "3.10". By default the one that runs
    :return: One constraint for each package that has a lower bound: the highest of its bounds
    """
    environment = {} if python is None else {"python_version": python}
    found: dict[str, Version] = {}
    for requirement in requirements(project, extras):
        if requirement.marker is None or requirement.marker.evaluate(environment):
            name = canonicalize_name(requirement.name)
            for version in lower_bounds(requirement):
                found[name] = max(version, found.get(name, version))
    return [f"{name}=={version}" for name, version in sorted(found.items())]


def tools(project: dict[str, Any]) -> list[str]:
    """
    :param project: The table `project` of a pyproject.toml
    :return: What the extra `test` needs besides other extras
    """
    ours = canonicalize_name(project["name"])
    lines = project["optional-dependencies"]["test"]
    return [line for line in lines if canonicalize_name(Requirement(line).name) != ours]


if __name__ == "__main__":
    described = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    verb, *names = sys.argv[1:]
    print("\n".join({"constraints": lambda: oldest(described, names), "tools": lambda: tools(described)}[verb]()))
