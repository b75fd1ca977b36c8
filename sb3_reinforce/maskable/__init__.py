"""REINFORCE that draws its actions among those that the state allows, with sb3-contrib's maskable policies."""
