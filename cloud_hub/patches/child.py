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
NICE = 15  # devices and operators come first
_PR_SET_PDEATHSIG = 1


class Order(msgspec.Struct, frozen=True):
    """Paths of local files and the digests that they must have; `most` is how many bytes the patch may have."""

    base: str
    base_sha256: str
    target: str
    target_sha256: str
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
    from cloud_hub.patches.encode import encode  # NumPy: after the limits

    base, target = Path(order.base), Path(order.target)
    for path, sha256 in ((base, order.base_sha256), (target, order.target_sha256)):
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise PatchError(f"{sha256} on this hub's disk is no longer what was stored; upload the file again")
    return encode(base, target, Path(order.out)).patch_size


def _limit(order: Order) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != order.parent:
        os._exit(1)
    os.nice(NICE)
    memory = order.memory_mib * 1024 * 1024
    # Memory of its own: the files, which are mapped, are not counted.
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (order.most, order.most))


if __name__ == "__main__":
    sys.exit(main())
