"""A folder as `mooring device export` writes it, made from a `World`, for tests that need no hub."""

from __future__ import annotations

import time
from pathlib import Path

from modules.offline import (
    BLOBS_FOLDER,
    DIRECTOR_FOLDER,
    FORMAT,
    IMAGE_FOLDER,
    NOTE_FILE,
    ROOTS_FOLDER,
    Note,
    write_note,
)
from support.repository import World


def write_stick(world: World, folder: Path, *, complete: bool = True) -> Path:
    """Everything that the world has put out, for its one device; what lies there already is overwritten."""
    for (repository, name), data in world.files.items():
        place = folder / BLOBS_FOLDER
        if repository == "image":
            place = folder / IMAGE_FOLDER
        elif repository == "director":
            place = folder / (ROOTS_FOLDER if name.endswith(".root.json") else f"{DIRECTOR_FOLDER}/{world.device}")
        place.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    note = Note(FORMAT, (world.device,), time.time(), time.time() + 86_400, complete=complete)
    (folder / NOTE_FILE).write_bytes(write_note(note))
    return folder


def largest_blob(folder: Path) -> Path:
    return max((folder / BLOBS_FOLDER).iterdir(), key=lambda path: path.stat().st_size)
