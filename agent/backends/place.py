"""What a device gives a backend: where the files are, and what of the machine it may use. No heavy imports."""

from __future__ import annotations

from pathlib import Path

import msgspec

from agent.fpga.circuit import Circuit
from modules.runtime import CPU


class Place(msgspec.Struct, frozen=True):
    """`slot` is the folder of the module's files, `signed` their paths. `threads` is how many one prediction may use,
    `parallel` how many predictions may run at once (0: as the backend likes). `providers` is the device's own order.
    `cache` is a folder of this module's digest for what the runtime compiles, None where there is none.
    `gpu_memory_mib` caps what is taken of an accelerator's memory (0: no cap). `root` is where /sys and /dev stand.
    `circuit` is what there is of an FPGA.
    """

    slot: Path
    signed: frozenset[str] = frozenset()
    threads: int = 1
    parallel: int = 0
    providers: tuple[str, ...] = (CPU,)
    cache: Path | None = None
    gpu_memory_mib: int = 0
    root: Path = Path("/")
    circuit: Circuit = Circuit()
