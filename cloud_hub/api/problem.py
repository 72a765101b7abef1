"""Errors as `application/problem+json` (RFC 9457): one body for every failure, whoever raised it. Called by `app`.

`key` is what programs match, and the last part of `type`. The object `error` is the body of before revision 2 of the
API; it stays for clients that know nothing else.
"""

from __future__ import annotations

import logging
import math
import re
import uuid
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from aiohttp import web

from cloud_hub.errors import HubError
from modules.errors import ModuleError

MEDIA: Final = "application/problem+json"
TYPE: Final = "urn:mooring:problem:"
REQUEST: Final = "urn:mooring:request:"
MAX_JSON_BYTES: Final = 4 * 1024 * 1024
REQUEST_ID: Final = web.RequestKey("request_id", str)
_PLAIN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_NO_WORD: Final = re.compile(r"[^a-z0-9]+")
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
log = logging.getLogger(__name__)


class Failure(msgspec.Struct, frozen=True):
    """Why a request failed: a key that stays the same, words for people, and the values that the words speak of."""

    key: str
    message: str
    fields: dict[str, Any] = {}  # whatever the error speaks of


class Problem(msgspec.Struct, frozen=True):
    """The body of every answer with a status of 400 or more (RFC 9457).

    `key` stays the same for the same kind of failure and may be matched; `type` and `title` say it once more.
    `detail` is for people, `fields` has the values that it speaks of, `instance` names the request, as the hub's log
    does. `error` holds the same for clients of before.
    """

    type: str
    title: str
    status: int
    detail: str
    instance: str
    key: str
    fields: dict[str, Any]
    error: Failure


def problem(status: int, failure: Failure, request_id: str = "") -> Problem:
    words = failure.key.replace("-", " ")
    return Problem(
        type=TYPE + failure.key,
        title=words[:1].upper() + words[1:],
        status=status,
        detail=failure.message,
        instance=REQUEST + request_id,
        key=failure.key,
        fields=failure.fields,
        error=failure,
    )


def known_failure(error: Exception) -> tuple[int, Failure] | None:
    """Status and words of an error that is raised on purpose; None for all others."""
    if isinstance(error, HubError):
        return error.status, Failure(error.key, error.message, error.fields)
    if isinstance(error, ModuleError):
        return 422, Failure(error.key, str(error))
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return 413, Failure("body-too-large", f"body: expected at most {MAX_JSON_BYTES} bytes")
    return None


def refusal(request: web.Request, status: int, failure: Failure) -> web.Response:
    body = msgspec.json.encode(problem(status, failure, request.get(REQUEST_ID, "")), enc_hook=str)
    response = web.Response(body=body, status=status, content_type=MEDIA)
    if status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    return response


@web.middleware
async def problems(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """Every failure becomes the one error body; what nobody foresaw is logged here, once, and named by its id."""
    given = request.headers.get("X-Request-Id", "")
    request[REQUEST_ID] = given if _PLAIN_ID.fullmatch(given) else uuid.uuid4().hex
    try:
        return await handler(request)
    except ConnectionError:
        raise  # the client is gone: there is nobody to tell
    except Exception as error:
        return failed(request, error)


def failed(request: web.Request, error: Exception) -> web.Response:
    """The answer to a request that ended in `error`."""
    known = known_failure(error)
    if known is not None:
        response = refusal(request, *known)
        if isinstance(error, HubError) and error.retry_after_s is not None:
            response.headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
        return response
    if isinstance(error, web.HTTPException):
        key = _NO_WORD.sub("-", (error.reason or "http-error").lower()).strip("-")
        failure = Failure(key, f"{request.method} {request.path[:200]}: {error.reason}")
        response = refusal(request, error.status, failure)
        if "Allow" in error.headers:
            response.headers["Allow"] = error.headers["Allow"]
        return response
    name = request[REQUEST_ID]
    log.error("request failed: %s %s (%s)", request.method, request.path, name, exc_info=error)
    text = f"the hub failed on request {name}; its log says why"
    return refusal(request, 500, Failure("internal", text, {"request_id": name}))
