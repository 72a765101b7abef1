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
from modules.commands import CommandResult
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
            ended = await book.end(connection, device, item.command, now)
            pieces += [(device, piece) for piece in (_within(item.command) if ended else ())]
    for device, counts in arrived.items():
        await book.arrived(connection, device, counts)
    await keep_pieces(connection, pieces, now)


def _within(result: CommandResult) -> list[BlobPiece]:
    """What came in the result itself, as the one piece that it is; its digest is checked with all others."""
    if not result.data or not book.brings(result) or len(result.data) != result.size:
        return []
    return [BlobPiece(result.sha256, result.size, 0, result.data)]
