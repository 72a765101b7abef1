"""Schemas of configurations: what may be one, and whether configurations satisfy theirs.

JSON Schema of 2020-12, checked within bounds: text and depth here, time and memory of validation in a child process,
because a pattern or nested alternatives can take for ever on a short text. Used by `building.model_module` and
`fitting`.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from cloud_hub.errors import HubError, Unprocessable
from modules.configuration import MAX_SCHEMA_BYTES

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
MAX_SCHEMA_DEPTH: Final = 40
MAX_PATTERN_CHARS: Final = 300
DEADLINE_S: Final = 30.0  # of the child, its start on a busy machine included
CPU_S: Final = 5  # of the child's processor time
MEMORY_BYTES: Final = 1024**3
MAX_ANSWER_BYTES: Final = 4 * 1024 * 1024
MAX_FAILURES: Final = 5  # of one configuration
_PROGRAM: Final = "cloud_hub.configuration.child"
_ELSEWHERE: Final = frozenset(
    {"$id", "$dynamicRef", "$dynamicAnchor", "$recursiveRef", "$recursiveAnchor", "$vocabulary"}
)


class Question(msgspec.Struct, frozen=True):
    """To the child: a schema, and configurations by it."""

    schema: dict[str, Any]  # JSON
    configurations: tuple[dict[str, Any], ...] = ()


class Failure(msgspec.Struct, frozen=True):
    """What of a configuration does not satisfy its schema. `path` is a JSON path."""

    path: str
    why: str


class Answer(msgspec.Struct, frozen=True):
    """From the child, to one question: why the schema is none, or the failures of each configuration."""

    invalid: str = ""
    failures: tuple[tuple[Failure, ...], ...] = ()


async def schema_text(schema: Mapping[str, Any]) -> str:
    """The schema as canonical JSON. Raises Unprocessable `schema-invalid` with what is wrong, and where."""
    text = msgspec.json.encode(schema, order="sorted")
    if len(text) > MAX_SCHEMA_BYTES:
        raise _invalid(f"expected at most {MAX_SCHEMA_BYTES} bytes, got {len(text)}")
    _check(schema, "$", 0)
    if schema.get("$schema", DIALECT) != DIALECT:
        raise _invalid(f"$schema: expected {DIALECT}, got {str(schema['$schema'])[:120]!r}")
    (answer,) = await ask([Question(dict(schema))])
    if answer.invalid:
        raise _invalid(answer.invalid)
    return text.decode()


async def ask(questions: Sequence[Question]) -> list[Answer]:
    """Answers in the order of the questions. Raises Unprocessable `schema-too-complex` where that takes too much."""
    child = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", _PROGRAM, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL, env=_environment(),
    )  # fmt: skip
    try:
        out, _ = await asyncio.wait_for(child.communicate(msgspec.json.encode(questions)), DEADLINE_S)
    except TimeoutError as error:
        raise _too_complex() from error
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
    if child.returncode != 0 or len(out) > MAX_ANSWER_BYTES:
        raise _too_complex()
    return msgspec.json.decode(out, type=list[Answer])


def _check(value: object, path: str, depth: int) -> None:
    """What the library would follow, or take long over."""
    if depth > MAX_SCHEMA_DEPTH:
        raise _invalid(f"{path[:200]}: expected at most {MAX_SCHEMA_DEPTH} levels")
    if isinstance(value, list):
        for index, inner in enumerate(value):
            _check(inner, f"{path}[{index}]", depth + 1)
    if not isinstance(value, dict):
        return
    for name, inner in value.items():
        here = f"{path}.{name}"
        if name in _ELSEWHERE and isinstance(inner, (str, bool)):
            raise _invalid(f"{here[:200]}: this word is not taken; use $defs and a local $ref")
        if name == "$ref" and isinstance(inner, str) and not inner.startswith("#"):
            raise _invalid(f"{here[:200]}: expected a reference within the schema (#/$defs/...), got {inner[:120]!r}")
        if name == "pattern" and isinstance(inner, str) and len(inner) > MAX_PATTERN_CHARS:
            raise _invalid(f"{here[:200]}: expected a pattern of at most {MAX_PATTERN_CHARS} characters")
        _check(inner, here, depth + 1)


def _environment() -> dict[str, str]:
    """No secrets of the hub reach the child."""
    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "PYTHONPATH") if name in os.environ}


def _invalid(text: str) -> HubError:
    return Unprocessable("schema-invalid", f"schema of the configuration: {text}; nothing was built")


def _too_complex() -> HubError:
    text = f"checking a configuration takes more than {CPU_S} s or {MEMORY_BYTES // 2**20} MiB: simplify its schema"
    return Unprocessable("schema-too-complex", f"{text} (patterns, alternatives, references); nothing was changed")
