"""Numbers of things, and states, as people say them. Used wherever a message counts or names a state."""

from __future__ import annotations


def counted(number: int, thing: str) -> str:
    """1 device, 2 devices."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def spoken(state: str) -> str:
    """`timed_out` as timed out. What programs read keeps the key."""
    return state.replace("_", " ")
