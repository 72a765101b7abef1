"""A patch is decoded in a process that can do nothing but that, within memory, size and time, and leaves no trace."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from textwrap import dedent, indent

import numpy as np
import pytest

from agent.errors import PatchFailed
from agent.patching import PATCH_UID, rebuild
from agent.patching.host import CHILD, MAX_WORDS, MEMORY_MIB
from agent.sandbox import landlock
from cloud_hub.patches.encode import encode
from support.waiting import until, until_blocking

DEADLINE_S = 60.0
BASE = np.random.default_rng(1).normal(size=50_000).astype(np.float32)
NEW = BASE * np.float32(1.001)


class Files:
    """A base, a patch, and where the file that it makes shall lie."""

    def __init__(self, folder: Path, base: bytes = BASE.tobytes(), new: bytes = NEW.tobytes()) -> None:
        self.base, self.new, self.patch, self.out = (folder / name for name in ("base", "new", "patch", "out"))
        self.base.write_bytes(base)
        self.new.write_bytes(new)
        encode(self.base, self.new, self.patch)

    async def rebuild(self, uid: int = 0, deadline_s: float = DEADLINE_S, program: tuple[str, ...] = CHILD) -> None:
        await rebuild(self.base, self.patch, self.out, self.new.stat().st_size, deadline_s, uid, program)

    async def failure(self, program: tuple[str, ...] = CHILD, deadline_s: float = DEADLINE_S) -> str:
        """What is said about it; nothing may be left."""
        with pytest.raises(PatchFailed) as caught:
            await self.rebuild(deadline_s=deadline_s, program=program)
        assert caught.value.key == "patch"
        assert not self.out.exists()
        return str(caught.value)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def taken_over(folder: Path, act: str) -> tuple[str, ...]:
    """The decoder's process as an attacker would have it who has broken the decoder: `act` is what it does then."""
    script = folder / "taken_over.py"
    script.write_text(
        "import os, resource, socket, subprocess, sys\nfrom agent.patching import child\ndecode = child.apply\n"
        f"def act(base, patch, write, size):\n{indent(dedent(act), '    ')}\n"
        "child.apply = act\nsys.exit(child.main(sys.argv[1:]))\n"
    )
    return sys.executable, "-P", str(script)


def safetensors(weights: np.ndarray[tuple[int], np.dtype[np.float32]]) -> bytes:
    shape = {"w": {"dtype": "F32", "shape": weights.shape, "data_offsets": (0, weights.nbytes)}}
    header = json.dumps(shape).encode()
    return len(header).to_bytes(8, "little") + header + weights.tobytes()


def alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("uid", [0, PATCH_UID])
async def test_a_patch_makes_exactly_the_new_file(files: Files, uid: int) -> None:
    if uid and os.geteuid():
        pytest.skip("only root can become another user")
    files.out.write_bytes(b"left by a power cut, and longer" * 20_000)
    await files.rebuild(uid)
    assert files.out.read_bytes() == NEW.tobytes()
    assert files.out.stat().st_mode & 0o777 == 0o600


async def test_a_patch_that_ends_too_early_is_refused_with_the_decoders_words(files: Files) -> None:
    files.patch.write_bytes(files.patch.read_bytes()[:3])
    assert await files.failure() == "patch patch: the patch ends 1 bytes too early"


async def test_a_patch_for_another_base_is_refused(files: Files) -> None:
    files.base.write_bytes(b"another")
    assert await files.failure() == "patch patch: the patch is for a base of another size"


async def test_a_base_that_is_gone_is_a_failed_patch(files: Files) -> None:
    files.base.unlink()
    assert "No such file" in await files.failure()


async def test_an_empty_file_is_made_too(tmp_path: Path) -> None:
    empty = Files(tmp_path, new=b"")
    await empty.rebuild()
    assert empty.out.read_bytes() == b""


async def test_not_one_byte_more_than_the_signed_size_is_written(files: Files, tmp_path: Path) -> None:
    program = taken_over(tmp_path, "os.write(int(sys.argv[3]), bytes(size))\nos.write(int(sys.argv[3]), b'x')")
    assert "File too large" in await files.failure(program)


async def test_fewer_bytes_than_the_signed_size_are_no_success(files: Files, tmp_path: Path) -> None:
    assert "expected 200000 bytes, it made 5" in await files.failure(taken_over(tmp_path, "write(b'short')"))


