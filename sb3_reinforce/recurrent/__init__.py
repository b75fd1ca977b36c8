"""REINFORCE with memory: sb3-contrib's recurrent policies, with masks of actions or without."""
