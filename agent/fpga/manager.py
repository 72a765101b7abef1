"""The kernel's FPGA manager, through its files in /sys: program a bitstream, then add the device tree's overlay.

Order: old overlay away, flags, bitstream, new overlay, and at the end the state must still be "operating". `firmware`
and `flags` are of the vendors' kernels (linux-xlnx, and those of PYNQ and of Ubuntu for Kria); mainline has `state`
alone. Never yet run on a board: the tests' kernel is a thread that reacts to a folder's files as described.
Source: Documentation/ABI/testing/sysfs-class-fpga-manager, drivers/fpga/fpga-mgr.c (the words of the states),
Documentation/devicetree/configfs-overlays.rst of linux-xlnx.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from agent.errors import AgentError

OVERLAY_NAME = "mooring"
OPERATING = "operating"
POLL_S = 0.02


class FpgaError(AgentError):
    """The FPGA could not be programmed."""

    key = "fpga"


class FpgaManager:
    """`root` is where /sys and /lib stand; everything together has until `deadline_s` from now."""

    def __init__(self, root: Path, deadline_s: float) -> None:
        self._manager = manager_of(root)
        self._overlay = root / "sys/kernel/config/device-tree/overlays" / OVERLAY_NAME
        self._firmware = root / "lib/firmware"
        self._limit = time.monotonic() + deadline_s

    def program(self, bitstream: bytes, device_tree: bytes, name: str) -> None:
        """`name` is that of the firmware file while the kernel reads it. Raises FpgaError, also at the deadline."""
        if not self._manager.is_dir():
            raise FpgaError(f"{self._manager}: this kernel has no FPGA manager")
        self._remove_overlay()
        file = self._firmware / name
        try:
            self._write(self._manager / "flags", b"0")
            file.write_bytes(bitstream)
            self._write(self._manager / "firmware", name.encode())
            self._operating("after the bitstream")
            if device_tree:
                self._add_overlay(device_tree)
                self._operating("after the device tree")
        except OSError as error:
            raise FpgaError(f"FPGA manager: {error} (state {self._state()})") from error
        finally:
            with suppress(OSError):
                file.unlink(missing_ok=True)

    def _remove_overlay(self) -> None:
        """The drivers of the old circuit must let go of it before it is no longer there."""
        if self._overlay.exists():
            try:
                self._overlay.rmdir()  # configfs takes the attributes with it
            except OSError as error:
                raise FpgaError(f"{self._overlay}: the old overlay stays: {error}") from error

    def _add_overlay(self, device_tree: bytes) -> None:
        self._overlay.mkdir()
        self._until((self._overlay / "dtbo").exists, "the kernel to take a device tree (configfs)")
        self._write(self._overlay / "dtbo", device_tree)
        status = self._overlay / "status"
        if status.exists() and (said := status.read_text().strip()) != "applied":
            raise FpgaError(f"device tree: expected it applied, the kernel says {said[:80]!r}")

    def _operating(self, when: str) -> None:
        def settled() -> bool:
            state = self._state()
            return state == OPERATING or "err" in state

        self._until(settled, f"the state {OPERATING!r} {when}, it is {self._state()!r}")
        if (state := self._state()) != OPERATING:
            raise FpgaError(f"FPGA manager: expected the state {OPERATING!r} {when}, got {state!r}")

    def _state(self) -> str:
        try:
            return (self._manager / "state").read_text().strip()[:80]
        except OSError as error:
            return f"unreadable: {error.strerror}"

    def _until(self, condition: Callable[[], bool], what: str) -> None:
        while not condition():
            if time.monotonic() > self._limit:
                raise FpgaError(f"FPGA manager: waited in vain for {what}")
            time.sleep(POLL_S)

    @staticmethod
    def _write(path: Path, data: bytes) -> None:
        """In one call, as the kernel's attributes want it; never made where the kernel has none."""
        handle = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            if os.write(handle, data) != len(data):
                raise OSError(f"{path}: it took only a part of {len(data)} bytes")
        finally:
            os.close(handle)


def manager_of(root: Path) -> Path:
    return root / "sys/class/fpga_manager/fpga0"
