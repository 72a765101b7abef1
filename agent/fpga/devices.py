"""The devices of a programmed circuit: UIO for the DMA's registers, u-dma-buf for memory, found by name in /sys.

Source: Documentation/driver-api/uio-howto.rst; the read-me of ikwzm/udmabuf (class u-dma-buf, phys_addr, size).
"""

from __future__ import annotations

import os
from pathlib import Path

from agent.fpga.circuit import Circuit
from agent.fpga.manager import FpgaError
from modules.overlay import Stream

MAX_REGISTERS_BYTES = 1024 * 1024
MAX_BUFFER_BYTES = 1024 * 1024 * 1024


def open_devices(root: Path, stream: Stream) -> Circuit:
    """The caller closes the handles. Raises FpgaError with what is missing."""
    uio = _uio(root, stream.registers)
    buffer = root / "sys/class/u-dma-buf" / stream.buffer
    if not buffer.is_dir():
        raise FpgaError(f"{buffer}: no such u-dma-buf device; is its driver loaded and in the device tree?")
    sizes = _number(uio / "maps/map0/size"), _number(buffer / "size"), _number(buffer / "phys_addr")
    if not (0 < sizes[0] <= MAX_REGISTERS_BYTES and 0 < sizes[1] <= MAX_BUFFER_BYTES):
        raise FpgaError(f"{uio.name}, {buffer.name}: expected sizes of devices, got {sizes[0]} and {sizes[1]} bytes")
    registers = _open(root / "dev" / uio.name)
    try:
        memory = _open(root / "dev" / buffer.name)
    except BaseException:
        os.close(registers)
        raise
    return Circuit(registers, sizes[0], memory, sizes[1], sizes[2], programmed=True)


def _uio(root: Path, name: str) -> Path:
    found: list[str] = []
    for folder in sorted((root / "sys/class/uio").glob("uio*")):
        found.append(_text(folder / "name"))
        if found[-1] == name:
            return folder
    raise FpgaError(f"/sys/class/uio: expected a device named {name!r}, got {', '.join(found) or 'none'}")


def _open(path: Path) -> int:
    """Uncached (O_SYNC): what the processor writes must be what the circuit reads."""
    try:
        return os.open(path, os.O_RDWR | os.O_SYNC | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError as error:
        raise FpgaError(f"{path}: {error.strerror}") from error


def _number(path: Path) -> int:
    try:
        return int(_text(path), 0)
    except ValueError as error:
        raise FpgaError(f"{path}: expected a number: {error}") from error


def _text(path: Path) -> str:
    try:
        return path.read_text()[:200].strip()
    except OSError as error:
        raise FpgaError(f"{path}: {error.strerror}") from error
