"""How a rollout is played, and what its timesteps were worth."""