@pytest.mark.parametrize(
    "act",
    [
        "open('{secret}').close()",
        "open('{folder}/new-file', 'w').close()",
        "os.listdir('{folder}')",
        "os.unlink('{secret}')",
        "os.chmod('{secret}', 0o777)",
        "socket.socket()",
        "subprocess.run(['/bin/true'])",
        "os.fork()",
        "os.kill(os.getppid(), 0)",
    ],
)
async def test_a_decoder_that_was_taken_over_is_denied(files: Files, tmp_path: Path, act: str) -> None:
    if not landlock.abi():
        pytest.skip("this kernel has no Landlock")
    secret = tmp_path / "device.key"
    secret.write_text("the key of the device")
    program = taken_over(tmp_path, act.format(secret=secret, folder=tmp_path))
    assert "Permission denied" in (said := await files.failure(program)) or "not permitted" in said
    assert secret.read_text() == "the key of the device"


async def test_a_decoder_has_no_more_memory_than_its_bound(files: Files, tmp_path: Path) -> None:
    said = await files.failure(taken_over(tmp_path, f"bytearray({MEMORY_MIB} * 2**20)"))
    assert said == f"patch patch: the patch needs more than {MEMORY_MIB} MiB to be decoded"


async def test_a_large_file_is_made_within_the_memory_bound(tmp_path: Path) -> None:
    weights = np.full(17_500_000, 1.5, np.float32)  # 70 MB, more than the bound
    weights[:4_000_000] = np.random.default_rng(2).normal(size=4_000_000)
    files = Files(tmp_path, safetensors(weights), safetensors(weights * np.float32(1.001)))
    peak = """
        decode(base, patch, write, size)
        status = open('/proc/self/status').read()
        os._exit(int(status.partition('VmHWM:')[2].split()[0]) >> 10)
    """
    said = await files.failure(taken_over(tmp_path, peak))
    assert 10 < int(said.rpartition(" ")[2]) <= MEMORY_MIB, said


async def test_a_decoder_without_end_is_killed_at_the_deadline(files: Files, tmp_path: Path) -> None:
    assert "not made after 2 s" in await files.failure(taken_over(tmp_path, "while True: pass"), 2.0)


async def test_a_decoder_that_talks_without_end_is_killed_and_its_words_are_bounded(
    files: Files, tmp_path: Path
) -> None:
    talk = "while True: sys.stderr.write('x' * 1000)"
    assert "not made after 2 s" in await files.failure(taken_over(tmp_path, talk), 2.0)
    shout = await files.failure(taken_over(tmp_path, "raise ValueError('x' * 30_000)"))
    assert len(shout) <= MAX_WORDS + len("patch patch: ")


async def test_a_program_that_does_not_exist_is_a_failed_patch(files: Files) -> None:
    assert "cannot start a process" in await files.failure(("/nonexistent",))


@pytest.fixture
def hanging(tmp_path: Path) -> tuple[str, ...]:
    """Says its pid in the file that it should make, and never ends."""
    return taken_over(tmp_path, "os.write(int(sys.argv[3]), b'%d\\n' % os.getpid())\nwhile True: pass")


def said_pid(out: Path) -> bool:
    return out.exists() and out.read_bytes().endswith(b"\n")


async def test_when_cancelled_the_process_is_gone_and_nothing_is_left(files: Files, hanging: tuple[str, ...]) -> None:
    task = asyncio.create_task(files.rebuild(program=hanging))
    await until(lambda: said_pid(files.out), "the decoder to run", DEADLINE_S)
    pid = int(files.out.read_text())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not alive(pid)
    assert not files.out.exists()


def test_when_the_agent_dies_the_decoder_dies_with_it(files: Files, hanging: tuple[str, ...]) -> None:
    program = (
        "import asyncio, sys\nfrom pathlib import Path\nfrom agent.patching import rebuild\n"
        f"asyncio.run(rebuild(*map(Path, sys.argv[1:4]), 200_000, {DEADLINE_S}, program={hanging!r}))\n"
    )
    paths = map(str, (files.base, files.patch, files.out))
    with subprocess.Popen([sys.executable, "-c", program, *paths], cwd="/") as agent:
        try:
            until_blocking(lambda: said_pid(files.out), "the decoder to run", DEADLINE_S)
            pid = int(files.out.read_text())
        finally:
            agent.send_signal(signal.SIGKILL)
    until_blocking(lambda: not alive(pid), "the decoder to end", DEADLINE_S)
