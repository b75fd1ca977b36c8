"""What is installed, where the documentation is, and what else can be called: ``python -m sb3_reinforce``."""

import argparse
import sys
from collections.abc import Sequence
from importlib import metadata, util
from pathlib import Path

from stable_baselines3.common.utils import get_system_info

from sb3_reinforce.version import __version__
from sb3_reinforce.zoo.cli import VERBS

NAME = "sb3-reinforce"
PACKAGE = Path(__file__).parent


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Print what is installed, and where to go on.

    :param arguments: The arguments; ``None``: those of the command line
    """
    parser = argparse.ArgumentParser(prog=NAME, description="What is installed, and where the documentation is.")
    parser.add_argument("--version", action="version", version=f"{NAME} {__version__}")
    parser.parse_args(arguments)
    info, _ = get_system_info(print_info=False)
    info.pop("OpenAI Gym", None)  # which nothing here uses
    info["sb3-contrib"] = version_of("sb3-contrib")
    info["RL Zoo"] = version_of("rl_zoo3")
    lines = [
        f"{NAME} {__version__} in {PACKAGE}",
        "",
        *(f"- {name}: {value}" for name, value in info.items()),
        "",
        f"Documentation: {documentation()}",
        "The algorithm's arguments: python -c 'import sb3_reinforce; help(sb3_reinforce.REINFORCE)'",
        f"RL Zoo: python -m sb3_reinforce.zoo VERB, where VERB is one of {', '.join(VERBS)}",
    ]
    if util.find_spec("rl_zoo3") is None:
        lines.append(f'        (not installed: pip install "{NAME}[zoo]")')
    # In one piece, which `print` would not be: a reader such as `head` may be gone after the first line
    sys.stdout.write("\n".join(lines) + "\n")


def version_of(distribution: str) -> str:
    """
    :param distribution: Name of a distribution
    :return: Its version
    """
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "not installed"


def documentation() -> str:
    """
    :return: Where the documentation is: beside the package in a clone, or where the distribution says
    """
    folder = PACKAGE.parent / "docs"
    if (folder / "getting_started.md").is_file():
        return f"{folder / 'index.md'} (`make docs` builds the site)"
    try:
        addresses = metadata.metadata(NAME).get_all("Project-URL") or []
    except metadata.PackageNotFoundError:
        addresses = []
    named = dict(address.split(", ", 1) for address in addresses)
    return named.get("Documentation", f"docs/ in the source distribution of {NAME}")
