"""Work that takes long, done as a long operation where the hub knows them. Used by the client's calls that build."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TypeVar

import msgspec

from cloud_hub.operations.book import Operation
from cloud_hub.operator.errors import OperatorError, Refused
from cloud_hub.operator.transport import NO_QUERY, Transport, path_of

BUILD_S: Final = 3600.0  # for hubs that know no long operations: libraries are resolved, images made, models asked
POLL_S: Final = 20.0
CANCEL_S: Final = 5.0
ACCEPTED: Final = 202
NOT_MODIFIED: Final = 304
PREFER: Final = {"Prefer": "respond-async"}
Watch = Callable[[Operation], None]
_Answer = TypeVar("_Answer")


def unwatched(_operation: Operation) -> None:
    """For callers who show nothing."""


async def work_out(
    http: Transport,
    answer: type[_Answer],
    path: str,
    body: msgspec.Struct,
    watch: Watch = unwatched,
) -> _Answer:
    """Has a POST done as a long operation and waits for its answer; `watch` hears how far it is.

    Cancelling ends the operation too. Raises Refused with the hub's own key, or with `operation-cancelled` and
    `operation-interrupted`. A hub that knows no long operations answers at once, within BUILD_S.
    """
    got = await http.exchange("POST", path, body, NO_QUERY, BUILD_S, PREFER)
    if got.status != ACCEPTED:
        return http.parsed(answer, got)
    begun = http.parsed(Operation, got)
    try:
        ended = await _ended(http, begun, watch)
    except asyncio.CancelledError:
        with suppress(OperatorError, TimeoutError):
            async with asyncio.timeout(CANCEL_S):
                await http.raw("POST", path_of("operations", begun.id, "cancel"))
        raise
    if not ended.result:
        raise Refused(409, f"operation-{ended.state}", f"operation {ended.id} ({ended.kind}) was {ended.state}")
    return await http.ask(answer, "GET", path_of("operations", ended.id, "result"))


async def _ended(http: Transport, operation: Operation, watch: Watch) -> Operation:
    tag = ""
    while True:
        watch(operation)
        if operation.state.ended:
            return operation
        path, known = path_of("operations", operation.id), {"If-None-Match": tag} if tag else {}
        got = await http.exchange("GET", path, None, {"wait_s": POLL_S if tag else 0.0}, headers=known)
        tag = got.headers.get("ETag", "")
        operation = operation if got.status == NOT_MODIFIED else http.parsed(Operation, got)
