"""What an FPGA module's `overlay.json` says: the circuit's tensors, the board it is for, and its files by purpose.

Written by `cloud_hub.fpga`, read by the hub's build and by the device (`agent.fpga`, `agent.backends.fpga`). Pure.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

import msgspec

from modules.errors import MALFORMED, ModuleError
from modules.tensors import TensorSpec

OVERLAY_PATH = "overlay.json"
BOARD, EMULATION = "board", "emulation"  # the providers that an FPGA module may ask for
MAX_OVERLAY_BYTES = 256 * 1024
MAX_ELEMENTS = 1 << 20  # of one tensor's row: more do not fit into a circuit that is laid out for all of them
EMULATION_NAME = re.compile(r"emulation-[a-z0-9_]{1,16}\.so")


class OverlayError(ModuleError):
    """The description is not one that this version understands, or does not fit itself."""

    key = "overlay-invalid"


class Port(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One tensor at the circuit's edge. On the bus every element is an FP32; inside it has the fixed-point `type`, such
    as "ap_fixed<16,6>". The first dimension is -1: rows go through one by one.
    """

    name: str
    shape: tuple[int, ...]
    type: str

    def __post_init__(self) -> None:
        if not self.name or len(self.shape) < 2 or self.shape[0] != -1 or min(self.shape[1:]) < 1:
            raise OverlayError(f"port {self.name!r}: expected a shape as [-1, 64], got {list(self.shape)}")
        if self.row > MAX_ELEMENTS:
            raise OverlayError(f"port {self.name}: expected at most {MAX_ELEMENTS} elements in a row, got {self.row}")

    @property
    def row(self) -> int:
        """Elements of one row."""
        count = 1
        for size in self.shape[1:]:
            count *= size
        return count

    @property
    def spec(self) -> TensorSpec:
        return TensorSpec(self.name, "FP32", self.shape)


class Stream(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rows go in and out as AXI streams through one AXI DMA in simple mode. `dma` is its name in the block design,
    `hierarchy` the group that it is in. `registers` is the name of the UIO device that maps its registers, `buffer`
    that of the u-dma-buf device; both are of the device tree overlay.
    """

    dma: str = "axi_dma_0"
    hierarchy: str = "hier_0"
    registers: str = "mooring-dma"
    buffer: str = "udmabuf0"


class Overlay(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """`bitstream` (.bit), `raw_bitstream` (.bit.bin, for the kernel's FPGA manager), `hardware` (.hwh) and
    `device_tree` (.dtbo) are paths inside the module, empty where the vendor's tool was not there. `emulation` holds,
    by machine (as `uname -m` says it), the library that computes bit for bit what the circuit does. `source_sha256` is
    the digest of the generated sources that both were made from. `clock_ns` is the period of the clock.
    """

    input: Port
    output: Port
    board: str
    part: str
    clock_ns: float
    precision: str
    source_sha256: str
    stream: Stream = Stream()
    bitstream: str = ""
    raw_bitstream: str = ""
    hardware: str = ""
    device_tree: str = ""
    emulation: dict[str, str] = {}
    tools: dict[str, str] = {}
    format: int = 1

    def __post_init__(self) -> None:
        if self.format != 1:
            raise OverlayError(f"overlay: expected format 1, got {self.format}")
        for path in self.paths:
            parts = PurePosixPath(path)
            if parts.is_absolute() or ".." in parts.parts or "\\" in path:
                raise OverlayError(f"overlay: expected paths inside the module, got {path[:200]!r}")

    @property
    def paths(self) -> tuple[str, ...]:
        """The files that are named here."""
        named = (self.bitstream, self.raw_bitstream, self.hardware, self.device_tree, *self.emulation.values())
        return tuple(path for path in named if path)


def decode_overlay(data: bytes) -> Overlay:
    """Raises OverlayError."""
    if len(data) > MAX_OVERLAY_BYTES:
        raise OverlayError(f"overlay: expected at most {MAX_OVERLAY_BYTES} bytes, got {len(data)}")
    try:
        return msgspec.json.decode(data, type=Overlay)
    except MALFORMED as error:
        raise OverlayError(f"{OVERLAY_PATH}: {error}") from error


def encode_overlay(overlay: Overlay) -> bytes:
    """Readable, and the same bytes for the same overlay."""
    return msgspec.json.format(msgspec.json.encode(overlay, order="sorted"), indent=2) + b"\n"
