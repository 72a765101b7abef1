"""An overlay's emulation library: its C interface, and what must hold before it is opened.

The library is native code made by `cloud_hub.fpga.emulation` from the same sources as the circuit. It is opened only
by the build's own child process and by a device's confined worker (`agent.backends.fpga_emulation`). Source of the
layout: the ELF specification (gABI 4.1), numbers of machines from its register.
"""

from __future__ import annotations

import ctypes
import struct
from pathlib import Path

from modules.overlay import OverlayError

ABI = 1
# The C interface. Arrays are C-contiguous float32; `rows` of the sizes that the two functions tell.
ABI_NAME, INPUT_NAME, OUTPUT_NAME, RUN_NAME = (
    "mooring_overlay_abi", "mooring_overlay_input", "mooring_overlay_output", "mooring_overlay_run",
)  # fmt: skip
# `uname -m` -> class (32 or 64 bit), number of the machine in the file's head.
_MACHINES = {"x86_64": (2, 62), "aarch64": (2, 183), "armv7l": (1, 40), "riscv64": (2, 243)}
_SHARED = 3
_LOAD = 1


class EmulationLibrary:
    """One opened library. `run` is not for several threads at once: the circuit's tables are filled on first use."""

    def __init__(self, path: Path, machine: str, inputs: int, outputs: int) -> None:
        """`inputs` and `outputs` are elements per row. Raises OverlayError."""
        check_library(path, machine)
        try:
            library = ctypes.CDLL(
                str(path) if path.is_absolute() else f"./{path}"
            )  # a bare name is looked for elsewhere
            found = getattr(library, ABI_NAME)(), getattr(library, INPUT_NAME)(), getattr(library, OUTPUT_NAME)()
            self._run = getattr(library, RUN_NAME)
        except (OSError, AttributeError) as error:
            raise OverlayError(f"{path.name}: {error}") from error
        if found != (ABI, inputs, outputs):
            text = f"expected interface {ABI} with {inputs} elements in and {outputs} out, got {found}"
            raise OverlayError(f"{path.name}: {text}")
        self._run.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
        self._run.restype = None

    def run(self, source: int, target: int, rows: int) -> None:
        """`source` and `target` are addresses. Releases the interpreter lock."""
        self._run(source, target, rows)


def check_library(path: Path, machine: str) -> None:
    """A whole shared library for this machine: the dynamic linker does not ask, it crashes. Raises OverlayError."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise OverlayError(f"{path.name}: {error}") from error
    if data[:4] != b"\x7fELF" or len(data) < 64:
        raise OverlayError(f"{path.name}: expected a shared library, got something else")
    width, number = data[4], int.from_bytes(data[18:20], "little")
    known = next((name for name, value in _MACHINES.items() if value == (width, number)), f"machine {number}")
    if machine != known or data[5] != 1:
        raise OverlayError(f"{path.name}: expected a library for {machine}, got one for {known}")
    if int.from_bytes(data[16:18], "little") != _SHARED:
        raise OverlayError(f"{path.name}: expected a shared library, got another kind of file")
    try:
        end = max(offset + size for offset, size in _segments(data, width))
    except (struct.error, ValueError) as error:
        raise OverlayError(f"{path.name}: expected a whole library, its head is damaged ({error})") from error
    if end > len(data):
        raise OverlayError(f"{path.name}: expected at least {end} bytes, got {len(data)}: it is damaged")


def _segments(data: bytes, width: int) -> list[tuple[int, int]]:
    """Where the parts that are mapped lie in the file, and the section table."""
    if width == 2:
        table, sections = struct.unpack_from("<QQ", data, 32)
        size, count, section_size, section_count = struct.unpack_from("<HHHH", data, 54)
        heads = (struct.unpack_from("<IIQQQQ", data, table + i * size) for i in range(count))
        found = [(head[2], head[5]) for head in heads if head[0] == _LOAD]
    else:
        table, sections = struct.unpack_from("<II", data, 28)
        size, count, section_size, section_count = struct.unpack_from("<HHHH", data, 42)
        short = (struct.unpack_from("<IIIII", data, table + i * size) for i in range(count))
        found = [(head[1], head[4]) for head in short if head[0] == _LOAD]
    if not found:
        raise ValueError("nothing to map")
    return [*found, (sections, section_size * section_count)]
