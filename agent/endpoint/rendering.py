"""The Open Inference Protocol v2's infer response. Pure but for regions: arrays in, replies out.

What is the same for every answer of a shape is made once; of requests that ran together, each output becomes bytes
once. Called by `agent.endpoint.resources`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from agent.backends import Array
from agent.endpoint.batches import cut
from agent.endpoint.codec import to_bytes, to_json
from agent.endpoint.exchange import Reply
from agent.endpoint.oip import Call, Wanted
from agent.endpoint.regions import Regions
from modules.manifest import Manifest

MAX_HEADS = 64
_Shapes = tuple[tuple[int, ...], ...]


class Renderer:
    """Turns the outputs of one module into replies."""

    def __init__(self, manifest: Manifest, regions: Regions | None = None) -> None:
        self._model = {"model_name": manifest.name, "model_version": str(manifest.version)}
        self._regions = regions or Regions(allowed=False)
        self._heads: dict[tuple[int, _Shapes, tuple[int, ...]], tuple[tuple[Wanted, ...], bytes]] = {}

    def replies(self, calls: Sequence[Call], ids: Sequence[str], outputs: Mapping[str, Array]) -> list[Reply]:
        """Of calls that ran together, whose rows lie one below the other. Raises Refused."""
        wanted = calls[0].outputs
        if len(calls) == 1:
            return [self.reply(ids[0], wanted, outputs)]
        if not _sliceable(wanted) or any(call.outputs is not wanted for call in calls):
            starts = _starts(calls)
            return [
                self.reply(id_, call.outputs, cut(outputs, start, start + call.rows))
                for call, id_, start in zip(calls, ids, starts, strict=True)
            ]
        return self._sliced(calls, ids, wanted, outputs)

    def reply(self, id_: str, wanted: tuple[Wanted, ...], outputs: Mapping[str, Array]) -> Reply:
        """Raises Refused when a region is too small."""
        if _sliceable(wanted):
            blobs = tuple([to_bytes(one.spec.datatype, outputs[one.spec.name]) for one in wanted])
            shapes = tuple([outputs[one.spec.name].shape for one in wanted])
            head = _begin(id_) + self._head(wanted, shapes, tuple(map(len, blobs)))
            return Reply(200, head, len(head), blobs=blobs)
        return self._mixed(id_, wanted, outputs)

    def _sliced(
        self, calls: Sequence[Call], ids: Sequence[str], wanted: tuple[Wanted, ...], outputs: Mapping[str, Array]
    ) -> list[Reply]:
        arrays = [outputs[one.spec.name] for one in wanted]
        blobs = [to_bytes(one.spec.datatype, array) for one, array in zip(wanted, arrays, strict=True)]
        widths = [len(blob) // len(array) for blob, array in zip(blobs, arrays, strict=True)]
        heads: dict[int, bytes] = {}
        made: list[Reply] = []
        start = 0
        for call, id_ in zip(calls, ids, strict=True):
            rows, stop = call.rows, start + call.rows
            end = heads.get(rows)
            if end is None:
                shapes = tuple([(rows, *array.shape[1:]) for array in arrays])
                end = heads[rows] = self._head(wanted, shapes, tuple([rows * width for width in widths]))
            parts = tuple([blob[start * w : stop * w] for blob, w in zip(blobs, widths, strict=True)])
            head = _begin(id_) + end
            made.append(Reply(200, head, len(head), blobs=parts))
            start = stop
        return made

    def _head(self, wanted: tuple[Wanted, ...], shapes: _Shapes, sizes: tuple[int, ...]) -> bytes:
        """The JSON behind the id. Found by the identity of `wanted`, which costs a tenth of comparing it."""
        known = self._heads.get((id(wanted), shapes, sizes))
        if known is not None and known[0] is wanted:
            return known[1]
        entries = [
            {"name": w.spec.name, "datatype": w.spec.datatype, "shape": shape, "parameters": {"binary_data_size": size}}
            for w, shape, size in zip(wanted, shapes, sizes, strict=True)
        ]
        head = b"," + msgspec.json.encode({**self._model, "outputs": entries})[1:]
        if len(self._heads) >= MAX_HEADS:
            del self._heads[next(iter(self._heads))]
        self._heads[id(wanted), shapes, sizes] = wanted, head
        return head

    def _mixed(self, id_: str, wanted: tuple[Wanted, ...], outputs: Mapping[str, Array]) -> Reply:
        entries: list[dict[str, Any]] = []
        blobs: list[bytes] = []
        for one in wanted:
            spec, array = one.spec, outputs[one.spec.name]
            entry: dict[str, Any] = {"name": spec.name, "datatype": spec.datatype, "shape": array.shape}
            if one.span is not None:
                data = to_bytes(spec.datatype, array)
                self._regions.write(f"output {spec.name}", one.span, data)
                entry["parameters"] = {
                    "shared_memory_region": one.span.name,
                    "shared_memory_byte_size": len(data),
                    "shared_memory_offset": one.span.offset,
                }
            elif one.binary:
                blobs.append(to_bytes(spec.datatype, array))
                entry["parameters"] = {"binary_data_size": len(blobs[-1])}
            else:
                entry["data"] = to_json(spec.datatype, array)
            entries.append(entry)
        head = _begin(id_) + b"," + msgspec.json.encode({**self._model, "outputs": entries})[1:]
        return Reply(200, head, len(head) if blobs else None, blobs=tuple(blobs))


def _begin(id_: str) -> bytes:
    return b'{"id":' + (b'"%b"' % id_.encode() if id_.isalnum() and id_.isascii() else msgspec.json.encode(id_))


def _sliceable(wanted: tuple[Wanted, ...]) -> bool:
    """Whether all go back as bytes in the body; those of text have no fixed width."""
    for one in wanted:
        if not one.binary or one.span is not None or one.spec.datatype == "BYTES":
            return False
    return bool(wanted)


def _starts(calls: Sequence[Call]) -> list[int]:
    starts, at = [], 0
    for call in calls:
        starts.append(at)
        at += call.rows
    return starts
