"""The child process that checks schemas and configurations: `python -m cloud_hub.configuration.child`.

Questions on standard input, answers on standard output. Ended by the kernel when it takes more than its processor time
or memory. Started by `schemas`.
"""

from __future__ import annotations

import re
import resource
import sys
from collections.abc import Iterator
from itertools import islice
from typing import Any

import msgspec
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, ValidationError
from referencing import Registry
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from cloud_hub.configuration.schemas import CPU_S, MAX_FAILURES, MEMORY_BYTES, Answer, Failure, Question

MAX_WHY = 200


def main() -> int:
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_S, CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    questions = msgspec.json.decode(sys.stdin.buffer.read(), type=list[Question])
    sys.stdout.buffer.write(msgspec.json.encode([_answer(question) for question in questions]))
    return 0


def _answer(question: Question) -> Answer:
    try:
        Draft202012Validator.check_schema(question.schema)
    except SchemaError as error:
        return Answer(f"{error.json_path}: {error.message}"[:MAX_WHY])
    wrong = next(_unusable(question.schema, question.schema, "$"), "")
    if wrong:
        return Answer(wrong[:MAX_WHY])
    validator = Draft202012Validator(question.schema, registry=Registry())  # which fetches nothing
    return Answer(failures=tuple(_failures(validator, config) for config in question.configurations))


def _failures(validator: Draft202012Validator, config: dict[str, Any]) -> tuple[Failure, ...]:
    found: Iterator[ValidationError] = islice(validator.iter_errors(config), MAX_FAILURES)
    return tuple(Failure(error.json_path[:MAX_WHY], error.message[:MAX_WHY]) for error in found)


def _unusable(value: object, root: dict[str, Any], path: str) -> Iterator[str]:
    """Patterns that do not compile, and references that lead nowhere, which would fail only when they are needed."""
    if isinstance(value, list):
        for index, inner in enumerate(value):
            yield from _unusable(inner, root, f"{path}[{index}]")
    if not isinstance(value, dict):
        return
    for name, inner in value.items():
        if name == "pattern" and isinstance(inner, str) and (why := _no_pattern(inner)):
            yield f"{path}.pattern: {why}"
        elif name == "patternProperties" and isinstance(inner, dict):
            yield from (f"{path}.{name}: {why}" for pattern in inner if (why := _no_pattern(pattern)))
        elif name == "$ref" and isinstance(inner, str) and not _leads_somewhere(inner, root):
            yield f"{path}.$ref: {inner!r} leads nowhere"
        yield from _unusable(inner, root, f"{path}.{name}")


def _no_pattern(pattern: str) -> str:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        return f"{pattern!r} is no pattern: {error}"
    return ""


def _leads_somewhere(reference: str, root: dict[str, Any]) -> bool:
    try:
        Registry().with_resource("", DRAFT202012.create_resource(root)).resolver().lookup(reference)
    except (Unresolvable, ValueError):
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
