"""Settings as TOML: what the standard library reads and does not write. Pure; called by `agent.config`."""

from __future__ import annotations

import msgspec


def table(name: str, fields: dict[str, object], lines: list[str]) -> None:
    """TOML of plain values: scalars and lists first, then one table for each nested mapping."""
    if name:
        lines += ["", f"[{name}]"]
    for key, value in fields.items():
        if not isinstance(value, dict):
            lines.append(f"{key} = {_value(value)}")
    for key, value in fields.items():
        if isinstance(value, dict):
            table(f"{name}.{key}" if name else key, value, lines)


def _value(value: object) -> str:
    """JSON's strings, numbers and booleans are TOML's too; mappings inside lists become inline tables."""
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_value(item)}" for key, item in value.items()) + " }"
    return msgspec.json.encode(value).decode()
