"""Server-sent events as they come over the wire, as the HTML standard has them (9.2.6). Used by `stream_calls`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

MAX_FRAME_BYTES: Final = 8 * 1024 * 1024


@dataclass(frozen=True)
class Frame:
    """One block: its kind, its data without the last line end, and the last id that was told, up to this one.

    Blocks that only say an id have no data.
    """

    kind: str
    data: bytes
    last_id: str


class Frames:
    """Bytes in, frames out. Raises ValueError for a frame that does not end."""

    def __init__(self) -> None:
        self._rest = b""
        self._last_id = ""

    def feed(self, piece: bytes) -> list[Frame]:
        """What is whole now, in order."""
        blocks = (self._rest + piece).replace(b"\r\n", b"\n").split(b"\n\n")
        self._rest = blocks.pop()
        if len(self._rest) > MAX_FRAME_BYTES:
            raise ValueError(f"expected an event of at most {MAX_FRAME_BYTES} bytes")
        return [self._frame(block) for block in blocks]

    def _frame(self, block: bytes) -> Frame:
        kind, data = "", []
        for line in block.split(b"\n"):
            name, _, value = line.partition(b":")
            value = value.removeprefix(b" ")
            if name == b"data":
                data.append(value)
            elif name == b"event":
                kind = value.decode("utf-8", "replace")
            elif name == b"id" and b"\0" not in value:
                self._last_id = value.decode("utf-8", "replace")
        return Frame(kind, b"\n".join(data), self._last_id)
