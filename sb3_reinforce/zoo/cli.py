"""The command: one of RL Zoo's scripts, after REINFORCE is registered."""

import argparse
import contextlib
import difflib
import importlib
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sb3_reinforce.maskable.masks import has_masks, mask_source
from sb3_reinforce.maskable.reinforce import MaskableREINFORCE
from sb3_reinforce.zoo.registration import BEST_TRIAL, OURS, register

PROG = "sb3-reinforce-zoo"
# RL Zoo's scripts: functions, and modules that do their work when they are run
FUNCTIONS = {
    "train": "rl_zoo3.train",
    "enjoy": "rl_zoo3.enjoy",
    "plot_train": "rl_zoo3.plots",
    "all_plots": "rl_zoo3.plots",
    "plot_from_file": "rl_zoo3.plots",
}
SCRIPTS = ("record_video", "record_training", "push_to_hub", "load_from_hub", "benchmark")
VERBS = (*FUNCTIONS, *SCRIPTS)


def main(arguments: Sequence[str] | None = None) -> None:
    """
    Run one of RL Zoo's scripts with REINFORCE among its algorithms.

    :param arguments: The verb and its arguments; ``None``: those of the command line
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = argparse.ArgumentParser(
        prog=PROG,
        usage="%(prog)s VERB ...",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="RL Zoo with the algorithms " + ", ".join(OURS) + " in it.\n\nverbs:\n  " + "\n  ".join(VERBS),
        epilog=f"`{PROG} VERB --help` shows RL Zoo's own arguments.",
    )
    if not arguments:
        parser.error("which verb? One of " + ", ".join(VERBS))
    verb, *rest = arguments
    if verb in ("-h", "--help"):
        parser.print_help()
        return
    if verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "use one of " + ", ".join(VERBS)
        parser.error(f"unknown verb {verb!r}, {hint}")
    _run(verb, rest)


def _run(verb: str, arguments: list[str]) -> None:
    """
    :param verb: Name of the script
    :param arguments: Its arguments
    """
    folder = os.getcwd()
    if not getattr(sys.flags, "safe_path", False) and not {"", folder} & set(sys.path):
        # As with `python -m`: finds a `custom_envs.py`, and modules with a configuration or environments
        sys.path.append(folder)
    register()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_replaced(sys, "argv", [f"{PROG} {verb}", *arguments]))
        stack.enter_context(_replaced(argparse.ArgumentParser, "add_argument", _add_argument))
        children = stack.enter_context(_our_children())
        if verb in ("record_training", "push_to_hub"):
            stack.enter_context(_ffmpeg(required=verb == "record_training" and not {"-h", "--help"} & set(arguments)))
        if verb in ("enjoy", "benchmark", "push_to_hub", "load_from_hub"):
            stack.enter_context(_hub())
        if verb in ("enjoy", "record_video", "push_to_hub"):
            stack.enter_context(_masks_when_playing())
        if verb in FUNCTIONS:
            getattr(importlib.import_module(FUNCTIONS[verb]), verb)()
        else:
            try:
                runpy.run_module(f"rl_zoo3.{verb}", run_name="__main__")
            except FileNotFoundError:
                if verb != "benchmark" or not all(children):
                    raise  # else every evaluation failed, so there is no folder for the results
    if verb == "benchmark" and any(children):
        # RL Zoo skips them
        sys.exit(f"{PROG} benchmark: {sum(map(bool, children))} of {len(children)} evaluations failed, see above.")


@contextlib.contextmanager
def _masks_when_playing() -> Iterator[None]:
    """The scripts that play know no masks: have `predict` read them from the environment that the script has made."""
    utils = importlib.import_module("rl_zoo3.utils")
    create, predict = utils.create_test_env, MaskableREINFORCE.predict
    played: list[Any] = []

    def create_test_env(*args: Any, **kwargs: Any) -> Any:
        played[:] = [create(*args, **kwargs)]
        return played[0]

    def predict_with_masks(
        self: MaskableREINFORCE,
        observation: Any,
        state: Any = None,
        episode_start: Any = None,
        deterministic: bool = False,
        action_masks: Any = None,
    ) -> Any:
        if action_masks is None and played and has_masks(played[0]):
            action_masks = mask_source(played[0])()
        return predict(self, observation, state, episode_start, deterministic, action_masks)

    with contextlib.ExitStack() as stack:
        for name in ("rl_zoo3", "rl_zoo3.utils", "rl_zoo3.enjoy"):  # each has a name of its own for the function
            if (module := sys.modules.get(name)) is not None:
                stack.enter_context(_replaced(module, "create_test_env", create_test_env))
        stack.enter_context(_replaced(MaskableREINFORCE, "predict", predict_with_masks))
        yield


def _add_argument(parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> argparse.Action:
    """RL Zoo's own arguments, except that the one for a trial also takes the best trial and trial 0."""
    if "--trial-id" in args:
        kwargs["type"] = _trial_id
        kwargs["help"] = f"Trial id to load from an Optuna storage, or '{BEST_TRIAL}'."
    return super(argparse.ArgumentParser, parser).add_argument(*args, **kwargs)


