import json
from typing import Any, get_origin

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


# Reports that are made when they are asked for, one per module, output or build: there is no next page of them.
NOT_PAGED = {"/drift", "/quality"}


def test_every_list_comes_in_pages() -> None:
    whole = {route.path for route in ROUTES if route.method == "GET" and get_origin(route.returns) is list}
    whole -= {route.path for route in ROUTES if route.paged}
    assert whole == NOT_PAGED


# Sent as a page that has all of it: `after` is a revision there, and not a cursor.
ONE_PAGE = {"/configurations/{module}/differences"}


def test_the_query_of_a_list_has_a_limit_and_a_cursor() -> None:
    paged = {route.path: route.query for route in ROUTES if route.paged and route.path not in ONE_PAGE}
    names = {
        path: {field.encode_name for field in msgspec.structs.fields(kind)} for path, kind in paged.items() if kind
    }
    assert names.keys() == paged.keys()
    assert [path for path, found in names.items() if "limit" not in found or not found & {"after", "before"}] == []


# Changes of what no GET shows on the same path: why no state of it can be named.
UNSEEN = {
    "/trust/publishers/{publisher}": "versions and signatures of TUF say more",
    "/trust/targets": "as above",
    "/trust/roots/{repository}": "as above",
    "/users/{name}/password": "whoever sets it has not seen it",
    "/api-tokens/{id}": "it is there or not",
    "/tokens/{id}": "it is there or not",
    "/watches/{module}": "a module has one for each scope; the list shows them",
    "/quality/bounds": "the path is the list's, the query says which",
}


def test_what_can_be_changed_can_be_seen_so_that_its_state_can_be_named() -> None:
    changed = {route.path for route in ROUTES if route.method in ("PUT", "PATCH", "DELETE")}
    assert changed - {route.path for route in ROUTES if route.tagged} == UNSEEN.keys()


def test_the_document_says_what_may_stand_in_the_head(served: dict[str, Any]) -> None:
    def headers(path: str, method: str) -> set[str]:
        found = served["paths"][f"/api/v1{path}"][method]["parameters"]
        return {parameter["name"] for parameter in found if parameter["in"] == "header"}

    assert headers("/modules", "post") == {"Idempotency-Key", "Prefer"}
    assert headers("/users/{name}", "patch") == {"If-Match"}
    assert headers("/users/{name}", "get") == {"If-None-Match"}
    assert headers("/login", "post") == set()
    assert headers("/events/stream", "get") == {"Last-Event-ID"}
    built = served["paths"]["/api/v1/modules"]["post"]["responses"]
    assert built.keys() == {"201", "202", "default"}
    assert list(built["default"]["content"]) == ["application/problem+json"]
    assert "Link" in served["paths"]["/api/v1/modules"]["get"]["responses"]["200"]["headers"]
