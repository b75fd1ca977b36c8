"""What is shipped, what it needs, which module may import which, and that all of it is documented."""

import ast
import graphlib
import importlib
import inspect
import os
import pkgutil
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from email import message_from_string
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import sb3_reinforce
from tests.helpers import ROOT

PACKAGE = ROOT / "sb3_reinforce"
MODULES = sorted(module.name for module in pkgutil.walk_packages([str(PACKAGE)], "sb3_reinforce."))


def run_python(*args: str, cwd: Path, path: Path | None = None) -> str:
    """
    :param args: Arguments of the interpreter
    :param cwd: The folder to run it in
    :param path: A folder to import from before all others
    :return: What it printed
    """
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    command = [sys.executable, *args]
    result = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution, as for an upload."""
    folder = tmp_path_factory.mktemp("dist")
    run_python("-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT), cwd=folder)
    assert len(list(folder.glob("*.tar.gz"))) == 1
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def wheel_metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return message_from_string(archive.read(name).decode())


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    version = sb3_reinforce.__version__
    assert {name.split("/")[0] for name in names} == {"sb3_reinforce", f"sb3_reinforce-{version}.dist-info"}
    shipped = {name for name in names if name.startswith("sb3_reinforce/")}
    source = {path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*") if path.suffix in {".py", ".typed"}}
    settings = {f"sb3_reinforce/zoo_configs/{path.name}" for path in (ROOT / "zoo_configs").iterdir()}
    assert shipped == source | settings
    assert {"sb3_reinforce/py.typed", "sb3_reinforce/zoo_configs/reinforce.yml"} <= shipped
    assert f"sb3_reinforce-{version}.dist-info/licenses/LICENSE" in names


def test_wheel_works_when_installed(wheel: Path, tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run_python("-m", "pip", "install", "--no-deps", "--no-index", "--target", str(site), str(wheel), cwd=elsewhere)
    program = (
        "import sb3_reinforce\n"
        "print(sb3_reinforce.__file__)\n"
        "print(sb3_reinforce.__version__)\n"
        "model = sb3_reinforce.REINFORCE('MlpPolicy', 'CartPole-v1', n_steps=16).learn(32)\n"
        "print(model.num_timesteps >= 32)\n"
    )
    file, version, trained = run_python("-c", program, cwd=elsewhere, path=site).splitlines()
    assert (site / "bin" / "sb3-reinforce").is_file() and (site / "bin" / "sb3-reinforce-zoo").is_file()
    about = run_python("-m", "sb3_reinforce", cwd=elsewhere, path=site)
    assert about.startswith(f"sb3-reinforce {sb3_reinforce.__version__} in {site}") and "source distribution" in about
    assert Path(file) == site / "sb3_reinforce" / "__init__.py"
    assert version == sb3_reinforce.__version__
    assert trained == "True"


def test_version_is_the_one_of_the_project_file(wheel_metadata: Message) -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'\nversion = "{sb3_reinforce.__version__}"\n' in project
    assert wheel_metadata["Version"] == sb3_reinforce.__version__
    assert f"\nversion: {sb3_reinforce.__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    dated = re.search(rf"^## \[{sb3_reinforce.__version__}\] - (\d{{4}}-\d\d-\d\d)$", changelog(), re.MULTILINE)
    assert dated is not None
    assert f"\ndate-released: {dated[1]}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def changelog() -> str:
    return (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_the_sections_of_the_changelog_are_in_order() -> None:
    releases = re.findall(r"^## \[([^]]+)\]", changelog(), re.MULTILINE)
    assert releases[0] == "Unreleased" and releases[1] == sb3_reinforce.__version__
    assert releases[1:] == sorted(releases[1:], key=lambda version: [int(part) for part in version.split(".")], reverse=True)
    for section in changelog().split("\n## ")[1:]:
        kinds = re.findall(r"^### (.*)$", section, re.MULTILINE)
        assert len(set(kinds)) == len(kinds) and set(kinds) <= {
            "Added",
            "Changed",
            "Deprecated",
            "Removed",
            "Fixed",
            "Security",
        }


def test_the_source_distribution_holds_what_its_pages_need(wheel: Path) -> None:
    with tarfile.open(next(wheel.parent.glob("*.tar.gz"))) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {
        "README.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "docs/conf.py",
        "docs/guides/saving.md",
        "tests/conftest.py",
    } <= names
    assert not [name for name in names if "_build" in name or "__pycache__" in name]


def test_works_from_a_source_tree_that_is_not_installed(tmp_path: Path) -> None:
    source, elsewhere = tmp_path / "source", tmp_path / "elsewhere"
    elsewhere.mkdir()
    for folder in (PACKAGE, ROOT / "zoo_configs"):
        shutil.copytree(folder, source / folder.name, ignore=shutil.ignore_patterns("__pycache__"))
    # The environment of the tests has the package installed: without its metadata it is as if it were not
    program = (
        "import importlib.metadata as metadata\n"
        "from_name = metadata.Distribution.from_name\n"
        "def without_ours(name):\n"
        "    if name.lower().replace('_', '-') == 'sb3-reinforce':\n"
        "        raise metadata.PackageNotFoundError(name)\n"
        "    return from_name(name)\n"
        "metadata.Distribution.from_name = without_ours\n"
        "try:\n"
        "    print(metadata.version('sb3-reinforce'))\n"
        "except metadata.PackageNotFoundError:\n"
        "    print('not installed')\n"
        "import sb3_reinforce\n"
        "import sb3_reinforce.zoo\n"
        "print(sb3_reinforce.__file__)\n"
        "print(sb3_reinforce.__version__)\n"
        "print(sb3_reinforce.zoo.default_config().is_file())\n"
    )
    installed, file, version, has_config = run_python("-c", program, cwd=elsewhere, path=source).splitlines()
    assert installed == "not installed"
    assert Path(file) == source / "sb3_reinforce" / "__init__.py"
    assert version == sb3_reinforce.__version__
    assert has_config == "True"


def test_run_time_dependencies(wheel_metadata: Message) -> None:
    requirements = [Requirement(line) for line in wheel_metadata.get_all("Requires-Dist", [])]
    always = {requirement.name for requirement in requirements if "extra" not in str(requirement.marker or "")}
    assert always == {"stable-baselines3", "sb3-contrib", "torch", "gymnasium", "numpy"}
    assert wheel_metadata["Requires-Python"] == ">=3.10"


MATHEMATICS = [module for module in MODULES if module.startswith("sb3_reinforce.monte_carlo.")]


@pytest.mark.parametrize("name", MATHEMATICS)
def test_mathematics_needs_numpy_alone(name: str, tmp_path: Path) -> None:
    # A parent package without its `__init__`, so that the module is imported and nothing else of the package
    program = (
        "import sys, types\n"
        "import numpy\n"
        "parent = types.ModuleType('sb3_reinforce')\n"
        f"parent.__path__ = [{str(PACKAGE)!r}]\n"
        "sys.modules['sb3_reinforce'] = parent\n"
        "for other in ('torch', 'stable_baselines3', 'sb3_contrib', 'gymnasium'):\n"
        "    sys.modules[other] = None\n"
        "before = set(sys.modules)\n"
        f"import {name}\n"
        "standard = sys.stdlib_module_names | {'numpy'}\n"
        "print(*sorted(new for new in set(sys.modules) - before if new.split('.')[0] not in standard))\n"
    )
    imported = set(run_python("-c", program, cwd=tmp_path).split())
    assert imported <= {"sb3_reinforce.monte_carlo", *MATHEMATICS}
    # Neither at the top nor inside a function
    roots = {target.split(".")[0] for target in imports_of(name)}
    assert roots - set(sys.stdlib_module_names) <= {"numpy", "sb3_reinforce"}


def source_of(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def imports_of(module: str) -> set[str]:
    """
    :param module: A module of the package
    :return: The modules that it imports, wherever in its source
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(source_of(module).read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module is not None, f"relative import in {module}"
            children = {f"{node.module}.{alias.name}" for alias in node.names}
            found.update(children & set(MODULES) or {node.module})
    return found


#: The wings, from the ground up. A module imports from its own wing and from those further down
FLOORS = [
    {"envs", "extractors", "finite", "monte_carlo", "version"},
    {"arguments", "model_file"},
    {"buffers", "policies", "distributed"},
    {"actor_critic"},
    {"files", "rollout", "update"},
    {"resumable"},
    {"reinforce"},
    {"callbacks", "maskable"},
    {"recurrent"},
    {"zoo"},
    {"about"},
    {"__main__"},
]


def wing_of(module: str) -> str:
    return module.split(".")[1]


def test_arrows_point_one_way() -> None:
    graph = {module: {target for target in imports_of(module) if target in MODULES} for module in MODULES}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError
    floor = {wing: number for number, wings in enumerate(FLOORS) for wing in wings}
    assert {wing_of(module) for module in MODULES} == set(floor)
    for module, targets in graph.items():
        assert "sb3_reinforce" not in imports_of(module), f"{module} imports the whole package"
        for target in targets:
            same_wing = wing_of(target) == wing_of(module)
            assert same_wing or floor[wing_of(target)] < floor[wing_of(module)], f"{module} imports {target}"


def test_no_function_has_more_than_eight_parameters() -> None:
    for module in MODULES:
        for node in ast.walk(ast.parse(source_of(module).read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and (module, node.name) != ("sb3_reinforce.reinforce", "__init__"):
                parameters = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                assert len([p for p in parameters if p.arg not in ("self", "cls")]) <= 8, f"{node.name} of {module}"


def public_objects() -> Iterator[tuple[str, Any]]:
    """The exported names, and the public functions, classes and methods of all modules."""
    for name in MODULES:
        if name.startswith("sb3_reinforce.zoo"):
            continue  # needs its extra
        module = importlib.import_module(name)
        for attribute, value in vars(module).items():
            if attribute.startswith("_") or getattr(value, "__module__", None) != name:
                continue
            if not (inspect.isclass(value) or inspect.isfunction(value)):
                continue
            yield f"{name}.{attribute}", value
            if inspect.isclass(value):
                for method, function in vars(value).items():
                    if not method.startswith("_") and inspect.isfunction(
                        inspect.unwrap(getattr(function, "__func__", function))
                    ):
                        yield f"{name}.{attribute}.{method}", getattr(value, method)


PUBLIC_OBJECTS = dict(public_objects())


def test_exports_are_documented_objects() -> None:
    exported = [getattr(sb3_reinforce, name) for name in sb3_reinforce.__all__]
    assert all(inspect.getdoc(value) for value in exported)
    ours = [value for value in exported if value.__module__.startswith("sb3_reinforce")]
    assert sb3_reinforce.REINFORCE in ours
    assert all(any(value is other for other in PUBLIC_OBJECTS.values()) for value in ours)


@pytest.mark.parametrize("name", sorted(PUBLIC_OBJECTS))
def test_public_names_are_documented(name: str) -> None:
    value = PUBLIC_OBJECTS[name]
    text = inspect.getdoc(value) or ""
    assert text, f"{name} has no docstring"
    if hasattr(value, "_fields"):
        return  # a named tuple is a record, not a function of its fields
    documented = set(re.findall(r":param (\w+):", text))
    parameters = [p for p in inspect.signature(value).parameters if p not in {"self", "cls"}]
    of_bases = " ".join(base.__doc__ or "" for base in value.__mro__) if inspect.isclass(value) else ""
    # What a class inherits is documented where it comes from
    inherited = set(re.findall(r":param (\w+):", of_bases))
    missing = [parameter for parameter in parameters if parameter not in documented | inherited]
    assert not missing, f"{name}: no `:param` for {missing}"
    assert not documented - set(parameters), f"{name}: `:param` for what is no argument"
