"""
How a policy is asked: for actions while a rollout is played, for values and log-probabilities of a batch afterwards.

A policy of another kind needs an :class:`~sb3_reinforce.actor_critic.actor_critic.ActorCritic` of its own, and nothing else.
"""
