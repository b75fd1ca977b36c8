"""Playing a rollout, and the advantages of its timesteps."""
