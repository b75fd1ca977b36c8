"""The hyperparameter search: what RL Zoo draws for a trial, and how to read a trial of a study."""

import math
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    import optuna

NET_ARCHS = {"tiny": [64], "small": [64, 64], "medium": [256, 256]}
ACTIVATION_FNS = {"tanh": nn.Tanh, "relu": nn.ReLU}
BATCH_UNITS = ("steps", "episodes")


def sample_reinforce_params(
    trial: "optuna.Trial", n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    Sampler for REINFORCE hyperparams, always with complete episodes, whatever the initial entry says.

    :param trial: The trial to draw for
    :param n_actions: Number of dimensions of a continuous action, 0 for other actions
    :param n_envs: Number of training environments
    :param additional_args: RL Zoo's information about replay buffers
    :return: Arguments of the algorithm
    """
    # Every trial draws every parameter, even if its other choices make it idle: the multivariate sampler
    # learns from past trials only within the same search space.
    doublings = int(math.log2(n_envs))
    sampled_params = {
        "baseline": trial.suggest_categorical("baseline", ["value", "leave_one_out", "mean", "none"]),
        "reward_to_go": trial.suggest_categorical("reward_to_go", [True, False]),
        "batch_unit": trial.suggest_categorical("batch_unit", list(BATCH_UNITS)),
        # Quotas of one environment, for batches of up to 2**13 steps or 2**6 episodes of all environments together.
        # A single environment plays at least two episodes, as `leave_one_out` needs another episode.
        "n_steps_pow": trial.suggest_int("n_steps_pow", 5, max(6, 13 - doublings)),
        "n_episodes_pow": trial.suggest_int("n_episodes_pow", 1 if n_envs == 1 else 0, max(1, 6 - doublings)),
        "n_critic_updates": trial.suggest_int("n_critic_updates", 0, 20),
        "batch_size": trial.suggest_categorical("batch_size", [64, 256, 1024]),
        "learning_rate": trial.suggest_float("learning_rate", 1e-4, 3e-2, log=True),
        "critic_learning_rate": trial.suggest_float("critic_learning_rate", 1e-4, 3e-2, log=True),
        "natural_gradient": trial.suggest_categorical("natural_gradient", [True, False]),
        "target_kl": trial.suggest_float("target_kl", 1e-3, 0.1, log=True),
        "cg_damping": trial.suggest_float("cg_damping", 0.01, 10.0, log=True),
        "gae_lambda": trial.suggest_categorical("gae_lambda", [0.9, 0.95, 0.98, 0.99, 1.0]),
        "one_minus_gamma": trial.suggest_float("one_minus_gamma", 1e-4, 0.1, log=True),
        "ent_coef": trial.suggest_float("ent_coef", 1e-8, 0.1, log=True),
        "normalize_advantage": trial.suggest_categorical("normalize_advantage", [True, False]),
        "max_grad_norm": trial.suggest_float("max_grad_norm", 0.3, 5.0, log=True),
        "net_arch": trial.suggest_categorical("net_arch", list(NET_ARCHS)),
        "activation_fn": trial.suggest_categorical("activation_fn", list(ACTIVATION_FNS)),
    }
    if n_actions > 0:
        sampled_params["log_std_init"] = trial.suggest_float("log_std_init", -2.0, 0.5)

    hyperparams = convert_reinforce_params(sampled_params)
    # Display true values
    for name in ("gamma", "gae_lambda", "n_steps", "n_episodes"):
        trial.set_user_attr(name, hyperparams[name])
    return hyperparams


def convert_reinforce_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    Turn the parameters of a trial, as the study stores them, into arguments of the algorithm.

    :param sampled_params: Parameters of a trial
    :return: The arguments of the algorithm with which the trial was run
    :raises ValueError: If the parameters are not those of a trial of REINFORCE
    """
    hyperparams = sampled_params.copy()
    try:
        baseline = hyperparams.pop("baseline")
        batch_unit = hyperparams.pop("batch_unit")
        n_steps, n_episodes = 2 ** hyperparams.pop("n_steps_pow"), 2 ** hyperparams.pop("n_episodes_pow")
        gamma = 1 - hyperparams.pop("one_minus_gamma")
        gae_lambda = hyperparams.pop("gae_lambda")
        net_arch = NET_ARCHS[hyperparams.pop("net_arch")]
        policy_kwargs: dict[str, Any] = {
            "net_arch": {"pi": list(net_arch), "vf": list(net_arch)},
            "activation_fn": ACTIVATION_FNS[hyperparams.pop("activation_fn")],
        }
    except KeyError as error:
        raise ValueError(f"The trial was not drawn by REINFORCE's sampler, or not to its end: it has no {error}.") from error
    if "log_std_init" in hyperparams:
        policy_kwargs["log_std_init"] = hyperparams.pop("log_std_init")

    return {
        **hyperparams,
        "baseline": None if baseline == "none" else baseline,
        "n_steps": n_steps,
        # Set even if idle, so that an entry's own `n_episodes` never overrides the drawn steps
        "n_episodes": n_episodes if batch_unit == "episodes" else None,
        "gamma": gamma,
        # Pure Monte Carlo with every other baseline
        "gae_lambda": gae_lambda if baseline == "value" and hyperparams["reward_to_go"] else 1.0,
        # An entry may have set it to `False`, which not every baseline allows
        "complete_episodes": True,
        "policy_kwargs": policy_kwargs,
    }


def sample_recurrent_params(
    trial: "optuna.Trial", n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    Sampler for the hyperparams of a recurrent policy: those of REINFORCE, and those of the LSTM.

    :param trial: The trial to draw for
    :param n_actions: Number of dimensions of a continuous action, 0 for other actions
    :param n_envs: Number of training environments
    :param additional_args: RL Zoo's information about replay buffers
    :return: Arguments of the algorithm
    """
    hyperparams = sample_reinforce_params(trial, n_actions, n_envs, additional_args)
    lstm = {
        "lstm_hidden_size": trial.suggest_categorical("lstm_hidden_size", [16, 32, 64, 128, 256]),
        "enable_critic_lstm": trial.suggest_categorical("enable_critic_lstm", [False, True]),
    }
    return {**hyperparams, "policy_kwargs": {**hyperparams["policy_kwargs"], **lstm}}


def convert_recurrent_params(sampled_params: dict[str, Any]) -> dict[str, Any]:
    """
    Turn the parameters of a trial, as the study stores them, into arguments of the algorithm.

    :param sampled_params: Parameters of a trial
    :return: The arguments of the algorithm with which the trial was run
    :raises ValueError: If the parameters are not those of a trial of this algorithm
    """
    others = dict(sampled_params)
    try:
        lstm = {name: others.pop(name) for name in ("lstm_hidden_size", "enable_critic_lstm")}
    except KeyError as error:
        raise ValueError(
            f"The trial was not drawn by this algorithm's sampler, or not to its end: it has no {error}."
        ) from error
    hyperparams = convert_reinforce_params(others)
    return {**hyperparams, "policy_kwargs": {**hyperparams["policy_kwargs"], **lstm}}
