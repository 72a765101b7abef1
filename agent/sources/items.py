"""What sources take and give: items, results, and what a kind of source must do for the thread that feeds it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from agent.backends import Array
from agent.endpoint.codec import to_json
from agent.sources.talk import MAX_RESULT_BYTES
from modules.manifest import Manifest
from modules.tensors import served


class Item(msgspec.Struct, gc=False):
    """One input. `inputs` is empty where it could not be read, and `error` says why. `token` is its source's own.

    `event_s` is when it happened what it is of, in seconds since the epoch; 0 where the source does not know.
    """

    name: str
    inputs: Mapping[str, Array]
    rows: int = 1
    error: str = ""
    token: object = None
    repeat: bool = False  # we ended before it could be predicted: it is not done
    event_s: float = 0.0


class Result(msgspec.Struct, gc=False):
    """What came of one item: `outputs`, or `error`."""

    id: str
    name: str
    outputs: Mapping[str, Array] = {}
    error: str = ""


class Ended(Exception):
    """A source has nothing more to give, ever; why."""


class Intake(Protocol):
    """One kind of source at work. All is called in one thread, its own.

    `open` is called when it is this worker's turn, and again after it, `take` or `answered` raised; then, too, with a
    growing pause. `take` waits for at most a quarter of a second, and gives what is there: as many rows as are told, or
    a little more. `answered` gets every item back with its result, before `settled` says that this was all of them.
    Errors are OSError, AskError or ValueError; Ended ends the source.
    """

    @property
    def dropped(self) -> int: ...

    def open(self) -> None: ...

    def take(self, most_rows: int) -> list[Item]: ...

    def answered(self, item: Item, result: Result) -> None: ...

    def settled(self, items: Sequence[Item]) -> None: ...

    def close(self) -> None: ...


class Writer:
    """Results as JSON, in the form of an infer response; an error as the endpoint would say it."""

    def __init__(self, manifest: Manifest) -> None:
        self._head = {"model_name": manifest.name, "model_version": str(manifest.version)}
        self._outputs = served(manifest.outputs)

    def json(self, result: Result) -> bytes:
        body = {**self._head, "id": result.id, "parameters": {"source": result.name}}
        if result.error:
            return msgspec.json.encode({**body, "error": result.error})
        size = sum(array.nbytes for array in result.outputs.values())
        if size <= MAX_RESULT_BYTES:
            outputs = [
                {"name": s.name, "datatype": s.datatype, "shape": result.outputs[s.name].shape,
                 "data": to_json(s.datatype, result.outputs[s.name])}
                for s in self._outputs
            ]  # fmt: skip
            data = msgspec.json.encode({**body, "outputs": outputs})
            if len(data) <= MAX_RESULT_BYTES:
                return data
        return msgspec.json.encode({**body, "error": f"expected a result of at most {MAX_RESULT_BYTES} bytes"})
