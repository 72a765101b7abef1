"""The backend for FPGA overlays passes the public conformance test, by its emulation."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import numpy as np
import pytest

from agent.backends import Backend
from agent.backends.conformance import BackendConformance, Case
from agent.backends.fpga import FpgaBackend
from fpga.conftest import Made
from modules.overlay import EMULATION, decode_overlay
from modules.runtime import Provider, Stage

FOLDER = "MOORING_TEST_OVERLAY"  # in the environment, because a part of the test runs in a process of its own
pytestmark = pytest.mark.timeout(300)  # the first test of a run waits for the compiler


class TestFpga(BackendConformance):
    @pytest.fixture(autouse=True)
    def overlay(self, made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(FOLDER, str(made.folder))

    def make(self) -> Backend:
        return FpgaBackend()

    def cases(self) -> list[Case]:
        folder = Path(os.environ[FOLDER])
        overlay = decode_overlay((folder / "overlay.json").read_bytes())
        answers = np.load(folder.with_name("answers.npz"))
        library = overlay.emulation[platform.machine()]
        return [
            Case(
                files={name: (folder / name).read_bytes() for name in ("overlay.json", library)},
                stage=Stage(
                    "digits", (overlay.input.spec,), (overlay.output.spec,), "fpga", "overlay.json",
                    providers=(Provider(EMULATION),),
                ),
                inputs={"X": answers["X"][:3]},
                outputs={"probabilities": answers["probabilities"][:3]},
                rtol=0.0,
                atol=0.0,
            )
        ]  # fmt: skip
