"""An overlay's emulation as a device: native code from the module, run in this confined worker and nowhere else.

It is bound by what binds a script: its own user, no network, no files but the module's, limits, a deadline.
"""

from __future__ import annotations

from pathlib import Path

from agent.backends import Array, BackendError
from modules.emulation import EmulationLibrary
from modules.errors import ModuleError
from modules.overlay import Overlay


class Emulation:
    """Bit for bit what the circuit answers, not in its time."""

    def __init__(self, path: Path, machine: str, overlay: Overlay) -> None:
        """Raises BackendError("load-failed") for a library that is damaged, of another machine or of other tensors."""
        try:
            self._library = EmulationLibrary(path, machine, overlay.input.row, overlay.output.row)
        except ModuleError as error:
            raise BackendError("load-failed", str(error)) from error
        self.note = path.name

    def run(self, given: Array, answered: Array) -> None:
        self._library.run(given.ctypes.data, answered.ctypes.data, len(given))

    def close(self) -> None:
        """The library stays mapped: its code may have registered clean-up that runs at the process's end."""
