"""What a worker was doing when it ended: a page of memory that outlives it, written before each prediction.

Only for a module that has crashed before, because describing every request costs time. The agent makes the page and
reads it after the worker's end; the worker gets it as `Given.black_box` and writes there with `Recorded`.
Source: memfd_create(2).
"""

from __future__ import annotations

import mmap
import os
import zlib
from collections.abc import Mapping
from typing import Any

SIZE = 4096
MAX_WORDS = 400
MAX_HASHED = 16 * 1024 * 1024  # bytes of an input whose checksum is taken


class BlackBox:
    """The agent's side. `handle` is for the worker to inherit."""

    def __init__(self) -> None:
        """Raises OSError."""
        self.handle = os.memfd_create("black-box", os.MFD_CLOEXEC)
        os.ftruncate(self.handle, SIZE)

    def read(self) -> str:
        """The request that was under way; empty where none was. What a module wrote there is bounded and harmless."""
        said = os.pread(self.handle, SIZE, 0).partition(b"\0")[0].decode(errors="replace")
        return "".join(c if c.isprintable() else " " for c in said)[:MAX_WORDS]

    def close(self) -> None:
        os.close(self.handle)


class Recorded:
    """The worker's side: a backend that writes down what it is about to run."""

    def __init__(self, backend: Any, handle: int) -> None:  # noqa: ANN401 - a Backend and whatever else it can do
        self._backend = backend
        self._page = mmap.mmap(handle, SIZE)

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        said = "; ".join(_described(name, array) for name, array in inputs.items()).encode()[: SIZE - 1]
        self._page[: len(said) + 1] = said + b"\0"
        outputs: dict[str, Any] = self._backend.run(inputs)
        self._page[:1] = b"\0"
        return outputs

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        if name == "bind":  # a bound run would pass us by
            raise AttributeError(name)
        return getattr(self._backend, name)


def _described(name: str, array: Any) -> str:  # noqa: ANN401 - an array of NumPy, which the agent must not import
    shape = "x".join(map(str, array.shape))
    if array.dtype.hasobject or array.nbytes > MAX_HASHED:
        return f"{name} {array.dtype} [{shape}]"
    return f"{name} {array.dtype} [{shape}] crc32 {zlib.crc32(array.tobytes()):08x}"
