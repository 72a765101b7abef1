"""Rows through the circuit by an AXI DMA in simple mode: its registers by UIO, its memory by u-dma-buf.

As hls4ml's VivadoAccelerator makes it: rows of float32 in, rows of float32 out, one transfer for as many rows as fit.
Never yet run on a board: the tests' circuit is a thread that plays the DMA on shared files.
Source: AXI DMA v7.1 product guide (PG021), direct register mode.
"""

from __future__ import annotations

import fcntl
import mmap
import time

import numpy as np

from agent.backends import Array, BackendError
from agent.fpga.circuit import Circuit

TRANSFER_DEADLINE_S = 10.0
MAX_TRANSFER_BYTES = (1 << 26) - 4  # the length register of hls4ml's block designs has 26 bits
# Registers by number of 32-bit word: control, status, address (low, high), length; first to, then from the circuit.
_TO, _FROM = 0x00 // 4, 0x30 // 4
_CONTROL, _STATUS, _LOW, _HIGH, _LENGTH = 0, 1, 6, 7, 10
_RUN, _RESET = 1 << 0, 1 << 2
_IDLE, _ERRORS = 1 << 1, 0x70  # internal, slave and decode error
_LEAST_BYTES = 0x5C  # up to the last register that is used


class UioDma:
    """The two mappings of one circuit."""

    note = "AXI DMA by UIO"

    def __init__(self, circuit: Circuit, inputs: int, outputs: int) -> None:
        """`inputs` and `outputs` are elements per row. Raises BackendError("load-failed")."""
        rows = min(circuit.buffer_bytes // (4 * (inputs + outputs)), MAX_TRANSFER_BYTES // (4 * max(inputs, outputs)))
        if rows < 1 or circuit.registers_bytes < _LEAST_BYTES:
            needed = f"{_LEAST_BYTES} bytes of registers and {4 * (inputs + outputs)} of memory"
            got = f"{circuit.registers_bytes} and {circuit.buffer_bytes}"
            raise BackendError("load-failed", f"DMA: expected at least {needed}, got {got}")
        try:
            self._maps = [
                mmap.mmap(handle, size)
                for handle, size in (
                    (circuit.registers, circuit.registers_bytes), (circuit.buffer, circuit.buffer_bytes),
                )
            ]  # fmt: skip
        except (OSError, ValueError) as error:
            raise BackendError("load-failed", f"DMA: its devices cannot be mapped: {error}") from error
        self._lock = circuit.buffer
        self._registers = np.frombuffer(self._maps[0], np.uint32, circuit.registers_bytes // 4)
        self._given = np.frombuffer(self._maps[1], np.float32, rows * inputs)
        self._answered = np.frombuffer(self._maps[1], np.float32, rows * outputs, rows * inputs * 4)
        self._addresses = circuit.address, circuit.address + rows * inputs * 4
        self._rows, self._inputs, self._outputs = rows, inputs, outputs

    def run(self, given: Array, answered: Array) -> None:
        """Raises BackendError("run-failed") when the DMA reports an error or is not done in time."""
        limit = time.monotonic() + TRANSFER_DEADLINE_S
        self._take_turn(limit)
        try:
            for start in range(0, len(given), self._rows):
                part = slice(start, start + self._rows)
                self._transfer(given[part], answered[part], limit)
        finally:
            fcntl.flock(self._lock, fcntl.LOCK_UN)

    def close(self) -> None:
        """The mappings go with the process: arrays on them may still be in use by a run that nobody can end."""

    def _transfer(self, given: Array, answered: Array, limit: float) -> None:
        words = len(given) * self._inputs, len(given) * self._outputs
        self._given[: words[0]] = given.reshape(-1)
        for channel in (_FROM, _TO):
            self._reset(channel, limit)
        self._begin(_FROM, self._addresses[1], words[1] * 4)  # first who takes, then who sends
        self._begin(_TO, self._addresses[0], words[0] * 4)
        for channel, name in ((_TO, "to"), (_FROM, "from")):
            self._done(channel, name, limit)
        answered.reshape(-1)[:] = self._answered[: words[1]]

    def _reset(self, channel: int, limit: float) -> None:
        """What a worker that was killed has left under way."""
        self._registers[channel + _CONTROL] = _RESET
        while self._registers[channel + _CONTROL] & _RESET:
            _check(limit, "the DMA does not come back from its reset")

    def _begin(self, channel: int, address: int, size: int) -> None:
        """Writing the length starts the transfer."""
        registers = self._registers
        registers[channel + _CONTROL] = _RUN
        registers[channel + _LOW] = address & 0xFFFF_FFFF
        registers[channel + _HIGH] = address >> 32
        registers[channel + _LENGTH] = size

    def _done(self, channel: int, name: str, limit: float) -> None:
        while not (status := int(self._registers[channel + _STATUS])) & _IDLE:
            if status & _ERRORS:
                raise BackendError("run-failed", f"DMA {name} the circuit: error, status {status:#x}")
            _check(limit, f"the DMA {name} the circuit is not done after {TRANSFER_DEADLINE_S:g} s")
        if status & _ERRORS:
            raise BackendError("run-failed", f"DMA {name} the circuit: error, status {status:#x}")

    def _take_turn(self, limit: float) -> None:
        """Two workers of one circuit may be there while one hands over to the other."""
        while True:
            try:
                return fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _check(limit, "another worker keeps the circuit busy")


def _check(limit: float, text: str) -> None:
    if time.monotonic() > limit:
        raise BackendError("run-failed", text)
    time.sleep(0)
