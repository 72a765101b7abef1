"""The OpenAPI 3.1 document of a table of routes: schemas from the very types that parse the requests.

Pure. Served by `api.app`, printed by `mooring-hub openapi`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from cloud_hub import __version__
from cloud_hub.api.problem import MEDIA, Problem
from cloud_hub.api.route import PREFIX, Route
from cloud_hub.roles import Role

Json = dict[str, Any]  # a document for others to read; nothing of ours looks into it
_REF = "#/components/schemas/{name}"
_PARAMETER = re.compile(r"\{(\w+)(?::[^}]*)?\}")


def document(routes: Sequence[Route]) -> Json:
    """The whole document, as plain JSON types."""
    kinds = _kinds(routes)
    schemas, components = msgspec.json.schema_components(kinds, ref_template=_REF)
    schema_of = {_name(kind): schema for kind, schema in zip(kinds, schemas, strict=True)}
    paths: dict[str, Json] = {}
    for route in routes:
        plain = PREFIX + _PARAMETER.sub(r"{\1}", route.path)
        paths.setdefault(plain, {})[route.method.lower()] = _operation(route, schema_of)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Mooring hub",
            "version": __version__,
            "summary": "Registry, signed modules, devices, rollouts and monitoring.",
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
    found: dict[str, Any] = {_name(Problem): Problem}
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


def _operation(route: Route, schema_of: Json) -> Json:
    operation: Json = {
        "operationId": route.name,
        "summary": route.summary,
        "tags": [route.room],
        "parameters": [*_path_parameters(route), *_query_parameters(route, schema_of)],
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


def _responses(route: Route, schema_of: Json) -> Json:
    failure = {"description": "Why not", "content": {MEDIA: {"schema": schema_of[_name(Problem)]}}}
    if route.returns is not None:
        good: Json = {"description": "Done", "content": _json(schema_of[_name(route.returns)])}
        return {str(route.status): good, "default": failure}
    if route.media:
        return {str(route.status): {"description": "The content", "content": {route.media: {}}}, "default": failure}
    return {"204": {"description": "Done"}, "default": failure}


def _json(schema: Json) -> Json:
    return {"application/json": {"schema": schema}}
