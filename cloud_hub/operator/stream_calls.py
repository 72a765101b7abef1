"""The part of the hub's client that listens to events as they happen. Mixed into `client.HubClient`."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from typing import Final

import msgspec

from cloud_hub.chain import Event
from cloud_hub.operator.errors import HubUnreachable, Refused
from cloud_hub.operator.frames import Frame, Frames
from cloud_hub.operator.transport import Query, Transport, path_of

SILENT_S: Final = 60.0  # the hub says something every 15 s
FIRST_WAIT_S: Final = 0.5
MOST_WAIT_S: Final = 30.0
_FULL: Final = 429


class StreamCalls:
    _http: Transport

    def stream(
        self, kind: Sequence[str] = (), subject: Sequence[str] = (), after: int | None = None
    ) -> AsyncGenerator[Event]:
        """Events behind the id `after` (None: from now on), in order, each once, without an end.

        Kinds such as `rollout.*` are all that begin so. After a cut it goes on where it stood, as long as it takes;
        only what the hub refuses ends it. Close it when you are done: `async with aclosing(hub.stream()) as events`.
        """
        return _events(self._http, "/events/stream", {"kind": list(kind), "subject": list(subject)}, after)

    def stream_rollout(self, rollout: str, after: int | None = None) -> AsyncGenerator[Event]:
        """As `stream`, of one rollout; with `after` 0 from its beginning."""
        return _events(self._http, path_of("rollouts", rollout, "stream"), {}, after)


async def _events(http: Transport, path: str, query: Query, after: int | None) -> AsyncGenerator[Event]:
    last = "" if after is None else str(after)
    attempt = 0
    while True:
        try:
            async with aclosing(_once(http, path, query, last)) as found:
                async for reached, event in found:
                    last, attempt = reached, 0
                    if event is not None:
                        yield event
        except HubUnreachable:
            pass  # being cut off is normal; it goes on behind `last`
        except Refused as error:
            if error.status != _FULL and error.status < 500:
                raise
        attempt += 1
        await asyncio.sleep(random.uniform(0, min(MOST_WAIT_S, FIRST_WAIT_S * 2 ** min(attempt, 10))))


async def _once(http: Transport, path: str, query: Query, last: str) -> AsyncGenerator[tuple[str, Event | None]]:
    """Events of one connection, each with the id to go on behind; None where there is only an id."""
    headers = {"Accept": "text/event-stream"} | ({"Last-Event-ID": last} if last else {})
    frames = Frames()
    async with AsyncExitStack() as stack:
        pull = await stack.enter_async_context(http.stream(path, query, headers, SILENT_S))
        while piece := await pull():
            for frame in _whole(frames, piece):
                if frame.kind == "gap":
                    yield str(msgspec.json.decode(frame.data, type=_Gap).newest), None
                elif frame.kind == "" and frame.last_id:
                    yield frame.last_id, msgspec.json.decode(frame.data, type=Event) if frame.data else None


def _whole(frames: Frames, piece: bytes) -> list[Frame]:
    try:
        return frames.feed(piece)
    except ValueError as error:
        raise HubUnreachable("answer-invalid", f"the stream is not of this version's form: {error}") from error


class _Gap(msgspec.Struct, frozen=True):
    newest: int
