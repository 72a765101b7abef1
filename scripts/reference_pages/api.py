"""The HTTP API, from the OpenAPI document that the hub serves: one table of operations, one table per type."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

Json = Mapping[str, Any]


def page() -> str:
    """api.md"""
    document = _document()
    parts = [
        "# The hub's API\n",
        "Below `/api/v1` of the hub's HTTPS address. Every operation but the public ones needs",
        "`Authorization: Bearer TOKEN` (a hub writes its first token to `operator.token`) of somebody who has the",
        "[role](../operate/people.md). Every failure has the body",
        '`{"error": {"key", "message", "fields"}}`; the [keys](errors.md) are stable. The same as OpenAPI 3.1:',
        "`GET /api/v1/openapi.json`.\n",
        *_operations(document),
        "\n## Types\n",
        *_types(document["components"]["schemas"]),
    ]
    return "\n".join(parts).rstrip() + "\n"


def _document() -> Json:
    from cloud_hub.api.openapi import document
    from cloud_hub.api.table import EVERY_ROUTE

    return document(EVERY_ROUTE)


def _operations(document: Json) -> Iterator[str]:
    yield "| Operation | | Role | Body | Answer |"
    yield "|---|---|---|---|---|"
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if method not in ("get", "post", "put", "delete", "patch"):
                continue
            role = operation.get("x-mooring-role", "(public)")
            query = [p["name"] for p in operation.get("parameters", ()) if p["in"] == "query"]
            asked = f"?{'&'.join(query)}" if query else ""
            body = _content(operation.get("requestBody", {}))
            call = f"`{method.upper()} {path}{asked}`"
            yield f"| {call} | {operation['summary']} | {role} | {body} | {_answer(operation)} |"


def _answer(operation: Json) -> str:
    for status, answer in operation["responses"].items():
        if status.startswith("2"):
            return " ".join(filter(None, (status, _content(answer))))
    return ""


def _content(part: Json) -> str:
    for kind, content in part.get("content", {}).items():
        return _type(content["schema"]) if kind == "application/json" and "schema" in content else f"`{kind}`"
    return ""


def _types(schemas: Json) -> Iterator[str]:
    for name in sorted(schemas):
        schema = schemas[name]
        yield f"### {name}\n"
        if schema.get("description"):
            yield inspect.cleandoc(schema["description"]) + "\n"
        if schema.get("properties"):
            yield "| Field | Type | Default |"
            yield "|---|---|---|"
            for field, inner in schema["properties"].items():
                default = "required" if field in schema.get("required", ()) else _default(inner)
                yield f"| `{field}` | {_type(inner)} | {default} |"
            yield ""


def _default(schema: Json) -> str:
    import json

    return f"`{json.dumps(schema['default'])}`" if "default" in schema else "-"


def _type(schema: Json) -> str:
    if "$ref" in schema:
        name = str(schema["$ref"]).rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for word in ("anyOf", "oneOf", "allOf"):
        if word in schema:
            return " or ".join(_type(inner) for inner in schema[word])
    if "enum" in schema:
        return " or ".join(f"`{value}`" if value else '`""`' for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    kind = schema.get("type", "any")
    if kind == "array":
        items = schema.get("items") or {}
        return f"list of {_type(items)}" if items else "list"
    if kind == "object":
        inner = schema.get("additionalProperties")
        return f"map to {_type(inner)}" if isinstance(inner, Mapping) and inner else "object"
    return str(kind)