def _trial_id(text: str) -> int | str:
    if text == BEST_TRIAL:
        return text
    try:
        # RL Zoo takes the number 0 to mean no trial
        return int(text) or "0"
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither the number of a trial nor {BEST_TRIAL!r}") from None


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    original = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, original)


@contextlib.contextmanager
def _our_children() -> Iterator[list[int]]:
    """
    The scripts that RL Zoo's scripts start know nothing of REINFORCE: start ours instead, with the same Python.

    :return: The exit statuses of the started scripts, in order
    """
    call: Callable[..., int] = subprocess.call
    statuses: list[int] = []

    def redirected_call(command: Any, *args: Any, **kwargs: Any) -> int:
        verb, arguments = None, []
        if isinstance(command, list):
            if command[:2] == ["python", "enjoy.py"]:
                verb, arguments = "enjoy", command[2:]
            elif command[:3] == ["python", "-m", "rl_zoo3.record_video"]:
                verb, arguments = "record_video", command[3:]
        if verb is None:
            return call(command, *args, **kwargs)
        statuses.append(call([sys.executable, "-m", "sb3_reinforce.zoo", verb, *arguments], *args, **kwargs))
        return statuses[-1]

    with _replaced(subprocess, "call", redirected_call):
        yield statuses


@contextlib.contextmanager
def _ffmpeg(required: bool) -> Iterator[None]:
    """
    Put ``ffmpeg`` on the PATH, where RL Zoo looks for it: the one that came with MoviePy if there is no other.

    :param required: Whether to exit if there is none
    """
    if shutil.which("ffmpeg") is not None:
        yield
        return
    try:
        from imageio_ffmpeg import get_ffmpeg_exe

        executable = get_ffmpeg_exe()
    except (ImportError, RuntimeError):
        if required:
            sys.exit(
                "This needs the program ffmpeg: please install it, or `pip install imageio-ffmpeg`, which brings one along."
            )
        yield
        return
    with tempfile.TemporaryDirectory() as folder:
        name = "ffmpeg.exe" if os.name == "nt" else "ffmpeg"
        try:
            os.symlink(executable, os.path.join(folder, name))
        except OSError:  # Windows does not let every user make links
            shutil.copy(executable, os.path.join(folder, name))
        path = os.environ.get("PATH")
        os.environ["PATH"] = folder if path is None else folder + os.pathsep + path
        try:
            yield
        finally:
            if path is None:
                del os.environ["PATH"]
            else:
                os.environ["PATH"] = path


@contextlib.contextmanager
def _hub() -> Iterator[None]:
    """Give RL Zoo the Hugging Face functions that it was written for; later versions renamed and changed a few things."""
    import huggingface_hub.repocard
    import huggingface_sb3
    from huggingface_hub.errors import HfHubHTTPError
    from requests.exceptions import HTTPError

    pushing: Any = importlib.import_module("huggingface_sb3.push_to_hub")  # the package's attribute is a function
    load_from_hub, save_metadata = huggingface_sb3.load_from_hub, huggingface_hub.repocard.metadata_save

    def load(*args: Any, **kwargs: Any) -> str:
        try:
            return load_from_hub(*args, **kwargs)
        except HfHubHTTPError as error:
            # The Hub's errors were once errors of requests, and RL Zoo expects one if a model was not normalized
            raise HTTPError(str(error)) from error

    def metadata(*args: Any) -> dict[str, Any]:
        return pushing._generate_metadata(*args).to_dict()

    def save(path: Any, data: dict[str, Any]) -> Any:
        # The model card has just been written, with commands that know only RL Zoo's own algorithms
        card = path.read_text(encoding="utf-8")
        if any(f"--algo {algo} " in card for algo in OURS):
            card = card.replace("python -m rl_zoo3.", "python -m sb3_reinforce.zoo ")
            path.write_text(card.replace("pip install rl_zoo3", 'pip install "sb3-reinforce[zoo]"'), encoding="utf-8")
        return save_metadata(path, data)

    if not hasattr(pushing, "generate_metadata"):
        pushing.generate_metadata = metadata
    with _replaced(huggingface_sb3, "load_from_hub", load), _replaced(huggingface_hub.repocard, "metadata_save", save):
        yield
