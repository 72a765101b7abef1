"""The client against the OpenAPI document: every operation has a method, and both mean the same types."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from cloud_hub.api.openapi import document
from cloud_hub.api.route import PREFIX
from cloud_hub.api.table import EVERY_ROUTE
from support.client_calls import ClientCall, client_calls

# Operations that no operator and no publisher calls, or that the client reaches in another way: why.
NOT_CALLED = {
    "devices_enroll_device": "devices call it, with their claim token",
    "devices_renew_certificate": "devices call it, with their key",
    "blobs_inspect_blob": "for those who download files without this client",
    "system_authority": "the context names the CA's file already",
    "system_description": "for those who have no client yet",
}
CALLS = client_calls()


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Method, path below the prefix, and the operation."""
    served = json.loads(msgspec.json.encode(document(EVERY_ROUTE)))
    for path, methods in served["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path.removeprefix(PREFIX), operation


OPERATIONS = list(operations())


def calls_of(method: str, path: str) -> list[ClientCall]:
    return [call for call in CALLS if call.asks_for(method, path)]


def schemas() -> dict[str, Any]:
    """Of every type that a route or a method names, by what it is called; made together, so that names are the same."""
    named = [kind for route in EVERY_ROUTE for kind in (route.returns, route.body)]
    named += [kind for call in CALLS for kind in (call.answer, call.body)]
    kinds = {repr(kind): kind for kind in named if kind is not None and kind is not ...}
    found, _ = msgspec.json.schema_components(kinds.values(), ref_template="#/components/schemas/{name}")
    return dict(zip(kinds, found, strict=True))


SCHEMAS = schemas()
ROUTES = {route.name: route for route in EVERY_ROUTE}


def test_every_operation_of_the_document_has_a_method_of_the_client() -> None:
    missing = [
        f"{operation['operationId']}: {method} {path}"
        for method, path, operation in OPERATIONS
        if operation["operationId"] not in NOT_CALLED and not calls_of(method, path)
    ]
    assert missing == []


def test_no_exception_is_out_of_date() -> None:
    known = {operation["operationId"]: (method, path) for method, path, operation in OPERATIONS}
    assert sorted(NOT_CALLED.keys() - known.keys()) == []
    assert [name for name in NOT_CALLED if calls_of(*known[name])] == []


def test_no_method_asks_for_what_is_not_in_the_document() -> None:
    unknown = [
        f"{call.name}: {call.method} {call.path}"
        for call in CALLS
        if not any(call.asks_for(method, path) for method, path, _ in OPERATIONS)
    ]
    assert unknown == []


@pytest.mark.parametrize(
    ("method", "path", "operation"), OPERATIONS, ids=[operation["operationId"] for _, _, operation in OPERATIONS]
)
def test_client_and_document_mean_the_same(method: str, path: str, operation: dict[str, Any]) -> None:
    route = ROUTES[operation["operationId"]]
    names = {parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "query"}
    for call in calls_of(method, path):
        if call.answer is not None:
            assert SCHEMAS[repr(call.answer)] == SCHEMAS[repr(route.returns)], f"{call.name} reads another answer"
        if call.body is None:
            assert route.body is None or not _needed(route.body), f"{call.name} sends no body"
        elif call.body is not ...:
            assert route.body is not None, f"{call.name} sends a body"
            assert SCHEMAS[repr(call.body)] == SCHEMAS[repr(route.body)], f"{call.name} sends another body"
        if call.query is not None:
            assert call.query <= names, f"{call.name} sends what is not in the query"


def _needed(body: type) -> bool:
    """Whether an empty body would not do."""
    return any(field.required for field in msgspec.structs.fields(body))
