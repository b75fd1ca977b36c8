"""The plain REINFORCE of the textbooks: what tests start from that compare gradients, steps or critics by hand."""

from typing import Any

#: A step of the optimizer along the gradient of the returns alone, and a critic in the units of the rewards
PLAIN: dict[str, Any] = {"natural_gradient": False, "normalize_returns": False, "ent_coef": 0.0, "batch_size": 256}
