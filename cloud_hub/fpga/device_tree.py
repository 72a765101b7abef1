"""The device tree's overlay: tells the board's kernel of the circuit's DMA (as UIO) and of memory for it (u-dma-buf).

The address comes from the block design's hardware description (.hwh). Called by the child where there is a bitstream;
`dtc` compiles it where it is on PATH. No board's kernel has taken one yet.
Source: linux,uio-name in drivers/uio/uio_pdrv_genirq.c; the read-me of ikwzm/udmabuf.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from cloud_hub.fpga.request import FpgaError
from modules.overlay import Stream

BUFFER_BYTES = 4 * 1024 * 1024
COMPILE_DEADLINE_S = 60.0
_RANGE = re.compile(r"<MEMRANGE\b[^>]*>")
_ATTRIBUTE = re.compile(r'(\w+)="([^"]*)"')


def registers_of(hardware: str, stream: Stream) -> tuple[int, int]:
    """Address and size of the DMA's registers. Raises FpgaError("fpga-tool") when the design has no such DMA."""
    wanted = f"{stream.hierarchy}_{stream.dma}"
    for found in _RANGE.findall(hardware):
        said = dict(_ATTRIBUTE.findall(found))
        if said.get("INSTANCE") == wanted and said.get("MEMTYPE", "").upper() == "REGISTER":
            first, last = (int(said[name], 16) for name in ("BASEVALUE", "HIGHVALUE"))
            return first, last - first + 1
    raise FpgaError("fpga-tool", f"the block design has no registers of {wanted}")


def source(address: int, size: int, stream: Stream, wide: bool) -> str:
    """`wide` is for processors of 64 bits, whose root counts in two cells."""

    def cells(number: int) -> str:
        return f"{number >> 32:#x} {number & 0xFFFFFFFF:#x}" if wide else f"{number:#x}"

    return f"""\
/dts-v1/;
/plugin/;
/ {{
    fragment@0 {{
        target-path = "/";
        __overlay__ {{
            {stream.registers}@{address:x} {{
                compatible = "generic-uio";
                linux,uio-name = "{stream.registers}";
                reg = <{cells(address)} {cells(size)}>;
            }};
            mooring-buffer {{
                compatible = "ikwzm,u-dma-buf";
                device-name = "{stream.buffer}";
                size = <{cells(BUFFER_BYTES)}>;
                sync-mode = <1>;
            }};
        }};
    }};
}};
"""


def compile_tree(text: str, work: Path, target: Path) -> str:
    """Why there is none, or nothing. Raises FpgaError("fpga-tool") when the compiler refuses it."""
    dtc = shutil.which("dtc")
    if dtc is None:
        return "no device tree: dtc is not on PATH"
    written = work / "overlay.dtso"
    written.write_text(text)
    command = [dtc, "-q", "-@", "-I", "dts", "-O", "dtb", "-o", str(target), str(written)]
    try:
        done = subprocess.run(command, capture_output=True, timeout=COMPILE_DEADLINE_S, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FpgaError("fpga-tool", f"dtc: {error}") from error
    if done.returncode != 0:
        raise FpgaError("fpga-tool", f"dtc ended with {done.returncode}: {done.stderr.decode(errors='replace')[:500]}")
    return ""
