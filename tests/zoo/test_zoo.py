"""
RL Zoo's verbs with `reinforce`, as a user runs them: each a process of its own, in a temporary folder, on a tiny budget.

The commands of the page docs/guides/rl_zoo.md are those of `test_from_training_to_plots`, `test_videos` and `test_search`.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(find_spec("rl_zoo3") is None, reason="RL Zoo (rl_zoo3) is not installed")

TINY = ["-n", "400", "--eval-freq", "200", "--eval-episodes", "2"]
CARTPOLE = ["--algo", "reinforce", "--env", "CartPole-v1"]
MODEL = "logs/reinforce/CartPole-v1_1/CartPole-v1.zip"
# Small enough for two updates within the budget
SMALL = ["-params", "n_envs:2", "n_steps:50"]


def start(command: Iterable[str], folder: Path, **variables: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1", **variables}
    return subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: "subprocess.Popen[str]", status: int = 0) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == status, output
    return output


def zoo(*arguments: str, folder: Path, status: int = 0, **variables: str) -> str:
    """Run a verb to its end and return what it printed."""
    return finish(start(["-m", "sb3_reinforce.zoo", *arguments], folder, **variables), status)


def python(code: str, folder: Path, status: int = 0) -> str:
    return finish(start(["-c", code], folder), status)


def saved(run: str, folder: Path, algo: str = "reinforce") -> str:
    """The hyperparameters of a run, as RL Zoo saved them."""
    return (folder / "logs" / algo / run / run.rsplit("_", 1)[0] / "config.yml").read_text()


def test_from_training_to_plots(tmp_path: Path) -> None:
    zoo("train", *CARTPOLE, *TINY, *SMALL, "--seed", "1", folder=tmp_path)
    zoo("train", "--algo=reinforce", "--env", "CartPole-v1", *TINY, *SMALL, "-i", MODEL, folder=tmp_path)

    played = zoo("enjoy", *CARTPOLE, "-f", "logs/", "--no-render", "-n", "600", folder=tmp_path)
    assert "Mean reward" in played

    zoo("plot_train", "-a", "reinforce", "-e", "CartPole", "-f", "logs/", "-w", "2", folder=tmp_path)
    table = zoo(
        "all_plots", "-a", "reinforce", "-e", "CartPole-v1", "-f", "logs/", "-o", "results", "--no-display", folder=tmp_path
    )
    assert "REINFORCE" in table and "+/-" in table
    zoo("plot_from_file", "-i", "results.pkl", "-o", "results.svg", folder=tmp_path)
    assert (tmp_path / "results.svg").stat().st_size > 0


@pytest.mark.slow
def test_videos(tmp_path: Path) -> None:
    zoo("train", *CARTPOLE, *TINY, *SMALL, "--save-freq", "300", folder=tmp_path)
    zoo("record_video", *CARTPOLE, "-f", "logs/", "-n", "20", folder=tmp_path)
    videos = tmp_path / "logs/reinforce/CartPole-v1_1/videos"
    assert [video.name.split("-step")[0] for video in videos.glob("*.mp4")] == ["final-model-reinforce-CartPole-v1"]

    # Its children must not depend on a `python` on the PATH, nor it on an `ffmpeg`
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "sh").symlink_to(str(shutil.which("sh")))
    zoo("record_training", *CARTPOLE, "-f", "logs/", "-n", "20", "--gif", folder=tmp_path, PATH=str(empty))
    kinds = {video.name.split("-")[0] for video in videos.glob("*.mp4")}
    assert kinds == {"final", "best", "checkpoint", "training.mp4"}
    assert (videos / "training.gif").stat().st_size > 0


def test_record_training_says_that_ffmpeg_is_missing(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['imageio_ffmpeg'] = None; import sb3_reinforce.zoo as zoo;"
        "zoo.main(['record_training', '--algo', 'reinforce', '-f', 'logs'])"
    )
    output = finish(start(["-c", code], tmp_path, PATH=str(tmp_path)), status=1)
    assert "ffmpeg" in output and "Traceback" not in output


@pytest.mark.parametrize("storage", ["logs/study.log", pytest.param("sqlite:///study.db", marks=pytest.mark.slow)])
@pytest.mark.slow
def test_search(tmp_path: Path, storage: str) -> None:
    study = ["--storage", storage, "--study-name", "cartpole"]
    search = ["-n", "400", "-optimize", "--n-trials", "2", "--sampler", "tpe", "--pruner", "median"]
    search += ["--n-startup-trials", "1", "--n-evaluations", "2", "--eval-episodes", "1", "--no-optim-plots"]
    workers = [start(["-m", "sb3_reinforce.zoo", "train", *CARTPOLE, *search, *study], tmp_path) for _ in range(2)]
    for worker in workers:
        finish(worker)

    trial = "best" if storage.endswith(".log") else "0"
    output = zoo("train", *CARTPOLE, *TINY, *study, "--trial-id", trial, folder=tmp_path)
    assert "Loading from Optuna study..." in output
    (config,) = (tmp_path / "logs/reinforce").glob("*/CartPole-v1/config.yml")

    import optuna
    import yaml

    from sb3_reinforce.zoo.search import convert_reinforce_params

    if storage.endswith(".log"):
        backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / storage))
        study = optuna.load_study(storage=optuna.storages.JournalStorage(backend), study_name="cartpole")
    else:
        study = optuna.load_study(storage=f"sqlite:///{tmp_path}/study.db", study_name="cartpole")
    assert len(study.trials) == 4
    drawn = convert_reinforce_params((study.best_trial if trial == "best" else study.trials[0]).params)
    saved_hyperparams = yaml.load(config.read_text(), Loader=yaml.UnsafeLoader)
    assert {key: saved_hyperparams[key] for key in drawn} == drawn


@pytest.mark.slow
def test_configurations_of_the_user(tmp_path: Path) -> None:
    entry = "n_timesteps: 200, policy: MlpPolicy, n_steps: 60, normalize: true, gamma: 0.9, critic_learning_rate: lin_2.0e-3"
    entry += ", natural_gradient: true, target_kl: lin_0.04, ent_coef: lin_0.0_-0.02"
    (tmp_path / "mine.yml").write_text(f"CartPole-v1: {{{entry}}}\n")
    python_entry = "dict(n_timesteps=200, policy='MlpPolicy', n_steps=70, learning_rate='lin_0.01_0.002')"
    (tmp_path / "mine.py").write_text(f"hyperparams = {{'CartPole-v1': {python_entry}}}\n")

    zoo("train", *CARTPOLE, "-conf", "mine.yml", folder=tmp_path)
    assert "lin_2.0e-3" in saved("CartPole-v1_1", tmp_path)
    code = f"""
