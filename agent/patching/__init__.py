"""A new file from an old one and a patch, made in a process of its own. Called by the fetcher (`agent.transfer`)."""

from agent.patching.host import PATCH_UID, rebuild

__all__ = ["PATCH_UID", "rebuild"]
