"""A module's configuration as a value: what it may be, and the digest by which device and hub mean the same one. Pure.

The hub resolves it for each device and signs it (DirectorCustom.config), the module finds it in MOORING_CONFIG, and the
device reports its digest.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import msgspec

from modules.bundle import sha256_hex
from modules.errors import ConfigurationError

MAX_CONFIG_BYTES = 32 * 1024  # of one device's; it is one string in a worker's environment, where Linux takes 128 KiB
MAX_DEPTH = 16
MAX_SCHEMA_BYTES = 64 * 1024
_MAX_INTEGER = 2**63


def config_digest(config: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of the canonical JSON (sorted keys, no white space); empty where there is no configuration."""
    return sha256_hex(msgspec.json.encode(config, order="sorted")) if config else ""


def check_config(config: object) -> dict[str, Any]:
    """The configuration itself. Raises ConfigurationError: every party must read the same value from its JSON."""
    if not isinstance(config, dict):
        raise ConfigurationError(f"configuration: expected an object, got {type(config).__name__}")
    _check(config, "$", 0)
    size = len(msgspec.json.encode(config))
    if size > MAX_CONFIG_BYTES:
        raise ConfigurationError(f"configuration: expected at most {MAX_CONFIG_BYTES} bytes, got {size}")
    return config


def _check(value: object, path: str, depth: int) -> None:
    if depth > MAX_DEPTH:
        raise ConfigurationError(f"{path[:200]}: expected at most {MAX_DEPTH} levels")
    if isinstance(value, dict):
        for name, inner in value.items():
            _check(name, path, depth)
            _check(inner, f"{path}.{name}", depth + 1)
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            _check(inner, f"{path}[{index}]", depth + 1)
    else:
        why = _wrong(value)
        if why:
            raise ConfigurationError(f"{path[:200]}: expected {why}")


def _wrong(value: object) -> str:
    """What is expected of a value that holds no others; empty where it is that."""
    if isinstance(value, float):
        return "" if math.isfinite(value) else f"a finite number, got {value}"
    if isinstance(value, int):  # and bool
        return "" if -_MAX_INTEGER <= value < _MAX_INTEGER else "a whole number of 64 bits, got a larger one"
    if isinstance(value, str):
        return "text without NUL, which databases and environments refuse" if "\x00" in value else ""
    return "" if value is None else f"JSON, got {type(value).__name__}"
