"""The decoder's process: `python -m agent.patching.child BASE PATCH OUT SIZE UID MEMORY_MIB CPU_S PARENT`.

The first three are open files (descriptors). It imports what it needs, gives everything else up, and decodes. Exit
status 0, or 1 with one plain sentence on standard error. Started by `agent.patching.host`.
"""

from __future__ import annotations

import gc
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

from agent.errors import AgentError
from agent.sandbox.confine import confine, die_with_parent
from modules.errors import PatchError
from modules.patch import apply

NICE = 10  # a device has predictions to make meanwhile
MAX_FILES = 64
BUFFER_BYTES = 256 * 1024
_MIB = 1024 * 1024


def main(arguments: list[str]) -> int:
    """Decodes the patch that the arguments name."""
    base, patch, out, size, uid, memory_mib, cpu_s, parent = map(int, arguments)
    die_with_parent(parent)
    os.nice(NICE)
    _load_libraries()
    try:
        _limit(cpu_s)
        confine(None, uid, _room(memory_mib), size)
        with (
            os.fdopen(base, "rb") as old,
            os.fdopen(patch, "rb") as coded,
            os.fdopen(out, "wb", BUFFER_BYTES) as new,
        ):
            apply(old, coded, new.write, size)
    except MemoryError:
        sys.stderr.write(f"the patch needs more than {memory_mib} MiB to be decoded\n")
        return 1
    except (PatchError, AgentError, OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _load_libraries() -> None:
    """Now, because afterwards there is little memory left to map. A patch that needs what is missing says so."""
    with suppress(ImportError):
        import modules.patch.planes
        import modules.patch.streams  # noqa: F401 - loaded, used by `apply`
    with suppress(PatchError):
        from modules.patch.codecs import zstandard

        zstandard()
    gc.freeze()


def _limit(cpu_s: int) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = MAX_FILES if hard == resource.RLIM_INFINITY else min(MAX_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))


def _room(memory_mib: int) -> int:
    """MiB that may still be mapped, so that what lies in memory stays within `memory_mib` in all."""
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    return max(1, memory_mib - resident // _MIB - 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
