"""The boards that overlays are built for, and how they differ. Pure; called by `request` and the child.

hls4ml 1.3 has block designs for the PYNQ-Z2 and the ZCU102. That of the KV260 is the ZCU102's with the KV260's own
part and preset: no vendor tool has run it yet, see docs/extend/fpga.md.
"""

from __future__ import annotations

import msgspec


class Board(msgspec.Struct, frozen=True):
    """`design` is the board whose block design hls4ml writes; `replaced` are the words that are others here. `machine`
    is that of the board's processors, as `uname -m` says it.
    """

    name: str
    part: str
    machine: str
    design: str
    replaced: dict[str, str] = {}


_ZCU102_PART = "xczu9eg-ffvb1156-2-e"
_KV260_PART = "xck26-sfvc784-2LV-c"

BOARDS = {
    board.name: board
    for board in (
        Board("pynq-z2", "xc7z020clg400-1", "armv7l", "pynq-z2"),
        Board("zcu102", _ZCU102_PART, "aarch64", "zcu102"),
        Board(
            "kria-kv260",
            _KV260_PART,
            "aarch64",
            "zcu102",
            {_ZCU102_PART: _KV260_PART, "xilinx.com:zcu102:part0:3.3": "xilinx.com:kv260_som:part0:1.4"},
        ),
    )
}
