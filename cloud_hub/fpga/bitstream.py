"""A .bit of the vendor's tool as the .bit.bin that the kernel's FPGA manager takes. Pure; called by `vendor`.

A .bit is a head of tagged fields (a design, b part, c date, d time, e length and data); the raw form is the data alone
with the bytes of each 32-bit word turned round, for Zynq-7000 and Zynq UltraScale+ alike. Source: the head as described
by Xilinx's users since ISE, the order of bytes by zynq-fpga.c of Linux, which looks for the sync word 66 55 99 AA.
"""

from __future__ import annotations

import array

_MAGIC = bytes.fromhex("00090ff00ff00ff00ff0000001")
_SYNC = bytes.fromhex("66 55 99 aa")


def part_of(bit: bytes) -> str:
    """Such as 7z020clg400. Raises ValueError when it is no .bit file."""
    return _fields(bit)["b"].rstrip(b"\0").decode("ascii", "replace")


def raw(bit: bytes) -> bytes:
    """Raises ValueError when it is no .bit file, is damaged, or has no sync word."""
    data = _fields(bit)["e"]
    if len(data) % 4:
        raise ValueError(f"bitstream: expected whole 32-bit words, got {len(data)} bytes")
    words = array.array("I", data)
    words.byteswap()
    turned = words.tobytes()
    if _SYNC not in turned[:4096]:
        raise ValueError("bitstream: expected a sync word within the first 4096 bytes, got none")
    return turned


def _fields(bit: bytes) -> dict[str, bytes]:
    if not bit.startswith(_MAGIC):
        raise ValueError("bitstream: expected a .bit file, got something else")
    at, found = len(_MAGIC), {}
    while at < len(bit):
        tag, wide = chr(bit[at]), 4 if bit[at : at + 1] == b"e" else 2
        size = int.from_bytes(bit[at + 1 : at + 1 + wide], "big")
        start = at + 1 + wide
        if start + size > len(bit):
            raise ValueError(f"bitstream: field {tag!r}: expected {size} bytes, got {len(bit) - start}: it is damaged")
        found[tag] = bit[start : start + size]
        at = start + size
    if "b" not in found or "e" not in found:
        raise ValueError("bitstream: expected the part and the data, got a head without them")
    return found
