"""What a rollout was worth: returns and baselines, in NumPy alone."""
