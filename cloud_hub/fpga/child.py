"""The build's process: `python -m cloud_hub.fpga.child CHANNEL PARENT`, a request on standard input, `Said` lines out.

Everything heavy happens here: hls4ml, compilers, the vendor's tools, and the first run of the emulation. What hls4ml
prints goes to standard error; the channel carries lines only. Started by `host`.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import shutil
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from cloud_hub.fpga.boards import BOARDS, Board
from cloud_hub.fpga.request import FpgaBuilt, FpgaError, FpgaRequest, Said
from modules.errors import ModuleError
from modules.overlay import OVERLAY_PATH, Overlay, Stream, encode_overlay

if TYPE_CHECKING:
    from cloud_hub.fpga.convert import Project
    from cloud_hub.fpga.vendor import Made

MAX_FILE_BYTES = 4 * 1024**3  # of any file that this build or a tool of it writes: a log must not fill the disk
_PR_SET_PDEATHSIG = 1
REPORT = "resources.txt"


class Build:
    """One build; `step` tells what begins."""

    def __init__(self, request: FpgaRequest, channel: int) -> None:
        self._request = request
        self._channel = channel
        self._folder = Path(request.folder)
        self._notes: list[str] = []

    def run(self) -> FpgaBuilt:
        """Raises FpgaError and OverlayError."""
        from cloud_hub.fpga.convert import convert

        board = BOARDS[self._request.board]
        self._folder.mkdir(parents=True, exist_ok=True)
        self.step(f"writing the HLS project for {board.name}")
        project = convert(self._request, board)
        emulation, tools = self._emulations(project, board)
        made = self._bitstream(project, board)
        overlay = self._overlay(project, board, made, emulation, project.tools() | tools | made.tools)
        built = self._answered(project, emulation)
        (self._folder / OVERLAY_PATH).write_bytes(encode_overlay(overlay))
        return msgspec.structs.replace(
            built, files=tuple(sorted(p.name for p in self._folder.iterdir())), notes=tuple(self._notes)
        )

    def step(self, text: str) -> None:
        self.say(Said(step=text))

    def say(self, said: Said) -> None:
        os.write(self._channel, msgspec.json.encode(said) + b"\n")

    def _emulations(self, project: Project, board: Board) -> tuple[dict[str, str], dict[str, str]]:
        from cloud_hub.fpga.emulation import compile_emulation, compiler_version, machines

        compilers, missing = machines(self._request.machines or (platform.machine(), board.machine))
        self._notes += missing
        made, tools = {}, {}
        for machine, compiler in compilers.items():
            self.step(f"compiling the emulation for {machine}")
            made[machine] = f"emulation-{machine}.so"
            compile_emulation(project, compiler, self._folder / made[machine])
            tools[f"g++ {machine}"] = compiler_version(compiler)
        return made, tools

    def _bitstream(self, project: Project, board: Board) -> Made:
        from cloud_hub.fpga.vendor import Made, synthesise

        if not self._request.synthesise:
            made = Made(why="no bitstream: not asked for")
        else:
            made = synthesise(project.folder, board, self._request.synthesis_deadline_s, self.step)
        if made.why:
            self._notes.append(made.why)
        if made.report:
            shutil.copyfile(made.report, self._folder / REPORT)
        return made

    def _overlay(
        self, project: Project, board: Board, made: Made, emulation: dict[str, str], tools: dict[str, str]
    ) -> Overlay:
        files = {"overlay.bit": made.bitstream, "overlay.bit.bin": made.raw, "overlay.hwh": made.hardware}
        for name, path in files.items():
            if path:
                shutil.copyfile(path, self._folder / name)
        bitstream, raw, hardware = (name if path else "" for name, path in files.items())
        device_tree = self._device_tree(board, made) if hardware else ""
        return Overlay(
            input=project.input,
            output=project.output,
            board=board.name,
            part=board.part,
            clock_ns=self._request.clock_ns,
            precision=self._request.precision,
            source_sha256=project.source_sha256,
            bitstream=bitstream,
            raw_bitstream=raw,
            hardware=hardware,
            device_tree=device_tree,
            emulation=emulation,
            tools=tools,
        )

    def _device_tree(self, board: Board, made: Made) -> str:
        from cloud_hub.fpga.device_tree import compile_tree, registers_of, source

        stream, name = Stream(), "overlay.dtbo"
        address, size = registers_of(Path(made.hardware).read_text(errors="replace"), stream)
        text = source(address, size, stream, wide=board.machine == "aarch64")
        why = compile_tree(text, Path(self._request.work), self._folder / name)
        if why:
            self._notes.append(why)
        return "" if why else name

    def _answered(self, project: Project, emulation: dict[str, str]) -> FpgaBuilt:
        from cloud_hub.fpga.answers import record

        if not self._request.data:
            self._notes.append("no answers: give --data to get the file that `mooring module build` needs")
            return FpgaBuilt(())
        self.step("asking the emulation")
        library = self._folder / emulation[platform.machine()]
        return record(project, library, Path(self._request.data), Path(self._request.answers))


def main(arguments: list[str]) -> int:
    """Exit status 0 when the last line is a result or a reason."""
    channel, parent = map(int, arguments)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return 1
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE_BYTES, MAX_FILE_BYTES))
    os.dup2(2, 1)  # hls4ml prints
    build = Build(msgspec.json.decode(sys.stdin.buffer.read(), type=FpgaRequest), channel)
    try:
        build.say(Said(built=build.run()))
    except FpgaError as error:
        build.say(Said(key=error.key, text=str(error)[:2000]))
    except (ModuleError, OSError, MemoryError) as error:
        build.say(Said(key="fpga-tool", text=f"{type(error).__name__}: {error}"[:2000]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
