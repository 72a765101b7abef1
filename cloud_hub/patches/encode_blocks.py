"""Pieces of the target to the blocks of a patch."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from cloud_hub.patches.encode_sections import bytes_section, sint, uint
from cloud_hub.patches.encode_streams import encode_stream
from cloud_hub.patches.encode_types import Buffer, Element, Piece
from modules.patch.form import MAX_BLOCK, MAX_CONTROL, STREAM_BITS, Codec, Mode, Op

# Elements of a difference, or new ones, or plain bytes: each kind in a stream of its own.
Kind = tuple[bool, Element | None]
_MAX_PIECES = MAX_CONTROL // 20
# Zstandard takes no shorter ones.
_LEAST_PREFIX = 64
_LEAST_REACH, _REACH_PER_BYTE = 1 << 16, 16


def blocks(old: Buffer, new: Buffer, pieces: Iterable[Piece], codecs: Collection[Codec]) -> Iterator[bytes]:
    """The records of the patch, in order."""
    cursor = 0
    for gathered in _gather(_merge(pieces)):
        block = _Block(old, new, cursor)
        for piece in gathered:
            block.add(piece)
        cursor = block.cursor
        yield block.record(codecs)


def _merge(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """References that continue each other are one."""
    held: Piece | None = None
    for piece in pieces:
        if held is not None and _continues(held, piece):
            held = held._replace(length=held.length + piece.length)
            continue
        if held is not None:
            yield held
        held = piece
    if held is not None:
        yield held


def _continues(one: Piece, other: Piece) -> bool:
    if one.element != other.element or (one.base is None) != (other.base is None):
        return False
    return one.base is None or other.base is None or one.base + one.length == other.base


def _gather(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """As many as one block may hold; long ones are cut at whole elements."""
    gathered: list[Piece] = []
    room = MAX_BLOCK
    for whole in pieces:
        piece: Piece | None = whole
        while piece is not None:
            if not room or len(gathered) == _MAX_PIECES:
                yield gathered
                gathered, room = [], MAX_BLOCK
            head, piece = _cut(piece, room)
            if head is None:
                room = 0
                continue
            gathered.append(head)
            room -= 0 if _copied(head) else head.length
    if gathered:
        yield gathered


def _copied(piece: Piece) -> bool:
    return piece.base is not None and piece.element is None


def _cut(piece: Piece, room: int) -> tuple[Piece | None, Piece | None]:
    if _copied(piece) or piece.length <= room:
        return piece, None
    width = piece.element.width if piece.element else 1
    length = room // width * width
    if not length:
        return None, piece
    rest = piece._replace(
        start=piece.start + length,
        length=piece.length - length,
        base=None if piece.base is None else piece.base + length,
    )
    return piece._replace(length=length), rest


class _Block:
    def __init__(self, old: Buffer, new: Buffer, cursor: int) -> None:
        self._old = old
        self._new = new
        self.cursor = cursor
        self._control = bytearray()
        self._streams: dict[Kind, int] = {}
        self._after: list[list[bytes]] = []
        self._before: list[list[bytes]] = []
        self._near: list[int] = []

    def add(self, piece: Piece) -> None:
        stream = 0 if _copied(piece) else self._stream(piece)
        self._control += uint(piece.length << STREAM_BITS | stream)
        if piece.base is not None:
            self._control += sint(piece.base - self.cursor)
            self.cursor = piece.base + piece.length
            if stream:
                self._before[stream - 1].append(self._old[piece.base : piece.base + piece.length])
        if stream:
            self._after[stream - 1].append(self._new[piece.start : piece.start + piece.length])

    def _stream(self, piece: Piece) -> int:
        kind = (piece.base is not None, piece.element)
        if kind not in self._streams:
            self._streams[kind] = len(self._streams) + 1
            self._after.append([])
            self._before.append([])
            self._near.append(self.cursor)
        return self._streams[kind]

    def record(self, codecs: Collection[Codec]) -> bytes:
        forms, bodies = bytearray(), []
        for (different, element), number in self._streams.items():
            new = b"".join(self._after[number - 1])
            if element is None:
                form, body = int(Mode.BYTES), bytes_section(new, codecs, self._prefix(number - 1, len(new)))
            else:
                old = b"".join(self._before[number - 1]) if different else None
                form, body = encode_stream(new, old, element, codecs)
            forms.append(form)
            bodies.append(body)
        control = uint(len(self._control)) + bytes_section(bytes(self._control), codecs)
        return bytes([Op.BLOCK]) + control + uint(len(forms)) + bytes(forms) + b"".join(bodies)

    def _prefix(self, stream: int, length: int) -> tuple[int, bytes] | None:
        """The base around the place where the stream begins: more for more bytes, since the device must read it."""
        reach = min(MAX_BLOCK, max(_LEAST_REACH, _REACH_PER_BYTE * length))
        start = max(0, self._near[stream] - reach)
        old = self._old[start : self._near[stream] + reach]
        return (start, old) if len(old) >= _LEAST_PREFIX else None
