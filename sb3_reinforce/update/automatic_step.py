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
    The natural step, and that of the optimizer for a policy that has none. Whether it has is tried out when learning begins
    with it, and kept with the model.

    :param model: The model that it belongs to
    """

    # A batch without a direction is no surprise to a user who has not asked for directions
    warns_of_direction = False

    _is_natural = True
    _warned_of: str | None = None

    def check(self) -> None:
        """Nothing is refused."""

    def begin(self) -> None:
        self._is_natural, self.moves_shared_layers = True, False  # the policy may be another one
        known = self._refusal()
        outcomes = self.model.workers.gather((known is not None, self._try() if known is None else known))
        if outcomes[0][0]:  # rank 0's model goes on with its run
            outcomes = outcomes[:1]
        self._keep_refusal("")
        for _, reason in outcomes:
            if reason:
                self._fall_back(reason)
        self._begin_together()

    def _try(self) -> str:
        try:
            super().check()
            check_second_derivative(self.model.actor_critic)
        except th.cuda.OutOfMemoryError:  # says nothing of the policy
            raise
        except Exception as error:  # whatever a user's network raises: the optimizer's step may be possible all the same
            return first_line(error)
        return ""

    def take(self, gradients: Gradients, batch: Batch, weights: th.Tensor, parameters: Parameters) -> dict[str, float]:
        if self._is_natural:
            try:
                return super().take(gradients, batch, weights, parameters)
            except th.cuda.OutOfMemoryError:  # says nothing of the policy
                raise
            except (NoNaturalStepError, RuntimeError) as error:  # of an observation that could not be tried before
                if self.model.workers.size > 1:  # the others know nothing of it
                    raise
                self._fall_back(first_line(error))
        return OptimizerStep.take(self, gradients, batch, weights, parameters)

    def _fall_back(self, reason: str) -> None:
        self._is_natural, self.moves_shared_layers = False, True
        self._keep_refusal(reason)
        if self._warned_of != reason:  # once per reason, however often `learn` is called
            self._warned_of = reason
            warnings.warn(
                "The policy has no natural steps, and takes those of its optimizer, for which `learning_rate=0.003` is a "
                f"better start; `natural_gradient=False` asks for them without this warning. {reason}",
                UserWarning,
                stacklevel=2,
            )


def first_line(error: Exception) -> str:
    """
    :param error: An error
    :return: The first line of what it says, or its class
    """
    return str(error).partition("\n")[0] or type(error).__name__
