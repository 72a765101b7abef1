"""The kernel and the circuit of a board, played by a thread on a folder: what a device with an FPGA would do.

It reacts to what is written to /sys as the FPGA manager of the vendors' kernels does, and to the registers of /dev/uio0
as an AXI DMA does whose stream goes through the circuit. `fault` is what goes wrong.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import numpy as np

from agent.backends import Array
from modules.overlay import Stream

PAGE = 4096
BUFFER_BYTES = 64 * 1024
ADDRESS = 0x6_4000_0000
TICK_S = 0.001
_RESET, _IDLE = 4, 2
Rows = Callable[[Array], Array]


class Board:
    """`with Board(root, circuit) as board`: `circuit` answers rows; `programmed` are the bitstreams that came, `told`
    what was written to the kernel, in order.
    """

    def __init__(self, root: Path, circuit: Rows, inputs: int, *, fault: str = "", devices: bool = True) -> None:
        self.root, self.fault = root, fault
        self.programmed: list[bytes] = []
        self.told: list[str] = []
        self._circuit, self._inputs = circuit, inputs
        self._manager = root / "sys/class/fpga_manager/fpga0"
        self._overlays = root / "sys/kernel/config/device-tree/overlays"
        for folder in (self._manager, self._overlays, root / "lib/firmware", root / "dev"):
            folder.mkdir(parents=True)
        for name, text in (("name", "Board in a folder"), ("flags", ""), ("firmware", "")):
            (self._manager / name).write_text(text)
        self._state = "unknown"
        os.mkfifo(self._manager / "state")
        self._registers, self._memory = (np.zeros(0, np.uint32), np.zeros(0, np.float32))
        if devices:
            self._make_devices()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="board")

    def __enter__(self) -> Board:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join(20)

    def _make_devices(self) -> None:
        stream = Stream()
        for path, text in (
            ("sys/class/uio/uio0/name", f"{stream.registers}\n"),
            ("sys/class/uio/uio0/maps/map0/size", f"{PAGE:#x}\n"),
            (f"sys/class/u-dma-buf/{stream.buffer}/size", f"{BUFFER_BYTES}\n"),
            (f"sys/class/u-dma-buf/{stream.buffer}/phys_addr", f"{ADDRESS:#018x}\n"),
        ):
            (self.root / path).parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).write_text(text)
        (self.root / "dev/uio0").write_bytes(bytes(PAGE))
        (self.root / "dev" / stream.buffer).write_bytes(bytes(BUFFER_BYTES))
        self._registers = np.memmap(self.root / "dev/uio0", np.uint32, "r+")
        self._memory = np.memmap(self.root / "dev" / stream.buffer, np.float32, "r+")

    def _run(self) -> None:
        while not self._ended.wait(TICK_S):
            self._tell_state()
            self._take_overlay()
            if self._registers.size:
                self._transfer()

    def _tell_state(self) -> None:
        """To who has opened the file. On a board a write to `firmware` takes as long as the programming; here, the next
        look at the state does.
        """
        path = self._manager / "state"
        try:
            handle = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except OSError:  # nobody reads
            return
        self._take_firmware()
        os.mkfifo(path.with_name("next"))
        path.with_name("next").replace(path)  # for the next reader, not for this one
        os.write(handle, self._state.encode())
        os.close(handle)

    def _take_firmware(self) -> None:
        name = (self._manager / "firmware").read_text()
        if not name or self.fault == "silent":
            return
        self.told += [f"flags {(self._manager / 'flags').read_text()}", f"firmware {name}"]
        (self._manager / "firmware").write_text("")
        file = self.root / "lib/firmware" / name
        self.programmed.append(file.read_bytes())
        self._state = self.fault if "error" in self.fault else "operating"

    def _take_overlay(self) -> None:
        """As configfs does: a new folder gets its attributes."""
        for folder in self._overlays.iterdir():
            if not (folder / "dtbo").exists():
                (folder / "dtbo").write_bytes(b"")
            elif (tree := (folder / "dtbo").read_bytes()) and f"dtbo {len(tree)}" not in self.told:
                self.told.append(f"dtbo {len(tree)}")

    def _transfer(self) -> None:
        registers = self._registers
        for channel in (0, 12):
            if int(registers[channel]) & _RESET:
                registers[channel : channel + 12] = 0
        lengths = int(registers[10]), int(registers[22])
        if not (lengths[0] and lengths[1]) or self.fault == "stuck":
            return
        if self.fault == "slave":
            registers[1] = registers[13] = 0x20 | _IDLE
            return
        first, second = (
            (int(registers[low]) + (int(registers[low + 1]) << 32) - ADDRESS) // 4 for low in (6, 18)
        )  # fmt: skip
        given = np.array(self._memory[first : first + lengths[0] // 4]).reshape(-1, self._inputs)
        answered = self._circuit(given).reshape(-1)
        if lengths[1] != answered.nbytes:  # a DMA that is told another length waits for ever
            return
        self._memory[second : second + answered.size] = answered
        registers[10] = registers[22] = 0
        registers[1] = registers[13] = _IDLE
