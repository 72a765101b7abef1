"""Rows through the circuit by PYNQ's own DMA driver, on boards that run PYNQ and have no UIO device for it.

PYNQ maps registers through /dev/mem, so it needs root and a worker that is not confined (`serving.confine = false`).
Never yet run on a board: the tests put a package of this name in its place.
Source: PYNQ 3.1, pynq.Overlay and pynq.lib.dma.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from agent.backends import Array, BackendError
from modules.overlay import Overlay

TRANSFER_DEADLINE_S = 10.0
MAX_ROWS = 4096


class PynqDma:
    """An overlay that the agent has programmed already, with buffers for `MAX_ROWS` rows or fewer."""

    note = "AXI DMA by PYNQ"

    def __init__(self, overlay: Overlay, folder: Path, why_not_uio: str) -> None:
        """Raises BackendError("load-failed")."""
        if not overlay.bitstream or not overlay.hardware:
            raise BackendError("load-failed", f"{why_not_uio}; for PYNQ the module lacks .bit and .hwh")
        try:
            import pynq

            loaded = pynq.Overlay(str(folder / overlay.bitstream), download=False)
            dma = getattr(getattr(loaded, overlay.stream.hierarchy), overlay.stream.dma)
            self._rows = max(1, min(MAX_ROWS, (1 << 20) // max(overlay.input.row, overlay.output.row)))
            self._given = pynq.allocate(shape=(self._rows, *overlay.input.shape[1:]), dtype=np.float32)
            self._answered = pynq.allocate(shape=(self._rows, *overlay.output.shape[1:]), dtype=np.float32)
        except ImportError as error:
            raise BackendError("load-failed", f"{why_not_uio}; nor is PYNQ installed ({error})") from error
        except Exception as error:  # PYNQ raises what its drivers raise
            raise BackendError("load-failed", f"{why_not_uio}; PYNQ: {type(error).__name__}: {error}"[:1000]) from error
        self._to, self._from = dma.sendchannel, dma.recvchannel

    def run(self, given: Array, answered: Array) -> None:
        """Raises BackendError("run-failed")."""
        try:
            for start in range(0, len(given), self._rows):
                self._transfer(given[start : start + self._rows], answered[start : start + self._rows])
        except BackendError:
            raise
        except Exception as error:
            raise BackendError("run-failed", f"PYNQ: {type(error).__name__}: {error}"[:500]) from error

    def close(self) -> None:
        for buffer in (self._given, self._answered):
            buffer.freebuffer()

    def _transfer(self, given: Array, answered: Array) -> None:
        count = len(given)
        self._given[:count] = given
        self._given.flush()
        self._from.transfer(self._answered, nbytes=answered.nbytes)
        self._to.transfer(self._given, nbytes=given.nbytes)
        limit = time.monotonic() + TRANSFER_DEADLINE_S
        while not (self._to.idle and self._from.idle):  # `wait` of PYNQ has no deadline
            if time.monotonic() > limit:
                raise BackendError("run-failed", f"PYNQ: the transfer is not done after {TRANSFER_DEADLINE_S:g} s")
            time.sleep(0)
        self._answered.invalidate()
        answered[:] = self._answered[:count]
