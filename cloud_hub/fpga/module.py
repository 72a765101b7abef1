"""An overlay among a model version's files: what the hub's build reads of it. Called by `building`.

The hub opens no bitstream and runs no emulation: both are somebody's code. It reads the description, checks that its
files are there, and takes the answers that `mooring fpga build` has recorded.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path, PurePosixPath

from modules.overlay import EMULATION_NAME, MAX_OVERLAY_BYTES, OVERLAY_PATH, Overlay, OverlayError, decode_overlay

_SUFFIXES = frozenset({".bit", ".dtbo", ".hwh"})


def overlay_in(paths: Collection[str]) -> str:
    """The path of the description; empty where there is none. Raises OverlayError when there are two."""
    found = [path for path in paths if PurePosixPath(path).name == OVERLAY_PATH]
    if len(found) > 1:
        raise OverlayError(f"expected one {OVERLAY_PATH}, got {', '.join(sorted(found))}")
    return found[0] if found else ""


def is_of_overlay(path: str) -> bool:
    """Whether only a module of the FPGA may bring it."""
    file = PurePosixPath(path)
    return file.suffix.lower() in _SUFFIXES or EMULATION_NAME.fullmatch(file.name) is not None


def read_overlay(path: str, source: Path, paths: Collection[str]) -> Overlay:
    """The description at `path`, whose bytes are in `source`. Raises OverlayError, also for a file that is missing."""
    with source.open("rb") as file:
        overlay = decode_overlay(file.read(MAX_OVERLAY_BYTES + 1))
    folder = PurePosixPath(path).parent
    if missing := [name for name in overlay.paths if str(folder / name) not in paths]:
        raise OverlayError(f"{path}: {', '.join(missing)} named but not among the model's files; register the folder")
    return overlay
