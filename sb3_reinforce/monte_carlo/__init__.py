"""Returns and baselines of a rollout, only in NumPy."""
