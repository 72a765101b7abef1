"""Numbers of things as people say them. Used wherever a message counts."""

from __future__ import annotations


def counted(number: int, thing: str) -> str:
    """1 device, 2 devices."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
