"""The kernel's files below one root: this machine's, or those captured from another. Called by the readers here."""

from __future__ import annotations

import contextlib
from pathlib import Path

MAX_BYTES = 256 * 1024  # of one file: a server's /proc/cpuinfo is long


class Tree:
    """Never raises: a file that cannot be read is empty, a folder that is not there has nothing in it."""

    def __init__(self, root: Path = Path("/")) -> None:
        self.root = root

    def text(self, path: str) -> str:
        """Without the zeros that end the strings of a device tree, and without the last line's end."""
        try:
            with (self.root / path).open("rb") as file:
                return file.read(MAX_BYTES).decode("utf-8", "replace").replace("\0", " ").strip()
        except (OSError, ValueError):
            return ""

    def number(self, path: str) -> int | None:
        with contextlib.suppress(ValueError):
            return int(self.text(path))
        return None

    def names(self, folder: str) -> list[str]:
        try:
            return sorted(path.name for path in (self.root / folder).iterdir())
        except OSError:
            return []

    def has(self, path: str) -> bool:
        try:
            return (self.root / path).exists()
        except OSError:
            return False


THIS = Tree()
