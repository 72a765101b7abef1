"""Schemas of configurations: what may be one, and that checking has an end whatever they say."""

from __future__ import annotations

import time
from typing import Any

import pytest

from cloud_hub.configuration import schemas
from cloud_hub.configuration.schemas import DIALECT, Failure, Question, ask, schema_text
from cloud_hub.errors import Unprocessable
from modules.configuration import MAX_SCHEMA_BYTES

SCHEMA = {
    "$schema": DIALECT,
    "type": "object",
    "properties": {"threshold": {"type": "number", "minimum": 0, "maximum": 1}, "mode": {"$ref": "#/$defs/mode"}},
    "$defs": {"mode": {"enum": ["fast", "exact"]}},
    "additionalProperties": False,
}


def nested(levels: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for _ in range(levels):
        found = {"not": found}
    return found


async def test_a_schema_is_kept_as_canonical_text() -> None:
    text = await schema_text(SCHEMA)
    assert text.startswith('{"$defs":{"mode":{"enum":["fast","exact"]}},"$schema":')
    assert await schema_text(dict(reversed(SCHEMA.items()))) == text


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "objekt"}, r"\$\.type"),
        ({"properties": {"a": {"minimum": "1"}}}, r"\$\.properties\.a\.minimum"),
        ({"$ref": "https://example.com/schema"}, "within the schema"),
        ({"items": {"$ref": "file:///etc/passwd"}}, "within the schema"),
        ({"properties": {"a": {"$ref": "#/$defs/none"}}}, "leads nowhere"),
        ({"$id": "https://example.com/", "type": "object"}, r"\$id"),
        ({"$schema": "http://json-schema.org/draft-07/schema#"}, "2020-12"),
        ({"pattern": "("}, "pattern"),
        ({"patternProperties": {"(": {}}}, "pattern"),
        ({"pattern": "a" * 301}, "at most 300 characters"),
        ({"description": "x" * MAX_SCHEMA_BYTES}, "at most 65536 bytes"),
        (nested(50), "at most 40 levels"),
    ],
    ids=str,
)
async def test_what_is_no_schema_or_leads_elsewhere_is_refused_with_its_place(
    schema: dict[str, Any], words: str
) -> None:
    with pytest.raises(Unprocessable, match=words) as refused:
        await schema_text(schema)
    assert refused.value.key == "schema-invalid"


async def test_a_property_may_be_named_like_a_word_of_schemas() -> None:
    await schema_text({"properties": {"$id": {"type": "string"}, "pattern": {"type": "integer"}, "$ref": {}}})


async def test_configurations_are_answered_in_order_with_path_and_reason() -> None:
    (answer,) = await ask([Question(SCHEMA, ({"threshold": 2}, {"mode": "fast"}, {"mode": "slow", "x": 1}))])
    assert answer.failures[0] == (Failure("$.threshold", "2 is greater than the maximum of 1"),)
    assert answer.failures[1] == ()
    assert [failure.path for failure in answer.failures[2]] == ["$.mode", "$"]


async def test_references_in_a_circle_end_with_an_error() -> None:
    with pytest.raises(Unprocessable, match="simplify its schema") as refused:
        await ask([Question({"$ref": "#"}, ({"a": 1},))])
    assert refused.value.key == "schema-too-complex"


async def test_a_pattern_that_takes_for_ever_is_ended_by_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schemas, "DEADLINE_S", 60.0)  # so that it is the bound on processor time that ends it
    began = time.process_time()
    with pytest.raises(Unprocessable, match="5 s or 1024 MiB"):
        await ask([Question({"properties": {"a": {"pattern": "^(a+)+$"}}}, ({"a": "a" * 60 + "b"},))])
    assert time.process_time() - began < 2.0, "none of it was this process's time"
