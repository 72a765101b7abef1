"""The libraries that a module's script imports and that no device has: plain files below one folder of the module.

The hub resolves and unpacks them (`cloud_hub.building.environment`), the worker puts the folder on its import path
(`agent.backends.environment`). Pure names; what is in the files nobody here looks at.
"""

from __future__ import annotations

FOLDER = "environment"
LOCK_PATH = "requirements.lock"  # exact versions and the hashes of the wheels, for lineage


def is_inside(path: str, folder: str) -> bool:
    """Whether the file of a module lies below its environment's folder."""
    return bool(folder) and path.startswith(f"{folder}/")
