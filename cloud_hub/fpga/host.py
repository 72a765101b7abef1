"""The parent's side of a build: one child, its steps as they come, its deadline. Called by `mooring fpga build`.

The child and whatever it started (compilers, the vendor's tools) are one process group, which ends with the build.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import msgspec

from cloud_hub.errors import Unprocessable
from cloud_hub.fpga.request import FpgaBuilt, FpgaRequest, Said

BUILD_DEADLINE_S = 3600.0  # beside the vendor's tools, which have a deadline of their own
EXIT_DEADLINE_S = 10.0
MAX_LINE_BYTES = 64 * 1024
MAX_STEPS = 1000
LOG_NAME = "build.log"
CHILD = (sys.executable, "-P", "-m", "cloud_hub.fpga.child")


async def build_overlay(
    request: FpgaRequest, step: Callable[[str], None], deadline_s: float = BUILD_DEADLINE_S
) -> FpgaBuilt:
    """Raises Unprocessable with the child's key: fpga-request, fpga-model, fpga-unsupported, fpga-tool, fpga-data.

    What the tools print stands in `build.log` in the work folder.
    """
    request = request.checked()
    Path(request.work).mkdir(parents=True, exist_ok=True)
    whole_s = deadline_s + (request.synthesis_deadline_s * 2 if request.synthesise else 0.0)
    ours, theirs = os.pipe()
    try:
        with (Path(request.work) / LOG_NAME).open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *CHILD, str(theirs), str(os.getpid()),
                stdin=asyncio.subprocess.PIPE, stdout=log, stderr=log, pass_fds=(theirs,), start_new_session=True,
            )  # fmt: skip
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    try:
        async with asyncio.timeout(whole_s):
            return await _result(process, request, ours, step)
    except TimeoutError:
        raise Unprocessable("fpga-tool", f"the build was not done after {whole_s:g} s; it was ended") from None
    finally:
        await _end(process)


async def _result(
    process: asyncio.subprocess.Process, request: FpgaRequest, channel: int, step: Callable[[str], None]
) -> FpgaBuilt:
    assert process.stdin is not None  # noqa: S101 - asked for above
    reader = asyncio.StreamReader(limit=MAX_LINE_BYTES)
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(channel, "rb", buffering=0)
    )
    try:
        process.stdin.write(msgspec.json.encode(request))
        process.stdin.close()
        for _ in range(MAX_STEPS):
            line = await reader.readline()
            if not line:
                break
            said = msgspec.json.decode(line, type=Said)
            if said.built is not None:
                return said.built
            if said.key:
                raise Unprocessable(said.key, said.text)
            step(said.step)
    finally:
        transport.close()
    code = await process.wait()
    log = Path(request.work) / LOG_NAME
    raise Unprocessable("fpga-tool", f"the build's process ended with status {code}: {_last_line(log)}")


async def _end(process: asyncio.subprocess.Process) -> None:
    """Also what the child started: a compiler would go on for minutes, a vendor's tool for hours."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(TimeoutError):
        async with asyncio.timeout(EXIT_DEADLINE_S):
            await process.wait()


def _last_line(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
        lines = file.read().decode(errors="replace").strip().splitlines()
    return lines[-1][:500] if lines else "it said nothing"
