"""The clients, of either kind of environment."""

from personalllm_env.adapters.openenv import GenerateClient, SelectClient

__all__ = ["GenerateClient", "SelectClient"]
