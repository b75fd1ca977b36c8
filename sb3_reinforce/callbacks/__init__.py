"""Callbacks for REINFORCE."""

from sb3_reinforce.callbacks.gradient_monitor import GradientMonitor, RunningAverages

__all__ = ["GradientMonitor", "RunningAverages"]
