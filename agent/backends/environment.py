"""Puts the libraries that a module brings on the import path of its worker (`modules.environment`).

They stand behind the interpreter's own and before what is installed on the device: what a module brings wins over what
happens to be there, but for the libraries that the worker itself has loaded by then. Called by the session.
"""

from __future__ import annotations

import sys
from pathlib import Path


def use_libraries(folder: Path) -> None:
    """Once, before the script is imported. Nothing of the folder is run, neither now nor because it is there."""
    before = next((at for at, path in enumerate(sys.path) if path.endswith("-packages")), len(sys.path))
    sys.path.insert(before, str(folder))
