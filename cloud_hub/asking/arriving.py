"""What arrives of this room in devices' batches: results of commands, samples that were asked for, pieces of blobs.

Called by `monitoring.committing`, in the transaction that takes the batches.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable

from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_hub.asking import book
from cloud_hub.asking.pieces import keep_pieces
from cloud_hub.monitoring.intake import KeptSample, Parsed
from modules.messages import AgentEvent
from modules.pieces import BlobPiece


async def keep_asked(connection: AsyncConnection, items: Iterable[tuple[str, Parsed]], now: float) -> None:
    """Each item with the device that sent it; others than those of this room are passed over."""
    pieces: list[tuple[str, BlobPiece]] = []
    arrived: dict[str, Counter[str]] = defaultdict(Counter)
    for device, item in items:
        if isinstance(item, BlobPiece):
            pieces.append((device, item))
        elif isinstance(item, KeptSample) and item.sample.request:
            arrived[device][item.sample.request] += 1
        elif isinstance(item, AgentEvent) and item.command is not None:
            await book.end(connection, device, item.command, now)
    for device, counts in arrived.items():
        await book.arrived(connection, device, counts)
    await keep_pieces(connection, pieces, now)
