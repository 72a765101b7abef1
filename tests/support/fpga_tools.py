"""The programs of a build machine, played by scripts on PATH: the vendor's tools and compilers; and a bitstream."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

# Of the block design's hardware description, what is read.
HARDWARE = """<EDKSYSTEM><MEMORYMAP>
<MEMRANGE BASEVALUE="0x00000000" HIGHVALUE="0x1FFFFFFF" INSTANCE="processing_system7_0" MEMTYPE="MEMORY"/>
<MEMRANGE BASEVALUE="0x40400000" HIGHVALUE="0x4040FFFF" INSTANCE="hier_0_axi_dma_0" MEMTYPE="REGISTER"/>
</MEMORYMAP></EDKSYSTEM>
"""


def bit_file(part: str = "7z020clg400", words: tuple[int, ...] = (0xFFFFFFFF, 0xAA995566, 0x20000000)) -> bytes:
    """A .bit as the vendor's tool writes it: tagged fields before big-endian words."""
    texts = ((b"a", "design_1_wrapper;UserID=0XFFFFFFFF"), (b"b", part), (b"c", "2026/11/21"), (b"d", "12:00:00"))
    head = b"".join(tag + struct.pack(">H", len(text) + 1) + text.encode() + b"\0" for tag, text in texts)
    data = b"".join(struct.pack(">I", word) for word in words)
    return bytes.fromhex("00090ff00ff00ff00ff0000001") + head + b"e" + struct.pack(">I", len(data)) + data


class Tools:
    """Programs in a folder that stands before everything else on PATH."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        self._folder = folder

    def program(self, name: str, script: str) -> Path:
        """`script` is a shell's."""
        path = self._folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    def compiler(self, name: str, library: Path) -> None:
        """One that gives what another has made: real compilers take seconds."""
        self.program(name, f'for last; do :; done\n[ "$1" = -dumpfullversion ] && echo 99.1 || cp {library} "$last"')

    def vendor(self, bitstream: bytes) -> None:
        """The vendor's, where all goes well; what they were called with lies in calls.txt."""
        bit, calls = self._folder / "made.bit", self._folder / "calls.txt"
        bit.write_bytes(bitstream)
        hardware = self._folder / "made.hwh"
        hardware.write_text(HARDWARE)
        self.program("vivado_hls", f'echo "vivado_hls $*" >> {calls}')
        place = "overlay_vivado_accelerator/project_1"
        self.program(
            "vivado",
            f'if [ "$1" = -version ]; then echo "Vivado v2020.1 (64-bit)"; exit; fi\necho "vivado $*" >> {calls}\n'
            f"mkdir -p {place}.runs/impl_1 {place}.srcs/hw_handoff\ncp {bit} {place}.runs/impl_1/design_1_wrapper.bit\n"
            f"cp {hardware} {place}.srcs/hw_handoff/design_1.hwh && echo 'LUT 1234' > util.rpt",
        )

    @property
    def calls(self) -> list[str]:
        return (self._folder / "calls.txt").read_text().splitlines()
