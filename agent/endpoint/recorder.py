"""What happens to a prediction once it was made, whoever asked for it: counted, profiled, sampled. Worker side.

The loop's own callers write it down at once; threads (clients over shared memory, sources) leave it here, and the loop
takes it up within `PACE_S`, because waking the loop for each would cost more than a small model's run.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec

from agent.backends import Array
from agent.endpoint.batches import cut
from agent.endpoint.counters import Counters

PACE_S = 0.05
MOST_ALIKE = 128  # read together
MAX_LEFT = 4096  # predictions of threads that the loop has not taken up; more are only counted


class Prediction(msgspec.Struct, gc=False):
    """What one request predicted, for those who watch: rows of inputs, and of outputs. Nobody writes to them.

    `event_s` is when it happened what the inputs are of, in seconds since the epoch; 0 where nobody said.
    """

    id: str
    rows: int
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    event_s: float = 0.0


class Together(msgspec.Struct, gc=False):
    """What ran together: ids and rows of each request, whose rows lie one below the other. Nobody writes to them.

    `events` are the event times, one per request; none where no request said one.
    """

    ids: list[str]
    rows: list[int]
    inputs: Mapping[str, Array]
    outputs: Mapping[str, Array]
    events: Sequence[float] = ()

    def apart(self) -> list[Prediction]:
        """As predictions of their own, views of the same arrays."""
        predictions, start = [], 0
        events = self.events or (0.0,) * len(self.ids)
        for id_, rows, event_s in zip(self.ids, self.rows, events, strict=True):
            stop = start + rows
            inputs, outputs = cut(self.inputs, start, stop), cut(self.outputs, start, stop)
            predictions.append(Prediction(id_, rows, inputs, outputs, event_s))
            start = stop
        return predictions


class Form(Protocol):
    """How predictions of one kind lie in bytes. `read` is called on the loop's thread."""

    rows: int

    def read(self, unread: Sequence[Unread]) -> Together | list[Prediction]: ...


class Unread(NamedTuple):
    """A prediction as it was found in memory; made arrays of later, together with others of the same form."""

    form: Form
    id: bytes
    data: bytes
    event_s: float = 0.0


Observer = Callable[[Prediction], None]


class Recorder:
    """`observe` is called on the loop's thread, and must not raise; so is `observe_together`, for what ran together."""

    def __init__(
        self, counters: Counters, observe: Observer, observe_together: Callable[[Together], None] | None = None
    ) -> None:
        self._counters = counters
        self.observe = observe
        self.observe_together = observe_together or self._each
        self._left: deque[tuple[Prediction | Unread, int]] = deque(maxlen=MAX_LEFT)
        self._lost = 0
        self._taker: asyncio.Task[None] | None = None

    def count(self, rows: int, took_us: int) -> None:
        """A prediction that was answered; on the loop's thread. `observe` is the caller's to call, later."""
        self._counters.answered(200)
        self._counters.rows += rows
        self._counters.latency.add(took_us)

    def _each(self, together: Together) -> None:
        for prediction in together.apart():
            self.observe(prediction)

    def leave(self, prediction: Prediction | Unread, took_us: int) -> None:
        """From any thread."""
        self._left.append((prediction, took_us))

    @property
    def waiting(self) -> int:
        """How many were left and not taken up."""
        return len(self._left)

    def start(self) -> None:
        self._taker = asyncio.create_task(self._take(), name="recorder")

    async def stop(self) -> None:
        """Takes up what was left."""
        if self._taker is not None:
            self._taker.cancel()
            await asyncio.wait([self._taker], timeout=1.0)
        self.take_up()

    def take_up(self) -> None:
        alike: list[Unread] = []
        for _ in range(len(self._left)):
            left, took_us = self._left.popleft()
            if alike and (isinstance(left, Prediction) or left.form is not alike[0].form or len(alike) >= MOST_ALIKE):
                self._read(alike)
                alike = []
            if isinstance(left, Prediction):
                self.count(left.rows, took_us)
                self.observe(left)
            else:
                self.count(left.form.rows, took_us)
                alike.append(left)
        if alike:
            self._read(alike)

    def _read(self, alike: list[Unread]) -> None:
        seen = alike[0].form.read(alike)
        if isinstance(seen, Together):
            self.observe_together(seen)
            return
        for prediction in seen:
            self.observe(prediction)

    async def _take(self) -> None:
        while True:
            await asyncio.sleep(PACE_S)
            self.take_up()
