"""Batches of one device that two replicas got: the later one waits for the earlier, which the other is storing.

A device has several batches under way, and a broker gives each to another replica. Which comes first in the database
is told by their numbers; one that came too soon is tried again for a moment, in place of the device's own patience.
Built by `composition`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from modules.messages import Ack, Batch

PAUSES_S: Final = (0.05, 0.1, 0.2, 0.4, 0.8)
Commit = Callable[[str, Batch], Awaitable[Ack | None]]


def in_turn(commit: Commit) -> Commit:
    """`commit`, again while it does not acknowledge, about a second and a half in all."""

    async def commit_in_turn(device: str, batch: Batch) -> Ack | None:
        ack = await commit(device, batch)
        for pause_s in PAUSES_S:
            if ack is not None:
                break
            await asyncio.sleep(pause_s)
            ack = await commit(device, batch)
        return ack

    return commit_in_turn
