"""The thread of one source: takes items, gathers small ones, has them predicted, leaves them to be counted.

What a source does wrong stays in it: an item that cannot be read or predicted is counted and told, a source that fails
is opened again after a pause. Made by `agent.sources.opened`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence

import msgspec
import numpy as np

from agent.backends import Array, BackendError
from agent.endpoint.counters import Counters
from agent.endpoint.exchange import Refused
from agent.endpoint.oip import refuse_nan
from agent.endpoint.predictor import Predictor
from agent.endpoint.recorder import Prediction, Recorder
from agent.sources.asking import AskError, Device
from agent.sources.content import rows_of
from agent.sources.items import Ended, Intake, Item, Result
from modules.manifest import Manifest

FIRST_PAUSE_S = 0.25
LONGEST_PAUSE_S = 30.0
TURN_PAUSE_S = 0.1
FULL_PAUSE_S = 0.002
LATER = 503
LATER_PAUSE_S = 0.5
MAX_LEFT = 1024  # predictions that wait to be counted; more, and the source waits
MAX_LEFT_BYTES = 64 * 1024 * 1024

log = logging.getLogger(__name__)


class Together(msgspec.Struct, frozen=True):
    """What of the inputs a source must know: those with rows, how many rows may run together, and those of which none
    was ever missing in training.
    """

    batched: tuple[str, ...]
    most_rows: int
    never_missing: frozenset[str] = frozenset()


def together(manifest: Manifest, never_missing: frozenset[str]) -> Together:
    batched = tuple(spec.name for spec in manifest.inputs if spec.shape[:1] == (-1,))
    return Together(batched, manifest.runtime.batch_rows, never_missing)


class Feed:
    """`start`, then `stop` from the loop's thread. `state` says how it does, in a word or two."""

    def __init__(
        self, kind: str, intake: Intake, device: Device, rules: Together, predictor: Predictor, recorder: Recorder,
        counters: Counters,
    ) -> None:  # fmt: skip
        self.kind = kind
        self.state = "waiting"
        self._said = ""
        self.taken = self.failed = 0
        self.intake = intake
        self._device = device
        self._rules = rules
        self._predictor = predictor
        self._recorder = recorder
        self._counters = counters
        self._stop = threading.Event()
        self._going = threading.Event()
        self._going.set()
        self._life = os.urandom(8).hex()
        self._number = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._work, name=f"source-{kind}", daemon=True)

    def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self, deadline_s: float) -> None:
        """Asks it to end, and waits; what is being predicted ends by its own deadline."""
        self._stop.set()
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join, deadline_s)
        if self._thread.is_alive():
            log.warning("a source (%s) did not end within %g s: it is left behind", self.kind, deadline_s)

    @property
    def stopping(self) -> threading.Event:
        return self._stop

    def predict(self, name: str, inputs: dict[str, Array], rows: int, token: object = None) -> Result:
        """One item at once. Never raises."""
        if not self._going.is_set():
            self._wait()
        item = Item(name, inputs, rows, token=token)
        self._check(item)
        return self._one(item)

    def _work(self) -> None:
        while not self._device.begin():
            if self._stop.wait(TURN_PAUSE_S):
                return
        pause_s = FIRST_PAUSE_S
        while not self._stop.is_set():
            before = self.taken
            try:
                self._round()
            except Ended as end:
                self.state = f"ended: {end}"
                break
            except BaseException as error:  # of a library, or of the script's loop, which may even exit
                self._note(error)
            finally:
                self._close()
            pause_s = FIRST_PAUSE_S if self.taken > before else min(LONGEST_PAUSE_S, 2 * pause_s)
            self._stop.wait(pause_s * random.uniform(0.5, 1.0))

    def _round(self) -> None:
        """From opened to closed."""
        self.intake.open()
        self.state = "open"
        while not self._stop.is_set():
            if not self._going.is_set():
                self._wait()
                continue
            items = self.intake.take(self._rules.most_rows)
            if not items:
                continue
            self.taken += len(items)
            for group in self._groups(items):
                self._run(group)
            self.intake.settled(items)

    def hold(self, held: bool) -> None:
        """From the next items on, it waits, or goes on."""
        (self._going.clear if held else self._going.set)()

    def _wait(self) -> None:
        self.state = "held: the device is too hot"
        while not (self._stop.is_set() or self._going.wait(TURN_PAUSE_S)):
            pass
        self.state = "open"

    def _groups(self, items: list[Item]) -> Iterator[list[Item]]:
        """Neighbours that can be run together, as the endpoint's requests are."""
        group: list[Item] = []
        rows = 0
        for item in items:
            self._check(item)
            joins = self._predictor.joins and not item.error
            if group and (not joins or rows + item.rows > self._rules.most_rows or not _alike(group[0], item)):
                yield group
                group, rows = [], 0
            group.append(item)
            rows += item.rows
            if not joins:
                yield group
                group, rows = [], 0
        if group:
            yield group

    def _check(self, item: Item) -> None:
        """As the endpoint refuses what training never saw."""
        try:
            for name in self._rules.never_missing & set(item.inputs):
                refuse_nan(name, item.inputs[name])
        except Refused as error:
            item.error = str(error)

    def _run(self, group: list[Item]) -> None:
        if len(group) == 1:
            self.intake.answered(group[0], self._one(group[0]))
            return
        started = time.perf_counter_ns()
        inputs = {name: np.concatenate([item.inputs[name] for item in group]) for name in group[0].inputs}
        try:
            outputs = self._predicted(inputs, sum(item.rows for item in group))
        except (BackendError, Refused):  # the others must not suffer for the one that it is
            for item in group:
                self.intake.answered(item, self._one(item))
            return
        start = 0
        for item in group:
            part = {name: array[start : start + item.rows] for name, array in outputs.items()}
            start += item.rows
            self.intake.answered(item, self._left(item, part, started))

    def _one(self, item: Item) -> Result:
        if item.error:
            return self._refused(item, 400, item.error)
        started = time.perf_counter_ns()
        try:
            outputs = self._predicted(item.inputs, item.rows)
        except BackendError as error:
            return self._refused(item, 400 if error.key == "bad-input" else 500, str(error))
        except Refused as error:
            item.repeat = error.status == LATER
            return self._refused(item, error.status, str(error))
        return self._left(item, outputs, started)

    def _predicted(self, inputs: Mapping[str, Array], rows: int) -> dict[str, Array]:
        """Waits while there is no turn to be had, or the device cools down. Raises BackendError; Refused when it took
        too long, or when we are to end.
        """
        while True:
            try:
                return self._predictor.run_here(inputs, rows)
            except Refused as error:
                if error.status != LATER or self._stop.wait(LATER_PAUSE_S):
                    raise

    def _left(self, item: Item, outputs: dict[str, Array], started: int) -> Result:
        """Counted and watched by the loop, soon; not more than it can take up."""
        self._number += 1
        id_ = f"{self._life}{self._number:x}"
        took_us = (time.perf_counter_ns() - started) // 1000
        size = sum(array.nbytes for array in item.inputs.values())
        while self._recorder.waiting > min(MAX_LEFT, 8 + MAX_LEFT_BYTES // max(1, size)) and not self._stop.is_set():
            time.sleep(FULL_PAUSE_S)
        self._recorder.leave(Prediction(id_, item.rows, item.inputs, outputs, item.event_s), took_us)
        return Result(id_, item.name, outputs)

    def _refused(self, item: Item, status: int, error: str) -> Result:
        self.failed += 1
        if self.failed & (self.failed - 1) == 0:  # the first, second, fourth...
            log.warning("a source (%s) failed on %s: %s (%d so far)", self.kind, item.name[:80], error, self.failed)
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._counters.answered, status)
        return Result("", item.name, error=error)

    def _note(self, error: BaseException) -> None:
        foreseen = isinstance(error, OSError | AskError | ValueError)
        self.state = f"not there: {error}"[:300] if foreseen else f"failed: {type(error).__name__}: {error}"[:300]
        if self.state != self._said:  # once, not every time
            self._said = self.state
            trace = None if foreseen else error
            log.warning("a source (%s) is %s; it is tried again", self.kind, self.state, exc_info=trace)

    def _close(self) -> None:
        try:
            self.intake.close()
        except Exception as error:
            log.warning("a source (%s) did not close: %s", self.kind, error)


def _alike(first: Item, other: Item) -> bool:
    return all(array.shape[1:] == other.inputs[name].shape[1:] for name, array in first.inputs.items())


def as_item(
    name: str, inputs: dict[str, Array], batched: Sequence[str], token: object = None, event_s: float = 0.0
) -> Item:
    """Raises ValueError."""
    return Item(name, inputs, rows_of(inputs, tuple(batched)), token=token, event_s=event_s)
