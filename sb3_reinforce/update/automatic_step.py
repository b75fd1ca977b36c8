"""The natural step where the policy allows it, else the optimizer's."""

import warnings

import torch as th

from sb3_reinforce.actor_critic.actor_critic import NoNaturalStepError
from sb3_reinforce.actor_critic.batch import Batch
from sb3_reinforce.actor_critic.parameters import Parameters
from sb3_reinforce.update.gradients import Gradients
from sb3_reinforce.update.natural_step import NaturalStep, check_second_derivative
from sb3_reinforce.update.policy_step import OptimizerStep


class AutomaticStep(NaturalStep):
    """
    The natural step, and that of the optimizer for a policy that has none: because its layers cannot be differentiated
    twice, or because the KL divergence between its distributions is not known.

    :param model: The model that it belongs to
    """

    # A batch without a direction is no surprise to a user who has not asked for directions
    warns_of_direction = False

    _refused: str | None = None
    _warned_of: str | None = None

    @property
    def moves_shared_layers(self) -> bool:  # type: ignore[override]
        return self._refused is not None

    def check(self) -> None:
        """Nothing is refused."""

    def begin(self) -> None:
        self._refused = None  # the policy may be another one
        refused: str | None = None
        try:
            super().check()
            check_second_derivative(self.model.actor_critic)
        except NoNaturalStepError as error:
            refused = str(error)
        for reason in self.model.workers.gather(refused):
            if reason is not None:
                self._fall_back(reason)
        self._begin_together()

    def take(self, gradients: Gradients, batch: Batch, weights: th.Tensor, parameters: Parameters) -> dict[str, float]:
        if self._refused is None:
            try:
                return super().take(gradients, batch, weights, parameters)
            except NoNaturalStepError as error:  # of an observation that could not be tried before
                self._fall_back(str(error))
        return OptimizerStep.take(self, gradients, batch, weights, parameters)

    def _fall_back(self, reason: str) -> None:
        if self._warned_of != reason:  # once per reason, however often `learn` is called
            self._warned_of = reason
            warnings.warn(
                "The policy takes the steps of its optimizer instead of natural ones (without this warning with "
                f"`natural_gradient=False`): {reason}",
                UserWarning,
                stacklevel=2,
            )
        self._refused = reason
