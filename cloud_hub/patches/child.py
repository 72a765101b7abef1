"""The encoder's process: `python -m cloud_hub.patches.child`, an Order on standard input, low priority, with limits.

Exit status 0 with a Made on standard output, TOO_LARGE where the patch would be larger than it may be, or 1 with one
plain sentence on standard error. It ends with the hub. Started by `cloud_hub.patches.build`.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import resource
import signal
import sys
import time
from pathlib import Path

import msgspec

from modules.errors import PatchError

TOO_LARGE = 3
SPARE_BYTES = 1024 * 1024
NICE = 15  # devices and operators come first
_PR_SET_PDEATHSIG = 1


class Stored(msgspec.Struct, frozen=True):
    """A local file and the digest that it must have. Of a model also what it calls the file with its tensors."""

    path: str
    sha256: str
    location: str = ""


class Order(msgspec.Struct, frozen=True):
    """What to build. `most` is how many bytes the patch may have; `models` hold the tensors of base and target."""

    base: Stored
    target: Stored
    models: tuple[Stored, Stored] | None
    zstandard: bool
    out: str
    most: int
    memory_mib: int
    parent: int


class Made(msgspec.Struct, frozen=True):
    """The patch's bytes, and the seconds that it took."""

    size: int
    build_s: float


def main() -> int:
    """Builds one patch, and decodes it once to see that it makes the target."""
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    _limit(order)
    started = time.monotonic()
    try:
        made = _encode(order)
    except OSError as error:
        if error.errno == errno.EFBIG:
            return TOO_LARGE
        sys.stderr.write(f"{error}\n")
        return 1
    except MemoryError:
        sys.stderr.write(f"it needs more than {order.memory_mib} MiB of memory (patches.memory_mib)\n")
        return 1
    except (PatchError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    if made > order.most:
        return TOO_LARGE
    sys.stdout.buffer.write(msgspec.json.encode(Made(made, time.monotonic() - started)))
    return 0


def _encode(order: Order) -> int:
    from cloud_hub.patches.encode import External, encode  # NumPy: after the limits
    from cloud_hub.patches.encode_sections import EVERY_CODEC, WITHOUT_ZSTANDARD

    for stored in (order.base, order.target, *(order.models or ())):
        with Path(stored.path).open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != stored.sha256:
                text = f"{stored.sha256} on this hub's disk is no longer what was stored; upload the file again"
                raise PatchError(text)
    codecs = EVERY_CODEC if order.zstandard else WITHOUT_ZSTANDARD
    graphs = None
    if order.models is not None:
        before, after = (External(Path(model.path), model.location) for model in order.models)
        graphs = before, after
    base, target, out = Path(order.base.path), Path(order.target.path), Path(order.out)
    return encode(base, target, out, codecs=codecs, graphs=graphs).patch_size


def _limit(order: Order) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != order.parent:
        os._exit(1)
    os.nice(NICE)
    memory = order.memory_mib * 1024 * 1024
    # Memory of its own: the files, which are mapped, are not counted.
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The encoder tries several forms: one that is too large must not end it before it finds a smaller one.
    written = 2 * order.most + SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_FSIZE, (written, written))


if __name__ == "__main__":
    sys.exit(main())