from sb3_reinforce import REINFORCE
model = REINFORCE.load({MODEL!r})
assert model.n_steps == 60 and model.gamma == 0.9
assert [model.critic_learning_rate(progress) for progress in (1.0, 0.5)] == [2.0e-3, 1.0e-3]
assert model.natural_gradient and [model.target_kl(progress) for progress in (1.0, 0.5)] == [0.04, 0.02]
assert [model.ent_coef(progress) for progress in (1.0, 0.5, 0.0)] == [0.0, -0.01, -0.02]
"""
    python(code, tmp_path)
    played = zoo("enjoy", *CARTPOLE, "-f", "logs", "--no-render", "-n", "300", folder=tmp_path)
    assert "Loading running average" in played
    assert (tmp_path / "logs/reinforce/CartPole-v1_1/CartPole-v1/vecnormalize.pkl").is_file()

    for number, option in enumerate((["--conf-file=mine.py"], ["--conf", "mine"]), start=2):
        zoo("train", "--algo=reinforce", *CARTPOLE[2:], *option, "-params", "critic_learning_rate:0.1", folder=tmp_path)
        assert "lin_0.01_0.002" in saved(f"CartPole-v1_{number}", tmp_path)
    python(
        "from sb3_reinforce import REINFORCE\n"
        "model = REINFORCE.load('logs/reinforce/CartPole-v1_2/CartPole-v1.zip')\n"
        "assert [round(model.learning_rate(progress), 6) for progress in (1.0, 0.5, 0.0)] == [0.01, 0.006, 0.002]\n",
        tmp_path,
    )


@pytest.mark.slow
def test_environments(tmp_path: Path) -> None:
    """One without an entry (and a script of the user's own registers it, and the algorithm), and one that does not exist."""
    registration = "gym.register('Mine-v0', 'gymnasium.envs.classic_control:CartPoleEnv', max_episode_steps=50)"
    (tmp_path / "custom_envs.py").write_text(
        f"import gymnasium as gym\nimport sb3_reinforce.zoo\nsb3_reinforce.zoo.register()\n{registration}\n"
    )
    mine = ["--algo", "reinforce", "--env", "Mine-v0"]
    assert "Using 'default' hyperparameters" in zoo("train", *mine, *TINY, "--vec-env", "subproc", folder=tmp_path)
    # RL Zoo's own commands, one of which imports `custom_envs` first, the other from amidst its own class's module
    finish(start(["-m", "rl_zoo3.train", *mine, *TINY], tmp_path))
    finish(start(["-m", "rl_zoo3.record_video", *mine, "-f", "logs", "-n", "5"], tmp_path))
    assert "reinforce.yml" in python(
        "from rl_zoo3.exp_manager import ExperimentManager as E; print(E(None, 'reinforce', 'Mine-v0', 'logs').config)",
        tmp_path,
    )

    unknown = zoo("train", "--algo", "reinforce", "--env", "Mine-v1000", folder=tmp_path, status=1)
    assert "you maybe meant Mine-v0?" in unknown.splitlines()[-1]


def test_what_is_refused(tmp_path: Path) -> None:
    """A misspelt hyperparameter, a bad one, a trial that there is not: one clear sentence, and no new run, also if resumed."""
    zoo("train", *CARTPOLE, *TINY, folder=tmp_path)
    for resumed in ([], ["-i", MODEL]):
        output = zoo("train", *CARTPOLE, *TINY, *resumed, "-params", "learning_rat:0.1", folder=tmp_path, status=1)
        assert output.splitlines()[-1].endswith("has no argument `learning_rat`, did you mean `learning_rate`?")

    study = ["--storage", "study.log", "--study-name", "s"]
    commands = {
        "did you mean `normalize`?": [*CARTPOLE, "-params", "normalise:True"],
        "`gamma` must be": [*CARTPOLE, "-params", "gamma:2"],
        "`batch_size` must be": [*CARTPOLE, "-i", MODEL, "-params", "batch_size:0"],
        "`target_kl` must be": [*CARTPOLE, "-params", "natural_gradient:True", "target_kl:0"],
        "`critic_learning_rate` must be": [*CARTPOLE, "-params", "critic_learning_rate:'fast'"],
        "no such study": [*CARTPOLE, *study, "--trial-id", "0"],
        "neither the number of a trial nor 'best'": [*CARTPOLE, *study, "--trial-id", "last"],
        "`--trial-id 0` is a trial of a study": [*CARTPOLE, "--trial-id", "0"],
        "`--trial-id best` is a trial of a study": ["--algo", "ppo", "--trial-id", "best"],
    }
    code = f"""
import sb3_reinforce.zoo
for arguments in {list(commands.values())!r}:
    try:
        sb3_reinforce.zoo.main(["train", *arguments])
    except (ValueError, SystemExit) as error:
        print("refused:", error)
"""
    output = python(code, tmp_path)
    assert output.count("refused:") == len(commands)
    for message in commands:
        assert message in output, message


@pytest.mark.slow
def test_other_algorithms(tmp_path: Path) -> None:
    """They find RL Zoo's configurations, and the first trial of a study."""
    ppo = ["train", "--algo", "ppo", "--env", "CartPole-v1", "-n", "64", "-params", "n_envs:1", "n_steps:32", "batch_size:32"]
    assert "rl_zoo3/hyperparams/ppo.yml" in zoo(*ppo, folder=tmp_path).replace(os.sep, "/")
    study = ["--storage", "ppo.log", "--study-name", "s"]
    code = """
import optuna
from rl_zoo3.hyperparams_opt import sample_ppo_params
storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend("ppo.log"))
study = optuna.create_study(storage=storage, study_name="s")
study.optimize(lambda trial: len(sample_ppo_params(trial, 0, 1, {})), n_trials=1)
"""
    python(code, tmp_path)
    output = zoo(*ppo, *study, "--trial-id", "0", folder=tmp_path)
    assert "Loading from Optuna study..." in output and "gae_lambda" in saved("CartPole-v1_2", tmp_path, "ppo")


def test_verbs_and_registration(tmp_path: Path) -> None:
    code = """
import sb3_reinforce.zoo
from rl_zoo3.utils import ALGOS
before = dict(ALGOS)
sb3_reinforce.zoo.register()
from rl_zoo3.exp_manager import ExperimentManager
methods = dict(vars(ExperimentManager))
sb3_reinforce.zoo.register()
assert dict(vars(ExperimentManager)) == methods
ours = ["reinforce", "reinforce_mask", "reinforce_lstm", "reinforce_mask_lstm"]
assert [key for key in ALGOS if key not in before] == ours and {**ALGOS, **before} == ALGOS

for arguments in ([], ["trian"], ["--help"], ["push_to_hub", "--help"]):
    try:
        sb3_reinforce.zoo.main(arguments)
    except SystemExit as end:
        print("status", end.code)
"""
    output = python(code, tmp_path)
    assert output.count("status 2") == 2 and "did you mean 'train'?" in output
    assert "record_training" in output and "reinforce" in output.split("usage: sb3-reinforce-zoo push_to_hub")[1]


@pytest.mark.slow
def test_benchmark(tmp_path: Path) -> None:
    zoo("train", *CARTPOLE, *TINY, folder=tmp_path)
    benchmark = ["benchmark", "--log-dir", "logs", "--no-hub", "-n", "600", "--num-threads", "1"]
    output = zoo(*benchmark, "--benchmark-dir", "logs/benchmark", folder=tmp_path)
    assert "Mean reward" in output and "reinforce" in (tmp_path / "benchmark.md").read_text()

    (tmp_path / MODEL).unlink()
    output = zoo(*benchmark, "--benchmark-dir", "again", folder=tmp_path, status=1)
    assert "1 of 1 evaluations failed" in output


@pytest.mark.slow
def test_hub(tmp_path: Path) -> None:
    """
    The real verbs get as far as the calls that leave the machine, which are answered by a folder here: what the Hugging Face
    Hub itself does is not tested. Without the permission to load pickles the download stops before that.
    """
    zoo("train", *CARTPOLE, *TINY, folder=tmp_path)
    stand_in = """
import os, pathlib, shutil, sys
import huggingface_hub, huggingface_hub.errors
http = sys.modules[huggingface_hub.errors.HTTPError.__module__.partition('.')[0]]
class Hub(huggingface_hub.HfApi):
    def create_repo(self, repo_id, **kwargs):
        return "https://example.invalid/" + repo_id
    def snapshot_download(self, repo_id, local_dir, **kwargs):
        pathlib.Path(local_dir).mkdir(parents=True)
    def upload_folder(self, repo_id, folder_path, **kwargs):
        shutil.copytree(folder_path, "stored")
def download(repo_id, filename, **kwargs):
    path = pathlib.Path("stored", filename)
    if not path.exists():
        response = http.Response(404, request=http.Request("GET", "https://example.invalid"))
        raise huggingface_hub.errors.RemoteEntryNotFoundError("no file", response=response)
    return str(path)
huggingface_hub.HfApi, huggingface_hub.hf_hub_download = Hub, download
import sb3_reinforce.zoo
sb3_reinforce.zoo.main(sys.argv[1:])
"""
    push = ["push_to_hub", *CARTPOLE, "-f", "logs/", "-orga", "me", "-n", "20"]
    finish(start(["-c", stand_in, *push], tmp_path))
    card = (tmp_path / "stored/README.md").read_text()
    assert "python -m sb3_reinforce.zoo train --algo reinforce" in card and "mean_reward" in card
    assert "rl_zoo3.train" not in card and (tmp_path / "stored/replay.mp4").is_file()

    load = ["load_from_hub", *CARTPOLE, "-f", "loaded", "-orga", "me"]
    finish(start(["-c", stand_in, *load], tmp_path, TRUST_REMOTE_CODE="True"))
    zoo("enjoy", *CARTPOLE, "-f", "loaded", "--no-render", "-n", "100", folder=tmp_path)
    assert "TRUST_REMOTE_CODE" in zoo(*load, folder=tmp_path, status=1, TRUST_REMOTE_CODE="False").splitlines()[-1]
