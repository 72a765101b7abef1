"""A real small disk that is really full: an agent that starts on it serves. What follows is the matrix's affair."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from faults.rig import rig
from faults.shim import build


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Some megabytes, mounted at `folder`. Skips where this user may not mount."""
    folder.mkdir(parents=True, exist_ok=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"needs to mount a disk of its own: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Takes the last block."""
    command = ["dd", "if=/dev/zero", f"of={folder / 'filler'}", "bs=4096"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "No space left" in done.stderr


@pytest.mark.timeout(180)
async def test_a_device_that_starts_on_a_full_disk_serves(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("k")  # short, because sockets of endpoints lie below it
    async with rig(folder / "rig", build(folder)) as device:
        await device.forget()
        device.wipe()
        with small_disk(device.paths.root):
            subprocess.run(["cp", "-a", f"{device.template}/.", str(device.paths.root)], check=True)
            fill(device.paths.root)
            await device.start()
            await device.serves()
            await device.kill()
