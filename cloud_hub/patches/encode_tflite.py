"""Tensors of a TFLite file, by walking its flatbuffer."""

from __future__ import annotations

from collections.abc import Iterator

from cloud_hub.patches.encode_types import Buffer, Tensor


def tflite_tensors(data: Buffer) -> Iterator[Tensor]:
    return iter(())
