"""The client for plain (threaded) applications. The one for asyncio is in `aio`."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from mooring_client.errors import Gone, Refused
from mooring_client.places import Place, find
from mooring_client.prediction import Prediction
from mooring_client.shared import SharedLink
from mooring_client.tensors import Spec
from mooring_client.web import WebLink
from mooring_client.wire import MAX_ID

Transport = Literal["auto", "shared-memory", "http"]
NO_ROOM = 507  # the worker cannot map the area: HTTP will do


class Client:
    """A module on this device. One request at a time: threads that ask at once wait for each other, or have a client
    each. Connects when it is first asked, and again when another worker has taken over.
    """

    def __init__(
        self,
        module: str | os.PathLike[str],
        *,
        state: str | os.PathLike[str] | None = None,
        model: str = "",
        transport: Transport = "auto",
        timeout_s: float = 60.0,
        copy: bool = True,
        near: bool = False,
        token: str = "",
    ) -> None:
        """`module`: a name, the path of a module's socket, or http://HOST:PORT/v2/models/NAME. `state`: the agent's
        state directory (else MOORING_STATE, else /var/lib/mooring). `model`: the module's name where a path does not
        tell it. `copy=False` gives outputs that are overwritten by the next request. `near=True` keeps the thread that
        asks on one processor, and brings the worker there: quicker for small models, and for a thread that does
        little else. `token` is for TCP. Raises ClientError when `module` is none of these.
        """
        self._place = find(module, state, model)
        self._transport = transport
        self._timeout_s = timeout_s
        self._copy = copy
        self._near = near
        self._token = token
        self._size = 0
        self._link: SharedLink | WebLink | None = None
        self._lock = threading.Lock()

    @property
    def inputs(self) -> tuple[Spec, ...]:
        """Raises Gone, Timeout, Refused."""
        with self._lock:
            return self._linked(self._timeout_s).welcome.inputs

    @property
    def outputs(self) -> tuple[Spec, ...]:
        """Raises Gone, Timeout, Refused."""
        with self._lock:
            return self._linked(self._timeout_s).welcome.outputs

    @property
    def version(self) -> str:
        """Of the module, as far as this client has asked it. Raises Gone, Timeout, Refused."""
        with self._lock:
            return self._linked(self._timeout_s).welcome.version

    @property
    def transport(self) -> str:
        """Either "shared-memory" or "http". Raises Gone, Timeout, Refused."""
        with self._lock:
            return self._linked(self._timeout_s).transport

    def predict(self, /, **inputs: object) -> Prediction:
        """Outputs by name. Raises Refused, Gone, Timeout."""
        return self._asked(inputs, (), b"", self._timeout_s, 0.0)

    def ask(
        self,
        inputs: Mapping[str, Any],
        *,
        outputs: Sequence[str] = (),
        id: str = "",
        timeout_s: float = 0.0,
        event_time: float = 0.0,
    ) -> Prediction:
        """As `predict`, for some `outputs` only (empty: all), under an id of the caller's own, within `timeout_s`
        (0: the client's). `event_time` is when it happened what the inputs are of, in seconds since the epoch (0: now).
        When the worker has ended meanwhile, the next one is asked, once: a prediction may be made twice then. Raises
        Refused, Gone, Timeout.
        """
        return self._asked(inputs, *checked(outputs, id, event_time), timeout_s or self._timeout_s, event_time)

    def room(self, **shapes: tuple[int, ...]) -> dict[str, Any]:
        """Arrays of these shapes for all inputs, in the memory that is shared: filled in place (by a camera, a decoder)
        and given to `predict`, they are not copied. They stay usable, but are copied again, after another worker has
        taken over or a larger request has been made. Raises Refused, Gone, Timeout.
        """
        with self._lock:
            return self._linked(self._timeout_s).room(shapes)

    def close(self) -> None:
        with self._lock:
            self._drop()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _asked(
        self, inputs: Mapping[str, Any], wanted: Sequence[str], id_: bytes, limit: float, event_time: float
    ) -> Prediction:
        with self._lock:
            try:
                return (self._link or self._linked(limit)).ask(inputs, wanted, id_, limit, event_time)
            except Gone:
                self._drop()
                return self._once_more(inputs, wanted, id_, limit, event_time)
            except Refused:
                raise
            except BaseException:  # an answer that comes after all must not be taken for that of the next request
                self._drop()
                raise

    def _once_more(
        self, inputs: Mapping[str, Any], wanted: Sequence[str], id_: bytes, limit: float, event_time: float
    ) -> Prediction:
        try:
            return self._linked(limit).ask(inputs, wanted, id_, limit, event_time)
        except Refused:
            raise
        except BaseException:
            self._drop()
            raise

    def _linked(self, timeout_s: float) -> SharedLink | WebLink:
        if self._link is None:
            self._link = self._open(timeout_s)
        return self._link

    def _open(self, timeout_s: float) -> SharedLink | WebLink:
        if self._transport != "http" and (self._transport == "shared-memory" or shareable(self._place)):
            try:
                return SharedLink(self._place.fast, timeout_s, self._size, self._copy, self._near)
            except Refused as error:
                if error.status != NO_ROOM or self._transport == "shared-memory":
                    raise
        return WebLink(self._place, timeout_s, self._token)

    def _drop(self) -> None:
        if self._link is not None:
            self._size = max(self._size, self._link.size)
            self._link.close()
            self._link = None


def checked(outputs: Sequence[str], id_: str, event_time: float) -> tuple[tuple[str, ...], bytes]:
    """Raises Refused(400)."""
    name = id_.encode()
    if len(name) > MAX_ID:
        raise Refused(400, f"id: expected at most {MAX_ID} bytes, got {len(name)}")
    if not math.isfinite(event_time):
        raise Refused(400, f"event_time: expected seconds since the epoch, got {event_time}")
    return tuple(outputs), name


def shareable(place: Place) -> bool:
    """Whether there is a socket for shared memory, and this system has what it takes."""
    return bool(place.fast) and hasattr(os, "memfd_create") and Path(place.fast).exists()
