"""How well does REINFORCE learn? See ``__main__.py``."""
