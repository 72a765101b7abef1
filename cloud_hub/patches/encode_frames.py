"""The target as one compressed frame: what full compression or a generic patch makes of a file without tensors."""

from __future__ import annotations

import lzma
from collections.abc import Collection

from cloud_hub.patches.encode_sections import uint
from cloud_hub.patches.encode_types import Buffer
from modules.patch.codecs import LZMA_FILTERS, zstandard
from modules.patch.form import MAX_PREFIX, MAX_WINDOW_LOG, Codec, Op

_LEVEL = 19
# Up to here a frame is tried if much of the patch is plain bytes; level 19 takes seconds for each ten megabytes.
_MOST = 64 << 20
_SMALL = 1 << 18


def worth_a_frame(base_size: int, target_size: int, patch_size: int, plain: int) -> bool:
    """The file is small, or plain bytes weigh so much in the patch that compressing all at once may save some."""
    if 0 < target_size <= _SMALL:
        return True
    return 0 < target_size <= _MOST and 8 * plain >= patch_size and (2 * plain > target_size or base_size <= MAX_PREFIX)


def frame(old: Buffer, new: Buffer, codecs: Collection[Codec]) -> bytes:
    """The one record of the patch. Takes the target's size in memory, and the base's up to MAX_PREFIX."""
    data = bytes(new)
    if Codec.ZSTD not in codecs:
        return _record(Codec.LZMA, len(data), b"", lzma.compress(data, lzma.FORMAT_RAW, filters=LZMA_FILTERS))
    candidates = [_record(Codec.ZSTD, len(data), b"", _compress(data, None))]
    if Codec.ZSTD_PREFIX in codecs and 64 <= len(old) <= MAX_PREFIX:
        where = uint(0) + uint(len(old))
        candidates.append(_record(Codec.ZSTD_PREFIX, len(data), where, _compress(data, bytes(old))))
    return min(candidates, key=len)


def _record(codec: Codec, length: int, where: bytes, coded: bytes) -> bytes:
    return bytes([Op.FRAME]) + uint(length) + bytes([codec]) + where + uint(len(coded)) + coded


def _compress(data: bytes, old: bytes | None) -> bytes:
    zstd = zstandard()
    options = {zstd.CompressionParameter.compression_level: _LEVEL}
    if old is None:
        coded: bytes = zstd.compress(data, options=options)
        return coded
    # The window must reach from the target's end to the base's start.
    reach = max(10, min(MAX_WINDOW_LOG, (len(data) + len(old)).bit_length()))
    options |= {zstd.CompressionParameter.window_log: reach}
    options |= {zstd.CompressionParameter.enable_long_distance_matching: 1}
    coded = zstd.compress(data, options=options, zstd_dict=zstd.ZstdDict(old, is_raw=True).as_prefix)
    return coded
