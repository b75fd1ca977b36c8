"""Files of models are written as a whole or not at all, and what is no such file is refused in one sentence."""

import io
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import A2C

from sb3_reinforce import REINFORCE, __version__
from tests.helpers import ROOT
from tests.helpers.environments import Scripted, vec


def make(**kwargs: Any) -> REINFORCE:
    return REINFORCE("MlpPolicy", vec(Scripted()), device="cpu", seed=0, **kwargs)


def weights(model: REINFORCE) -> np.ndarray:
    return th.nn.utils.parameters_to_vector(model.policy.parameters()).detach().numpy()


SAVES = """
import sys
from sb3_reinforce import REINFORCE
from tests.helpers.environments import Scripted, vec
model = REINFORCE("MlpPolicy", vec(Scripted()), policy_kwargs={"net_arch": [300, 300]}, device="cpu")
model.save(sys.argv[1])
print("saved", flush=True)
while True:
    model.save(sys.argv[1])
"""


def python(code: str, *arguments: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_process_that_is_killed_while_it_saves_leaves_a_file_that_loads(tmp_path: Path) -> None:
    for i in range(2):
        path = tmp_path / f"model_{i}.zip"
        process = python(SAVES, str(path))
        assert process.stdout is not None and process.stdout.readline() == "saved\n"
        time.sleep(0.05 + 0.013 * i)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert REINFORCE.load(path).policy.net_arch == [300, 300]


FULL = """
import resource, signal, sys
from tests.reinforce.test_safe_files import make, weights
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
model = make(policy_kwargs={"net_arch": [300, 300]})
before = weights(model).copy()
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))  # as a disk with so much space
try:
    model.save(sys.argv[1])
except OSError as error:
    print(error)
assert (weights(model) == before).all() and model.learn(50).num_timesteps >= 50
"""


def test_a_full_disk_leaves_the_old_file_and_the_model_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "model.zip"
    make().save(path)
    before = path.read_bytes()
    process = python(FULL, str(path))
    output, errors = process.communicate()
    assert process.returncode == 0, errors
    assert output.startswith("[Errno 27] The model was not saved, and what was at its place is unchanged: File too large")
    assert output.strip().endswith(f"'{path}'") and output.count("\n") == 1
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["model.zip"]


FORBIDDEN = """
import io, os, sys
from tests.reinforce.test_safe_files import make
model = make()
model.save(io.BytesIO())  # what saving imports may be closed to other users too
if os.getuid() == 0:
    os.setuid(65534)  # the administrator may write everywhere
try:
    model.save(sys.argv[1])
except PermissionError as error:
    print(error)
"""


def test_a_folder_without_permission_is_named() -> None:
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to other users
        os.chmod(folder, 0o555)
        process = python(FORBIDDEN, f"{folder}/model")
        output, errors = process.communicate()
        os.chmod(folder, 0o755)
    assert process.returncode == 0, errors
    assert output.startswith("[Errno 13] The model was not saved, and what was at its place is unchanged: Permission denied")


def test_names_folders_links_and_permissions_are_as_in_sb3(tmp_path: Path) -> None:
    model = make()
    model.save(tmp_path / "name")
    model.save(str(tmp_path / "name.with.dots"))
    with pytest.warns(UserWarning, match="does not exist. Will create it"):
        model.save(tmp_path / "new" / "folder" / "name.zip")
    (tmp_path / "taken.zip").mkdir()
    with pytest.warns(UserWarning, match="is a folder. Will save instead to"):
        model.save(tmp_path / "taken")
    (tmp_path / "link.zip").symlink_to(tmp_path / "name.zip")
    (tmp_path / "name.zip").chmod(0o640)
    model.save(tmp_path / "link")
    assert (tmp_path / "link.zip").is_symlink() and stat.S_IMODE((tmp_path / "name.zip").stat().st_mode) == 0o640
    model.save(tmp_path / ("n" * 250 + ".zip"))
    (tmp_path / ("n" * 250 + ".zip")).unlink()
    with pytest.raises(ValueError, match=r"A model is saved to a path that ends in a name, got '\.'\."):
        model.save("")
    found = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file() and not path.is_symlink()}
    assert found == {"name.zip", "name.with.dots", "new/folder/name.zip", "taken.zip_2"}
    for name in found | {"name", "new/folder/name", "link"}:
        np.testing.assert_array_equal(weights(REINFORCE.load(tmp_path / name)), weights(model))


def test_a_pipe_gets_the_file_and_stays_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.zip")
    reader = subprocess.Popen(["cat", str(tmp_path / "pipe.zip")], stdout=subprocess.PIPE)
    make().save(tmp_path / "pipe")
    assert (tmp_path / "pipe.zip").is_fifo() and os.listdir(tmp_path) == ["pipe.zip"]
    content, _ = reader.communicate(timeout=60)
    assert REINFORCE.load(io.BytesIO(content)).seed == 0


# Loading


