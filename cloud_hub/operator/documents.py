"""Files in which people write down what they want: one YAML, JSON or TOML document with a table at the top.

Only read here, into plain values; what the names mean is the business of whoever asks. Called by `cli`.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any, Final

from cloud_hub.operator.errors import FileError

MAX_BYTES: Final = 1024 * 1024


def read_document(path: Path) -> dict[str, Any]:  # of any shape: the caller converts it
    """The table in the file, by its ending: .json, .toml, else YAML. Raises FileError."""
    text = _text(path)
    try:
        found = _parsed(path.suffix.lower(), text)
    except (ValueError, RecursionError) as error:
        raise FileError("document-invalid", f"{path}: not to be read as {_kind(path)}: {error}") from error
    if not isinstance(found, dict) or not all(isinstance(name, str) for name in found):
        raise FileError("document-invalid", f"{path}: expected names with values, got {type(found).__name__}")
    return found


def _text(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise FileError(
                "document-too-large", f"{path}: expected at most {MAX_BYTES} bytes, got {path.stat().st_size}"
            )
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FileError("document-unreadable", f"{path}: cannot be read: {error}") from error


def _parsed(suffix: str, text: str) -> object:
    if suffix == ".json":
        return json.loads(text)
    if suffix == ".toml":
        return tomllib.loads(text)
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def _kind(path: Path) -> str:
    return {".json": "JSON", ".toml": "TOML"}.get(path.suffix.lower(), "YAML")
