"""Model files for the tests of patches, and the way there and back."""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Mapping
from pathlib import Path

import flatbuffers
import numpy as np
import onnx
from onnx import helper, numpy_helper

from cloud_hub.patches.encode import EncodeResult, External, encode
from cloud_hub.patches.encode_sections import EVERY_CODEC
from modules.patch import apply
from modules.patch.form import Codec
from support.patch_by_the_book import decode

Arrays = Mapping[str, "np.ndarray[tuple[int, ...], np.dtype[np.generic]]"]
# Files up to this size are also decoded by the slow decoder.
_BY_HAND = 10_000
_SAFETENSORS = {"f4": "F32", "f2": "F16", "f8": "F64", "i1": "I8", "u1": "U8", "i2": "I16", "i4": "I32", "i8": "I64"}
_TFLITE = {"f4": 0, "f2": 1, "i4": 2, "u1": 3, "i8": 4, "i2": 7, "i1": 9, "f8": 10}


def patched(base: bytes, patch: bytes, size: int) -> bytes:
    """What the device makes of it."""
    made = io.BytesIO()
    apply(io.BytesIO(base), io.BytesIO(patch), made.write, size)
    return made.getvalue()


def there_and_back(
    folder: Path,
    base: bytes,
    target: bytes,
    *,
    codecs: Collection[Codec] = EVERY_CODEC,
    graphs: tuple[External, External] | None = None,
) -> EncodeResult:
    """Encodes, decodes, and asserts that the target came out."""
    old, new, patch = folder / "old", folder / "new", folder / "patch"
    old.write_bytes(base)
    new.write_bytes(target)
    result = encode(old, new, patch, codecs=codecs, graphs=graphs)
    assert patched(base, patch.read_bytes(), len(target)) == target
    if len(target) < _BY_HAND:
        assert decode(base, patch.read_bytes()) == target
    assert result.patch_size == patch.stat().st_size
    assert result.referred + result.different + result.new == len(target)
    return result


def onnx_file(arrays: Arrays, *, doc: str = "") -> bytes:
    """A model whose initialisers are the arrays, behind one node for each."""
    nodes = [helper.make_node("Identity", [name], [f"{name}/out"], name) for name in arrays]
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    model = helper.make_model(helper.make_graph(nodes, "graph", [], [], tensors), doc_string=doc)
    whole: bytes = model.SerializeToString()
    return whole


def onnx_with_external_data(folder: Path, name: str, arrays: Arrays) -> tuple[External, bytes]:
    """The model file, and the bytes of the file beside it."""
    model = onnx.load_model_from_string(onnx_file(arrays))
    path = folder / f"{name}.onnx"
    onnx.save_model(model, path, save_as_external_data=True, location=f"{name}.data", size_threshold=0)
    return External(path, f"{name}.data"), (folder / f"{name}.data").read_bytes()


def safetensors_file(arrays: Arrays) -> bytes:
    header, at = {}, 0
    for name, array in arrays.items():
        kind = _SAFETENSORS[array.dtype.str[1:]]
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + b"".join(array.tobytes() for array in arrays.values())


def tflite_file(arrays: Arrays) -> bytes:
    """A flatbuffer of TFLite's schema with tensors and buffers and no operators."""
    builder = flatbuffers.Builder(1024)
    buffers = [_buffer(builder, b""), *(_buffer(builder, array.tobytes()) for array in arrays.values())]
    tensors = [_tensor(builder, name, array, number) for number, (name, array) in enumerate(arrays.items(), 1)]
    subgraph = _table(builder, {0: _tables(builder, tensors)})
    fields = {2: _tables(builder, [subgraph]), 4: _tables(builder, buffers)}
    builder.Finish(_table(builder, fields), file_identifier=b"TFL3")
    return bytes(builder.Output())


def _buffer(builder: flatbuffers.Builder, data: bytes) -> int:
    if not data:
        return _table(builder, {})
    builder.StartVector(1, len(data), 16)
    builder.head -= len(data)
    builder.Bytes[builder.head : builder.head + len(data)] = data
    return _table(builder, {0: builder.EndVector()})


def _tensor(
    builder: flatbuffers.Builder, name: str, array: np.ndarray[tuple[int, ...], np.dtype[np.generic]], buffer: int
) -> int:
    text = builder.CreateString(name)
    builder.StartVector(4, array.ndim, 4)
    for size in reversed(array.shape):
        builder.PrependInt32(size)
    shape = builder.EndVector()
    builder.StartObject(4)
    builder.PrependUOffsetTRelativeSlot(0, shape, 0)
    builder.PrependInt8Slot(1, _TFLITE[array.dtype.str[1:]], 0)
    builder.PrependUint32Slot(2, buffer, 0)
    builder.PrependUOffsetTRelativeSlot(3, text, 0)
    return int(builder.EndObject())


def _tables(builder: flatbuffers.Builder, offsets: list[int]) -> int:
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return int(builder.EndVector())


def _table(builder: flatbuffers.Builder, fields: Mapping[int, int]) -> int:
    builder.StartObject(max(fields, default=-1) + 1)
    for number, offset in fields.items():
        builder.PrependUOffsetTRelativeSlot(number, offset, 0)
    return int(builder.EndObject())
