"""The vendor's tools, where they are on PATH: from the HLS project to a bitstream. Called by the child.

hls4ml's accelerator projects are for Vivado HLS (up to 2020.1): `vivado_hls` makes the core, `vivado` puts it into the
block design. Neither is at hand where Mooring is tested; the tests put programs of these names on PATH that write what
the tools write.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from cloud_hub.fpga.bitstream import part_of, raw
from cloud_hub.fpga.request import FpgaError

if TYPE_CHECKING:
    from collections.abc import Callable

    from cloud_hub.fpga.boards import Board

HLS, LAYOUT = "vivado_hls", "vivado"
MAX_BITSTREAM_BYTES = 256 * 1024 * 1024
LAST_LINES = 3
_HLS_STEPS = "reset=1 csim=0 synth=1 cosim=0 validation=0 export=1 vsynth=0 fifo_opt=0"


class Made(msgspec.Struct, frozen=True):
    """Paths of what the tools made; empty where a tool is missing, and `why` says which."""

    bitstream: str = ""
    raw: str = ""
    hardware: str = ""
    report: str = ""
    why: str = ""
    tools: dict[str, str] = {}


def synthesise(project: Path, board: Board, deadline_s: float, step: Callable[[str], None]) -> Made:
    """Raises FpgaError("fpga-tool") when a tool that is there fails or is not done in time."""
    missing = [name for name in (HLS, LAYOUT) if shutil.which(name) is None]
    if missing:
        return Made(why=f"no bitstream: {' and '.join(missing)} not on PATH (Vivado 2019.2 to 2020.1)")
    step(f"high-level synthesis with {HLS}")
    _run([HLS, "-f", "build_prj.tcl", _HLS_STEPS], project, deadline_s)
    step(f"placing and routing with {LAYOUT}")
    _run([LAYOUT, "-mode", "batch", "-source", "design.tcl"], project, deadline_s)
    return _collected(project, board)


def _run(command: list[str], folder: Path, deadline_s: float) -> None:
    log = folder / f"{command[0]}.mooring.log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True,
            env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
        try:
            code = process.wait(deadline_s)
        except subprocess.TimeoutExpired:
            raise FpgaError("fpga-tool", f"{command[0]} was not done after {deadline_s:g} s; it was ended") from None
        finally:
            if process.poll() is None:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait(10)
    if code != 0:
        raise FpgaError("fpga-tool", f"{command[0]} ended with {code}: {_last_words(log)}")


def _last_words(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
        lines = file.read().decode(errors="replace").splitlines()
    errors = [line for line in lines if line.startswith("ERROR")] or lines
    return " | ".join(errors[-LAST_LINES:])[:800]


def _collected(project: Path, board: Board) -> Made:
    bit = _found(project, "*_vivado_accelerator/**/impl_1/*.bit")
    hardware = _found(project, "*_vivado_accelerator/**/*.hwh")
    if bit is None or hardware is None:
        raise FpgaError("fpga-tool", f"{LAYOUT} ended well and made no {'.bit' if bit is None else '.hwh'}")
    if bit.stat().st_size > MAX_BITSTREAM_BYTES:
        raise FpgaError("fpga-tool", f"{bit.name}: expected at most {MAX_BITSTREAM_BYTES} bytes")
    data = bit.read_bytes()
    try:
        part, turned = part_of(data), raw(data)
    except ValueError as error:
        raise FpgaError("fpga-tool", f"{bit.name}: {error}") from error
    if not board.part.removeprefix("xc").startswith(part.removeprefix("xc")):
        raise FpgaError("fpga-tool", f"{bit.name}: expected a bitstream for {board.part}, got one for {part}")
    plain = project / "overlay.bit.bin"
    plain.write_bytes(turned)
    report = _found(project, "util.rpt") or _found(project, "*_prj/**/csynth.rpt")
    return Made(str(bit), str(plain), str(hardware), str(report or ""), tools=_versions())


def _found(folder: Path, pattern: str) -> Path | None:
    return next(iter(sorted(folder.glob(pattern))), None)


def _versions() -> dict[str, str]:
    done = subprocess.run([LAYOUT, "-version"], capture_output=True, timeout=120, check=False)
    first = done.stdout.decode(errors="replace").strip().partition("\n")[0]
    return {LAYOUT: first[:80]}
