"""A network trained on handwritten digits and built as an overlay, once for all tests of this folder."""

from __future__ import annotations

import asyncio
import platform
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from agent.backends import Array
from cloud_hub.fpga.host import build_overlay
from cloud_hub.fpga.request import FpgaBuilt, FpgaRequest
from modules.emulation import EmulationLibrary
from modules.overlay import Overlay, decode_overlay
from support.fpga_tools import Tools

MACHINE = platform.machine()
BUILD_DEADLINE_S = 300.0


@dataclass(frozen=True)
class Made:
    """The overlay's folder, what was said of it, the answers that were recorded, and the model that it is made from."""

    folder: Path
    overlay: Overlay
    built: FpgaBuilt
    answers: Path
    model: Path
    x: Array
    labels: Array
    steps: tuple[str, ...]

    @property
    def library(self) -> Path:
        return self.folder / self.overlay.emulation[MACHINE]

    @property
    def files(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in self.folder.iterdir()}

    def emulated(self, rows: Array) -> Array:
        """What the emulation answers, in this process."""
        given = np.ascontiguousarray(rows, np.float32)
        answered = np.empty((len(given), self.overlay.output.row), np.float32)
        opened = EmulationLibrary(self.library, MACHINE, self.overlay.input.row, self.overlay.output.row)
        opened.run(given.ctypes.data, answered.ctypes.data, len(given))
        return answered


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Compiled by the real compiler, which takes some seconds."""
    folder = tmp_path_factory.mktemp("overlay")
    model, x, labels = _trained(folder)
    np.savez(folder / "training.npz", X=x)
    steps: list[str] = []
    request = FpgaRequest(
        model=str(model),
        folder=str(folder / "overlay"),
        work=str(folder / "work"),
        data=str(folder / "training.npz"),
        answers=str(folder / "answers.npz"),
        machines=(MACHINE,),
        synthesise=False,
    )
    built = asyncio.run(build_overlay(request, steps.append, BUILD_DEADLINE_S))
    overlay = decode_overlay((folder / "overlay/overlay.json").read_bytes())
    return Made(folder / "overlay", overlay, built, folder / "answers.npz", model, x, labels, tuple(steps))


def _trained(folder: Path) -> tuple[Path, Array, Array]:
    """A small network as scikit-learn and skl2onnx write it: with a label beside the probabilities, and casts."""
    with warnings.catch_warnings():  # the libraries' own deprecations and the short training are not ours to test
        warnings.simplefilter("ignore")
        from skl2onnx import to_onnx
        from sklearn.datasets import load_digits
        from sklearn.neural_network import MLPClassifier

        x, labels = load_digits(return_X_y=True)
        x = (x / 16).astype(np.float32)
        network = MLPClassifier((12,), max_iter=60, random_state=0).fit(x, labels)
        onnx = to_onnx(network, x[:1], options={"zipmap": False}, target_opset=17)
    (folder / "digits.onnx").write_bytes(onnx.SerializeToString())
    return folder / "digits.onnx", x, labels


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tools:
    return Tools(tmp_path / "bin", monkeypatch)
