"""The OpenAPI 3.1 document of a table of routes: schemas from the very types that parse the requests.

Pure. Served by `api.app`, printed by `mooring-hub openapi`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from cloud_hub import __version__
from cloud_hub.api.pages import TOTAL_HEADER
from cloud_hub.api.problem import MEDIA, Problem
from cloud_hub.api.route import PREFIX, REVISION, Route
from cloud_hub.operations.book import Operation
from cloud_hub.roles import Role

Json = dict[str, Any]  # a document for others to read; nothing of ours looks into it
TEXT: Final[Json] = {"schema": {"type": "string"}}
KEY_CHARS: Final = 255
CHANGES: Final = ("PUT", "PATCH", "DELETE")
_REF = "#/components/schemas/{name}"
_PARAMETER = re.compile(r"\{(\w+)(?::[^}]*)?\}")


def document(routes: Sequence[Route]) -> Json:
    """The whole document, as plain JSON types."""
    kinds = _kinds(routes)
    shown = {route.path for route in routes if route.tagged}
    schemas, components = msgspec.json.schema_components(kinds, ref_template=_REF)
    schema_of = {_name(kind): schema for kind, schema in zip(kinds, schemas, strict=True)}
    paths: dict[str, Json] = {}
    for route in routes:
        plain = PREFIX + _PARAMETER.sub(r"{\1}", route.path)
        paths.setdefault(plain, {})[route.method.lower()] = _operation(route, schema_of, route.path in shown)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Mooring hub",
            "version": __version__,
            "summary": "Registry, signed modules, devices, rollouts and monitoring.",
            "x-mooring-revision": REVISION,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": room} for room in sorted({route.room for route in routes})],
        "security": [{"token": []}],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "token": {"type": "http", "scheme": "bearer"},
                "right": {"type": "apiKey", "in": "query", "name": "right"},
            },
        },
    }


def _kinds(routes: Sequence[Route]) -> list[Any]:
    found: dict[str, Any] = {_name(Problem): Problem, _name(Operation): Operation}
    for route in routes:
        for kind in (route.body, route.returns):
            if kind is not None:
                found.setdefault(_name(kind), kind)
        for field in msgspec.structs.fields(route.query) if route.query else ():
            found.setdefault(_name(field.type), field.type)
    return list(found.values())


def _name(kind: object) -> str:
    """Two types are the same when they read the same, with their modules."""
    return repr(kind)


def _operation(route: Route, schema_of: Json, is_shown: bool) -> Json:
    """`is_shown`: there is a GET on the same path, whose entity tag a change may name."""
    operation: Json = {
        "operationId": route.name,
        "summary": route.summary,
        "tags": [route.room],
        "parameters": [
            *_path_parameters(route),
            *_query_parameters(route, schema_of),
            *_header_parameters(route, is_shown),
        ],
        "responses": _responses(route, schema_of),
    }
    if route.public:
        operation["security"] = []
    else:
        operation["x-mooring-role"] = str(route.role or Role.ADMIN)
    if route.by_right:
        operation["security"] = [{"token": []}, {"right": []}]
    if route.body is not None:
        operation["requestBody"] = {"required": True, "content": _json(schema_of[_name(route.body)])}
    if route.upload:
        operation["requestBody"] = {"required": True, "content": {"application/octet-stream": {}}}
    return operation


def _path_parameters(route: Route) -> list[Json]:
    names = _PARAMETER.findall(route.path)
    return [
        {"name": name, "in": "path", "required": True, "schema": {"type": "integer" if name == "version" else "string"}}
        for name in names
    ]


def _query_parameters(route: Route, schema_of: Json) -> list[Json]:
    if route.query is None:
        return []
    return [
        {"name": field.encode_name, "in": "query", "required": field.required, "schema": schema_of[_name(field.type)]}
        for field in msgspec.structs.fields(route.query)
    ]


def _header_parameters(route: Route, is_shown: bool) -> list[Json]:
    """What may stand in the head of the request; what each means is in docs/extend/api.md."""
    found = []
    if route.keyed:
        found.append(_header("Idempotency-Key", "The same request with the same key is done once", KEY_CHARS))
    if route.tagged:
        found.append(_header("If-None-Match", "Tags of what the client has already"))
    if route.method in CHANGES and is_shown:
        found.append(_header("If-Match", "The tag of the state that is changed"))
    if route.slow:
        found.append(_header("Prefer", "respond-async: 202 and a long operation"))
    if route.media == "text/event-stream":
        found.append(_header("Last-Event-ID", "The id of the last event that was seen"))
    return found


def _header(name: str, text: str, most: int = 1000) -> Json:
    return {"name": name, "in": "header", "description": text, "schema": {"type": "string", "maxLength": most}}


def _responses(route: Route, schema_of: Json) -> Json:
    failure = {"description": "Why not", "content": {MEDIA: {"schema": schema_of[_name(Problem)]}}}
    found: Json = {}
    if route.returns is not None:
        good: Json = {"description": "Done", "content": _json(schema_of[_name(route.returns)])}
        found[str(route.status)] = good | ({"headers": _headers(route)} if _headers(route) else {})
    elif route.media:
        found[str(route.status)] = {"description": "The content", "content": {route.media: {}}}
    else:
        found["204"] = {"description": "Done"}
    if route.slow:
        content = _json(schema_of[_name(Operation)])
        found["202"] = {"description": "It is being done", "headers": {"Location": TEXT}, "content": content}
    if route.tagged:
        found["304"] = {"description": "As the client has it"}
    return found | {"default": failure}


def _headers(route: Route) -> Json:
    if route.paged:
        return {"Link": TEXT, TOTAL_HEADER: {"schema": {"type": "integer"}}}
    return {"ETag": TEXT} if route.tagged else {}


def _json(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}
