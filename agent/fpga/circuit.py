"""What the agent gives a worker of an FPGA module: open devices, or why there are none. Of `agent.sandbox.given`."""

from __future__ import annotations

import os

import msgspec


class Circuit(msgspec.Struct, frozen=True, omit_defaults=True):
    """`registers` and `buffer` are descriptors: of the UIO device with the DMA's registers, and of a u-dma-buf device,
    memory that the circuit can reach at the physical `address`. Both sizes are bytes. Without a circuit they are -1,
    and `why` says why. `programmed` is true once the module's bitstream is in the FPGA, whatever moves the data.
    `emulation` is the device's own word that an emulation may answer in the circuit's place.
    """

    registers: int = -1
    registers_bytes: int = 0
    buffer: int = -1
    buffer_bytes: int = 0
    address: int = 0
    programmed: bool = False
    emulation: bool = False
    why: str = ""

    @property
    def handles(self) -> tuple[int, ...]:
        return tuple(handle for handle in (self.registers, self.buffer) if handle >= 0)

    def close(self) -> None:
        """Here; who has inherited the devices keeps them. To be called once."""
        for handle in self.handles:
            os.close(handle)
