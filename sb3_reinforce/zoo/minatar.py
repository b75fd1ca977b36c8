"""MinAtar's games, for the entries in ``zoo_configs``: Gymnasium no longer finds them by itself."""

from importlib.util import find_spec

import gymnasium as gym

#: The games by the names that MinAtar has for them
GAMES = {
    "Asterix": "asterix",
    "Breakout": "breakout",
    "Freeway": "freeway",
    "Seaquest": "seaquest",
    "SpaceInvaders": "space_invaders",
}


def register_games() -> None:
    """
    Register the games with Gymnasium as MinAtar does, ``-v0`` with six actions and ``-v1`` with those that a game has a use
    for, if MinAtar is installed. It is not imported, as this takes seconds. Further calls change nothing.
    """
    if find_spec("minatar") is None:
        return
    for name, game in GAMES.items():
        for version, minimal in (("v0", False), ("v1", True)):
            env_id = f"MinAtar/{name}-{version}"
            if env_id not in gym.registry:
                gym.register(env_id, "minatar.gym:BaseEnv", kwargs={"game": game, "use_minimal_action_set": minimal})
