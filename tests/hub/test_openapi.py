import json
from typing import Any

import msgspec
import pytest
from aiohttp import web
from openapi_spec_validator import OpenAPIV31SpecValidator, validate

from cloud_hub.api.openapi import document
from cloud_hub.api.table import EVERY_ROUTE as ROUTES

EVERYTHING = {(route.method, route.path) for route in ROUTES}


@pytest.fixture(scope="module")
def served() -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(msgspec.json.encode(document(ROUTES)))
    return parsed


def test_the_document_is_valid_openapi_3_1(served: dict[str, Any]) -> None:
    validate(served, cls=OpenAPIV31SpecValidator)


def test_every_route_stands_in_the_document(served: dict[str, Any]) -> None:
    documented = sum(len(operations) for operations in served["paths"].values())
    assert documented == len(ROUTES) == len(EVERYTHING)


def test_every_operation_has_a_name_of_its_own_and_a_summary(served: dict[str, Any]) -> None:
    operations = [operation for path in served["paths"].values() for operation in path.values()]
    assert len({operation["operationId"] for operation in operations}) == len(operations)
    assert all(operation["summary"] for operation in operations)


def test_every_named_type_says_what_it_is(served: dict[str, Any]) -> None:
    schemas = served["components"]["schemas"].items()
    silent = [name for name, schema in schemas if schema.get("type") == "object" and not schema.get("description")]
    assert silent == []


def test_only_these_routes_ask_for_no_token(served: dict[str, Any]) -> None:
    public = {route.path for route in ROUTES if route.public}
    assert public == {
        "/health",
        "/ca",
        "/openapi.json",
        "/enroll",
        "/renew",
        "/login",
        "/trust/director/{filename}",
        "/trust/image/{filename}",
    }


def test_every_route_names_the_role_that_it_needs_or_is_public() -> None:
    assert [route.path for route in ROUTES if (route.role is None) != route.public] == []


def test_downloads_are_described_with_their_media_type() -> None:
    answers_itself = {web.Response, web.StreamResponse, web.FileResponse}
    wrong = [
        route.path
        for route in ROUTES
        if str(route.handler.__annotations__.get("return")).rpartition(".")[2]
        in {kind.__name__ for kind in answers_itself}
        and not route.media
    ]
    assert wrong == []
