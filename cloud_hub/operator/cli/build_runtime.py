"""How a module shall run, from a runtime file (TOML) and the options beside it. Called by `building`.

The file says what a manifest's `runtime` says (`modules.runtime`), with two conveniences: a tensor may be written as
NAME:TYPE:SHAPE, and a stage may leave its tensors out, which the hub then reads off its model. A table [container] says
what a container may have (`cloud_hub.building.request`).
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import typer

from modules.errors import ModuleError
from modules.runtime import Provider, Runtime
from modules.tensors import TensorSpec

MAX_FILE_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Said:
    """What the file and the options say: a runtime, and of a container what stands in its table; None for nothing."""

    runtime: Runtime | None = None
    container: Mapping[str, Any] | None = None


def parse_tensor(text: str) -> TensorSpec:
    """NAME:TYPE:SHAPE. Raises BadParameter."""
    name, _, rest = text.partition(":")
    datatype, _, shape = rest.partition(":")
    try:
        return TensorSpec(name, datatype, tuple(int(number) for number in shape.split(",") if number))
    except (ValueError, ModuleError) as error:
        raise typer.BadParameter(
            f"expected NAME:TYPE:SHAPE such as image:FP32:-1,64, got {text!r} ({error})"
        ) from error


def parse_provider(text: str) -> Provider:
    """NAME or NAME:KEY=VALUE,KEY=VALUE. Raises BadParameter."""
    name, _, rest = text.partition(":")
    options: dict[str, str] = {}
    for pair in filter(None, rest.split(",")):
        key, sign, value = pair.partition("=")
        if not (name and key and sign):
            raise typer.BadParameter(f"expected NAME:KEY=VALUE,KEY=VALUE such as CUDA:device_id=0, got {text!r}")
        options[key] = value
    return Provider(name, options)


def read_runtime(file: Path | None, changes: Mapping[str, object]) -> Said:
    """The file with the options over it. Raises BadParameter with the field."""
    said: dict[str, Any] = _read(file) if file is not None else {}
    given = {name: value for name, value in changes.items() if value not in (None, (), "", False)}
    container = _table(said.pop("container"), "container") if "container" in said else None
    if not said and not given:
        return Said(None, container)
    said["stages"] = [_stage(stage) for stage in _tables(said, "stages")]
    try:
        return Said(msgspec.structs.replace(msgspec.convert(said, Runtime), **given), container)
    except (msgspec.ValidationError, ModuleError) as error:
        raise typer.BadParameter(f"{file or 'runtime'}: {error}", param_hint="--runtime") from error


def _read(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > MAX_FILE_BYTES:
            raise typer.BadParameter(f"{file}: expected at most {MAX_FILE_BYTES} bytes", param_hint="--runtime")
        return tomllib.loads(file.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise typer.BadParameter(f"{file}: {error}", param_hint="--runtime") from error


def _tables(said: Mapping[str, Any], name: str) -> Sequence[dict[str, Any]]:
    found = said.get(name, [])
    if not isinstance(found, list):
        raise typer.BadParameter(f"expected [[{name}]], got {type(found).__name__}", param_hint="--runtime")
    return [_table(one, name) for one in found]


def _table(value: object, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise typer.BadParameter(f"{name}: expected a table, got {type(value).__name__}", param_hint="--runtime")
    return value


def _stage(said: dict[str, Any]) -> dict[str, Any]:
    tensors = {key: [_tensor(one) for one in said.get(key, ())] for key in ("inputs", "outputs")}
    return {**said, **tensors}


def _tensor(value: object) -> object:
    return msgspec.to_builtins(parse_tensor(value)) if isinstance(value, str) else value
