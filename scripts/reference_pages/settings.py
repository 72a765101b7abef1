"""The settings of hub and agent, from the types that parse the files: name, type, default, and the types' own words."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator
from typing import get_type_hints

import msgspec

from agent.config import AgentConfig
from cloud_hub.config import ENVIRONMENT_PREFIX, HubConfig
from firmware_profiles.profile import DeviceProfile


def page() -> str:
    """settings.md"""
    parts = [
        "# Settings\n",
        "Units stand in the names: `_s` seconds, `_ms` milliseconds, `_bytes` bytes, `_mib` MiB.\n",
        "## The hub: `hub.toml`\n",
        *_described(HubConfig),
        *_table(HubConfig, environment=True),
        *_sections(HubConfig),
        "\n## The agent: `agent.toml`\n",
        "Written by `mooring-agent enroll` in the state directory, read at start. An unknown name is an error.\n",
        *_described(AgentConfig),
        *_table(AgentConfig),
        *_sections(AgentConfig),
    ]
    return "\n".join(parts) + "\n"


def _sections(kind: type[msgspec.Struct]) -> Iterator[str]:
    """One table for each nested type, in the order of the fields."""
    hints = get_type_hints(kind)
    for field in msgspec.structs.fields(kind):
        nested = hints[field.name]
        if isinstance(nested, type) and issubclass(nested, msgspec.Struct):
            yield f"\n### `[{field.name}]`\n"
            yield from _described(nested)
            yield from _table(nested, skip_nested=nested is not DeviceProfile)


def _described(kind: type[msgspec.Struct]) -> Iterator[str]:
    text = inspect.getdoc(kind) or ""
    yield "\n".join(textwrap.fill(part, 120) for part in text.split("\n\n")) + "\n"


def _table(kind: type[msgspec.Struct], environment: bool = False, skip_nested: bool = True) -> Iterator[str]:
    yield "| Setting | Type | Default |" + (" Environment |" if environment else "")
    yield "|---|---|---|" + ("---|" if environment else "")
    hints = get_type_hints(kind)
    for field in msgspec.structs.fields(kind):
        hint = hints[field.name]
        nested = isinstance(hint, type) and issubclass(hint, msgspec.Struct)
        if nested and skip_nested:
            continue
        twin = f" `{ENVIRONMENT_PREFIX}{field.encode_name.upper()}` |" if environment else ""
        yield f"| `{field.encode_name}` | {_type(hint)} | {_default(field)} |{twin}"


def _type(hint: object) -> str:
    words = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    if isinstance(hint, type) and hint in words:
        return words[hint]
    if isinstance(hint, type):
        return f"table {hint.__name__}"
    return "list" if str(hint).startswith("tuple") else str(hint).replace("|", "or")


def _default(field: msgspec.structs.FieldInfo) -> str:
    if field.required:
        return "required"
    if field.default is msgspec.NODEFAULT:
        return "-"
    return f"`{msgspec.json.encode(field.default).decode()}`"
