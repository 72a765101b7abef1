"""FPGA overlays: rows go through the circuit on the board, or, where that is allowed, through its emulation.

Called in the worker, after confinement. Who programs the board is the agent (`agent.fpga`): a worker has no right to.
An emulation is never a secret: it must be asked for by the module (provider "emulation", or `fallback`) or allowed by
the device (`serving.fpga_emulation`), and is reported as such.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np

from agent.backends import Array, BackendError, Bound
from agent.backends.place import Place
from modules.errors import ModuleError
from modules.execution import StageExecution
from modules.overlay import BOARD, EMULATION, MAX_OVERLAY_BYTES, Overlay, Port, decode_overlay
from modules.runtime import Stage
from modules.tensors import TensorSpec


class Device(Protocol):
    """What takes rows of float32 and gives rows of float32, both C-contiguous: a circuit, or what stands for one.

    `note` says what it is. `run` raises BackendError("run-failed"), and is called by one thread at a time.
    """

    note: str

    def run(self, given: Array, answered: Array) -> None: ...

    def close(self) -> None: ...


class FpgaBackend:
    """One overlay."""

    def __init__(self) -> None:
        self.parallel = 1  # one circuit
        self._device: Device | None = None
        self._execution = StageExecution("fpga")

    def load(self, stage: Stage, place: Place) -> None:
        """Raises BackendError("load-failed"), which says why there is neither board nor emulation."""
        try:
            overlay = _described(stage, place)
            _check_port("input", stage.inputs, overlay.input)
            _check_port("output", stage.outputs, overlay.output)
        except (ModuleError, OSError) as error:
            raise BackendError("load-failed", f"{stage.model}: {error}") from error
        self._input, self._output = overlay.input, overlay.output
        self._device, self._execution = _opened(overlay, stage, place)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Raises BackendError: bad-input for rows of another shape, run-failed."""
        given = np.ascontiguousarray(inputs[self._input.name], np.float32)
        if given.shape[1:] != self._input.shape[1:]:
            shapes = f"expected shape {list(self._input.shape)}, got {list(given.shape)}"
            raise BackendError("bad-input", f"input {self._input.name}: {shapes}")
        answered = np.empty((len(given), *self._output.shape[1:]), np.float32)
        self._through(given, answered)
        return {self._output.name: answered}

    def bind(self, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> Bound | None:
        """See `agent.backends.Binds`."""
        given, answered = inputs[self._input.name], outputs.get(self._output.name)
        if answered is None or len(given) != len(answered):
            return None
        for array, port in ((given, self._input), (answered, self._output)):
            if array.dtype != np.float32 or not array.flags.c_contiguous or array.shape[1:] != port.shape[1:]:
                return None
        return partial(self._through, given, answered)

    def interrupt(self, thread: int) -> bool:
        """Neither a circuit nor native code can be ended from outside: the worker is."""
        return False

    def execution(self) -> tuple[StageExecution, ...]:
        return (self._execution,)

    def close(self) -> None:
        if self._device is not None:
            self._device.close()

    def _through(self, given: Array, answered: Array) -> None:
        assert self._device is not None  # noqa: S101 - load made sure
        if not np.isfinite(given).all():
            text = "expected finite numbers, a circuit has no others"  # and the emulation prints a line for each
            raise BackendError("bad-input", f"input {self._input.name}: {text}")
        if len(given):
            self._device.run(given, answered)


def _described(stage: Stage, place: Place) -> Overlay:
    with (place.slot / stage.model).open("rb") as file:
        overlay = decode_overlay(file.read(MAX_OVERLAY_BYTES + 1))
    folder = PurePosixPath(stage.model).parent
    for path in overlay.paths:
        if str(folder / path) not in place.signed:
            raise BackendError("load-failed", f"{stage.model}: {path} is named but is not among the module's files")
    return overlay


def _check_port(kind: str, specs: tuple[TensorSpec, ...], port: Port) -> None:
    found = [(spec.name, spec.datatype, spec.shape) for spec in specs]
    if found != [(port.name, "FP32", port.shape)]:
        said = ", ".join(f"{name} {datatype} {list(shape)}" for name, datatype, shape in found) or "none"
        expected = f"{port.name} FP32 {list(port.shape)}"
        raise BackendError("load-failed", f"{kind}s: the overlay has {expected}, the manifest says {said}")


def _opened(overlay: Overlay, stage: Stage, place: Place) -> tuple[Device, StageExecution]:
    asked = tuple(provider.name for provider in stage.providers) or (BOARD,)
    if unknown := sorted({*asked} - {BOARD, EMULATION}):
        raise BackendError("load-failed", f"providers: expected {BOARD} or {EMULATION}, got {', '.join(unknown)}")
    folder = place.slot / PurePosixPath(stage.model).parent
    why = place.circuit.why
    if BOARD in asked:
        try:
            device = _on_board(overlay, place, folder)
            return device, StageExecution("fpga", asked, note=f"{device.note} on {overlay.board}")
        except BackendError as error:
            why = str(error)
    if not (EMULATION in asked or stage.fallback or place.circuit.emulation):
        allowed = "an emulation was neither asked for by the module nor allowed by this device (serving.fpga_emulation)"
        raise BackendError("load-failed", f"{stage.model}: {why}; {allowed}")
    device = _emulated(overlay, folder)
    return device, StageExecution("fpga", asked, why=why, emulated=True, note=f"{device.note} for {overlay.board}")


def _on_board(overlay: Overlay, place: Place, folder: Path) -> Device:
    circuit = place.circuit
    if circuit.handles:
        from agent.backends.fpga_dma import UioDma

        return UioDma(circuit, overlay.input.row, overlay.output.row)
    if not circuit.programmed:
        raise BackendError("load-failed", circuit.why or "no FPGA was given to this worker")
    from agent.backends.fpga_pynq import PynqDma

    return PynqDma(overlay, folder, circuit.why)


def _emulated(overlay: Overlay, folder: Path) -> Device:
    from agent.backends.fpga_emulation import Emulation

    machine = platform.machine()
    if machine not in overlay.emulation:
        has = ", ".join(sorted(overlay.emulation)) or "none"
        raise BackendError("load-failed", f"emulation: expected a library for {machine}, the module has {has}")
    return Emulation(folder / overlay.emulation[machine], machine, overlay)
