"""Run a Dockerfile's steps on a base, with an engine beside the hub. Called by `images.bases`.

The engine's SDK is imported in a child process only (`images.engine`), which has a deadline.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import tarfile
import tempfile
from pathlib import Path

import msgspec

from cloud_hub.errors import Unavailable, Unprocessable
from cloud_hub.images.base import read_base
from cloud_hub.images.settings import ImageSettings

MAX_STEPS_BYTES = 64 * 1024
MAX_SAID = 2000
_FROM = re.compile(r"^\s*FROM\s", re.IGNORECASE | re.MULTILINE)
_UNREACHED = 3  # the child's exit status where there is no engine


async def run_steps(archive: Path, steps: Path, architecture: str, settings: ImageSettings, target: Path) -> Path:
    """The base with the steps done, as an archive at `target`. The steps begin from the base: they have no FROM.

    Raises Unprocessable `dockerfile-refused`, Unavailable `engine-unreachable`, ImageError.
    """
    text = _checked(steps)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="mooring-steps-", dir=target.parent) as folder:
        work = Path(folder)
        tag = f"mooring-build-{os.urandom(8).hex()}"
        await asyncio.to_thread(_as_saved, archive, architecture, work, f"{tag}:base")
        (work / "Dockerfile").write_text(f"FROM {tag}:base\n{text}\n")
        await _child(settings, work, tag, target)
    return target


def _checked(steps: Path) -> str:
    body = steps.read_bytes()
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise _refused(f"expected text: {error.reason}") from error
    if len(body) > MAX_STEPS_BYTES:
        raise _refused(f"expected at most {MAX_STEPS_BYTES} bytes")
    if _FROM.search(text):
        raise _refused("expected steps without FROM: they begin from the base that is named beside them")
    return text


def _as_saved(archive: Path, architecture: str, work: Path, tag: str) -> None:
    """An archive that engines of every age load, whatever form it came in."""
    image = read_base(archive, architecture, work / "layers")
    config = work / "config.json"
    config.write_bytes(msgspec.json.encode(image.config))
    saved = work / "manifest.json"
    layers = [layer.path.name for layer in image.layers]
    saved.write_bytes(msgspec.json.encode([{"Config": config.name, "RepoTags": [tag], "Layers": layers}]))
    with tarfile.open(work / "base.tar", "w") as tar:
        for path in (saved, config, *(layer.path for layer in image.layers)):
            tar.add(path, path.name)


async def _child(settings: ImageSettings, work: Path, tag: str, target: Path) -> None:
    """The images that it makes in the engine are gone when it ends by itself."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "cloud_hub.images.engine", settings.engine, str(work), tag, str(target),
        settings.steps_network,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd="/",
    )  # fmt: skip
    try:
        async with asyncio.timeout(settings.steps_s):
            said, _ = await child.communicate()
    except TimeoutError:
        raise _refused(f"the steps did not end within {settings.steps_s:g} s") from None
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    words = said[-MAX_SAID:].decode(errors="replace").strip()
    if child.returncode == _UNREACHED:
        raise Unavailable("engine-unreachable", f"engine {settings.engine}: {words}; nothing was built")
    if child.returncode:
        raise _refused(words or f"exit status {child.returncode}")


def _refused(text: str) -> Unprocessable:
    return Unprocessable("dockerfile-refused", f"Dockerfile: {text}; nothing was built")
