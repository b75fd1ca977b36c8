"""The update: the gradient estimate, the policy step and the regression of the critic."""
