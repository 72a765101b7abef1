"""What to build an overlay from, and what came of it. Frozen values; they cross from `host` to `child` as JSON."""

from __future__ import annotations

import re

import msgspec

from cloud_hub.errors import Unprocessable
from cloud_hub.fpga.boards import BOARDS

PRECISION = r"(ap_)?u?fixed<[0-9]{1,2},-?[0-9]{1,2}(,(AP_)?(TRN|RND|RND_CONV|TRN_ZERO)(,(AP_)?(WRAP|SAT|SAT_SYM))?)?>"


class FpgaRequest(msgspec.Struct, frozen=True):
    """`model` is a .onnx (or .keras, .h5, .pt) file, `folder` where the module's files go, `work` a folder for the
    rest. `output` names the tensor that the circuit answers, where the model has several. `precision` is the type of
    everything that the model does not say itself, `reuse` how often one multiplier is used for a row (1: fastest and
    largest). `data` is an .npz or .csv of inputs, whose answers are written to `answers`. `machines` are those that get
    an emulation library; each needs its compiler. With `synthesise` the vendor's tool makes the bitstream, for at most
    `synthesis_deadline_s`.
    """

    model: str
    folder: str
    work: str
    board: str = "pynq-z2"
    precision: str = "ap_fixed<16,6>"
    reuse: int = 1
    clock_ns: float = 10.0
    output: str = ""
    data: str = ""
    answers: str = ""
    machines: tuple[str, ...] = ()
    synthesise: bool = True
    synthesis_deadline_s: float = 4 * 3600.0

    def checked(self) -> FpgaRequest:
        """Raises Unprocessable `fpga-request`."""
        if self.board not in BOARDS:
            raise Unprocessable("fpga-request", f"board: expected one of {', '.join(BOARDS)}, got {self.board}")
        if not re.fullmatch(PRECISION, self.precision):
            raise Unprocessable("fpga-request", f"precision: expected such as ap_fixed<16,6>, got {self.precision!r}")
        if not 1 <= self.reuse <= 4096:
            raise Unprocessable("fpga-request", f"reuse: expected 1 to 4096, got {self.reuse}")
        if not 1.0 <= self.clock_ns <= 100.0:
            raise Unprocessable("fpga-request", f"clock_ns: expected 1 to 100 nanoseconds, got {self.clock_ns}")
        return self


class FpgaBuilt(msgspec.Struct, frozen=True):
    """`files` are those of the module, `notes` say what is not there and why. `rows` is how many answers were written,
    `agreement` the share of rows whose largest output is the float model's, `worst` the largest difference to it.
    """

    files: tuple[str, ...]
    notes: tuple[str, ...] = ()
    rows: int = 0
    agreement: float = 1.0
    worst: float = 0.0


class Said(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of the child: a step that begins, the result, or why there is none."""

    step: str = ""
    built: FpgaBuilt | None = None
    key: str = ""
    text: str = ""


class FpgaError(Exception):
    """Inside the child: the build cannot go on. Keys: fpga-model, fpga-unsupported, fpga-tool, fpga-data."""

    def __init__(self, key: str, text: str) -> None:
        super().__init__(text)
        self.key = key