def damaged(path: Path, kind: str) -> Path:
    content = path.read_bytes()
    if kind == "cut":
        content = content[: len(content) * 2 // 3]
    elif kind == "empty":
        content = b""
    elif kind == "no archive":
        content = b"weights" * 100
    elif kind == "a byte":  # in the midst of the weights
        with zipfile.ZipFile(path) as archive:
            start = archive.getinfo("policy.pth").header_offset
        content = content[: start + 500] + bytes([content[start + 500] ^ 255]) + content[start + 501 :]
    elif kind == "the mark of a secret":
        start = content.rindex(b"PK\1\2", 0, content.rindex(b"policy.optimizer.pth"))  # of its entry in the list at the end
        content = content[: start + 8] + b"\1" + content[start + 9 :]
    elif kind == "other weights":
        file = io.BytesIO()
        with zipfile.ZipFile(path) as archive, zipfile.ZipFile(file, "w") as other:
            for name in archive.namelist():
                other.writestr(name, b"weights" if name == "policy.pth" else archive.read(name))
        content = file.getvalue()
    path.write_bytes(content)
    if kind in ("another archive", "a list", "other data"):
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(*{"a list": ("data", "[1]"), "other data": ("data", '{"a": 1}')}.get(kind, ("readme.txt", "")))
    return path


@pytest.mark.parametrize(
    "kind",
    [
        *("cut", "empty", "no archive", "a byte", "the mark of a secret"),
        *("other weights", "another archive", "a list", "other data"),
    ],
)
def test_what_is_no_file_of_a_model_is_refused_in_one_sentence(kind: str, tmp_path: Path) -> None:
    model = make()
    model.save(tmp_path / "model.zip")
    path = damaged(tmp_path / "model.zip", kind)
    before = weights(model).copy()
    expected = (
        f"A model is loaded from a file that `save` has written, got the file {path} that is another one, cut or damaged: "
    )
    for load in (lambda: REINFORCE.load(path), lambda: model.set_parameters(str(path))):
        with pytest.raises(ValueError) as caught:
            load()
        assert str(caught.value).startswith(expected) and "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="got one that is another one, cut or damaged"):
        REINFORCE.load(io.BytesIO(path.read_bytes()))
    np.testing.assert_array_equal(weights(model), before)


def test_weights_that_an_old_pytorch_has_written_are_read(tmp_path: Path) -> None:
    model = make()
    model.save(tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive, zipfile.ZipFile(tmp_path / "old.zip", "w") as old:
        for name in archive.namelist():
            content = archive.read(name)
            if name.endswith(".pth"):
                file = io.BytesIO()
                th.save(th.load(io.BytesIO(content)), file, _use_new_zipfile_serialization=False)
                content = file.getvalue()
            old.writestr(name, content)
    np.testing.assert_array_equal(weights(REINFORCE.load(tmp_path / "old.zip", device="cpu")), weights(model))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"No model can be loaded: No such file .*nothing'$"):
        REINFORCE.load(tmp_path / "nothing")
    with pytest.raises(IsADirectoryError, match="No model can be loaded: Is a directory"):
        REINFORCE.load(tmp_path)


def changed(path: Path, **items: Any) -> Path:
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    data = {**json.loads(content["data"]), **items}
    content["data"] = json.dumps({name: value for name, value in data.items() if value is not None}).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, value in content.items():
            archive.writestr(name, value)
    return path


def test_a_file_of_a_newer_version_loads_or_says_which_version_has_written_it(tmp_path: Path) -> None:
    model = make()
    model.save(tmp_path / "model.zip")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        assert json.loads(archive.read("data"))["sb3_reinforce_version"] == __version__
    newer = changed(tmp_path / "model.zip", sb3_reinforce_version="99.0.0", an_argument_to_come=3)
    np.testing.assert_array_equal(weights(REINFORCE.load(newer)), weights(model))
    changed(newer, baseline="from the future")
    expected = rf"`baseline` must be .* saved by version 99\.0\.0 of sb3_reinforce, this is version {__version__}\.\)$"
    with pytest.raises(ValueError, match=expected):
        REINFORCE.load(newer)


def test_no_version_is_named_for_the_file_of_another_algorithm(tmp_path: Path) -> None:
    A2C("MlpPolicy", "CartPole-v1", device="cpu").save(tmp_path / "a2c")
    with pytest.warns(UserWarning, match="saved by another algorithm"), pytest.raises(ValueError) as error:
        REINFORCE.load(tmp_path / "a2c", gamma=2.0)
    assert "gamma" in str(error.value) and "version" not in str(error.value)


def test_a_file_of_an_older_version_loads(tmp_path: Path) -> None:
    model = make()
    model.save(tmp_path / "model.zip")
    older = changed(tmp_path / "model.zip", sb3_reinforce_version=None, _rollout_start=None, seed_rollouts=None)
    loaded = REINFORCE.load(older, env=vec(Scripted()))
    assert loaded.learn(50, reset_num_timesteps=False).num_timesteps >= 50


def test_the_environment_can_be_given_by_its_name(tmp_path: Path) -> None:
    REINFORCE("MlpPolicy", "CartPole-v1", device="cpu").save(tmp_path / "model")
    model = REINFORCE.load(tmp_path / "model", env="CartPole-v1", device="cpu", n_steps=10)
    assert model.learn(10).num_timesteps >= 10
