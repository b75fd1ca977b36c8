"""Files of models: written as a whole or not at all, and checked before anything is taken from them."""

import errno
import io
import json
import os
import pathlib
import shutil
import uuid
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

from stable_baselines3.common.save_util import open_path

from sb3_reinforce.version import __version__

FilePath = str | pathlib.Path | io.BufferedIOBase
#: The item of a file that says which version of this package has written it
VERSION = "sb3_reinforce_version"
#: The items that are in the file of every algorithm
_OF_ANY_MODEL = {"policy_class", "observation_space", "action_space"}
#: What reading an archive raises that is none, or damaged. ``RuntimeError``: it seems to be encrypted, or nested without end
_DAMAGES = (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, KeyError, ValueError, OSError)
#: How PyTorch's files begin, as archives or, before version 1.6, as pickles
_OF_PYTORCH = (b"PK", b"\x80")
#: An argument that only this package's classes have, which distinguishes their files from those of other algorithms
_OWN_ARGUMENT = "bootstrap_on_truncation"


def write(path: str | pathlib.Path, content: memoryview) -> None:
    """
    Write a file beside its target, and then put it in its place, so that the target is the old file or the new one at any
    moment, also if this process is killed or several write at once.

    :param path: The target; without a suffix it gets ``.zip``, and a missing folder is made, as SB3 does
    :param content: What to write
    :raises OSError: If it cannot be written; the target is then as it was
    :raises ValueError: If the path has no name
    """
    target, beside = pathlib.Path(path), None
    try:
        target = _target(target)
        if target.exists() and not target.is_file():  # a pipe or a device: nothing can take its place
            target.write_bytes(content)
            return
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, "it is read-only")
        beside = target.with_name(f".{uuid.uuid4().hex}.tmp")  # no longer than the name itself may be
        with open_path(beside, "w") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, beside)
        beside.replace(target)
    except OSError as error:
        reason = f"The model was not saved, and what was at its place is unchanged: {error.strerror}"
        raise type(error)(error.errno, reason, str(target)) from error
    finally:
        if beside is not None:
            with suppress(OSError):
                beside.unlink()


def _target(path: pathlib.Path) -> pathlib.Path:
    if not path.name:
        raise ValueError(f"A model is saved to a path that ends in a name, got {str(path)!r}.")
    path = path if path.suffix else path.with_name(f"{path.name}.zip")
    if path.is_dir():
        warnings.warn(f"Path '{path}' is a folder. Will save instead to {path}_2", UserWarning, stacklevel=4)
        path = path.with_name(f"{path.name}_2")
    return path.resolve()  # a link stays a link


def read_items(path: FilePath) -> dict[str, Any]:
    """
    :param path: A file that a model was saved to
    :return: What it holds besides parameters: plain values, and descriptions of everything that only pickle can restore
    :raises ValueError: If it is no such file, or damaged
    :raises OSError: If there is none that can be read
    """
    try:
        file = open_path(path, "r", suffix="zip")
    except OSError as error:
        raise type(error)(error.errno, f"No model can be loaded: {error.strerror}", str(path)) from error
    try:
        with zipfile.ZipFile(file) as archive:
            damaged = archive.testzip()
            if damaged is not None:
                raise zipfile.BadZipFile(f"{damaged} is damaged")
            for name in archive.namelist():
                if name.endswith(".pth"):
                    with archive.open(name) as part:
                        if not part.read(2).startswith(_OF_PYTORCH):
                            raise zipfile.BadZipFile(f"{name} is no file of PyTorch")
            items = json.loads(archive.read("data").decode())
        if not (isinstance(items, dict) and _OF_ANY_MODEL <= set(items)):
            raise zipfile.BadZipFile("its data are not those of a model")
        return items
    except _DAMAGES as error:
        name = f"the file {path}" if isinstance(path, str | pathlib.Path) else "one"
        raise ValueError(
            f"A model is loaded from a file that `save` has written, got {name} that is another one, cut or damaged: "
            f"{str(error).strip(chr(39))}."
        ) from error
    finally:
        if file is not path:
            file.close()


def is_own(items: Mapping[str, Any]) -> bool:
    """
    :param items: The items of a file
    :return: Whether this package has written it, and not another algorithm
    """
    return VERSION in items or _OWN_ARGUMENT in items


@contextmanager
def version_named(items: Mapping[str, Any]) -> Iterator[None]:
    """
    If a file of another version of this package cannot be loaded, also say which version has written it.

    :param items: The items of the file
    :raises ValueError: With the version, for any error while the file is loaded
    """
    try:
        yield
    except Exception as error:
        saved_with = items.get(VERSION, "0.1.0 or older")
        if saved_with == __version__ or not is_own(items):
            raise
        raise ValueError(
            f"{error} (The file was saved by version {saved_with} of sb3_reinforce, this is version {__version__}.)"
        ) from error
