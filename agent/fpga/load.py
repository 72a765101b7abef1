"""Programs the FPGA: `python -m agent.fpga.load ORDER PARENT`, a short child of the agent with the agent's rights.

A worker has no right to this, and shall have none. What is written is what the agent has verified: the file's digest
must be the signed one, of the very bytes that go to the kernel. Exit status 0, or 1 with one plain sentence on standard
error. Started by `agent.fpga.fabric`.
"""

from __future__ import annotations

import hashlib
import os
import resource
import sys
from pathlib import Path

import msgspec

from agent.errors import AgentError
from agent.fpga.manager import FpgaError, FpgaManager
from agent.sandbox.confine import die_with_parent

MAX_BYTES = 256 * 1024 * 1024


class Signed(msgspec.Struct, frozen=True):
    """A file of the slot, and the digest that the manifest promises."""

    path: str
    sha256: str


class Order(msgspec.Struct, frozen=True):
    """`device_tree` is None where the module brings none."""

    root: str
    bitstream: Signed
    device_tree: Signed | None
    deadline_s: float


def main(arguments: list[str]) -> int:
    die_with_parent(int(arguments[1]))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    order = msgspec.json.decode(arguments[0], type=Order)
    try:
        bitstream = _verified(order.bitstream)
        device_tree = _verified(order.device_tree) if order.device_tree else b""
        name = f"mooring-{order.bitstream.sha256[:16]}.bin"
        FpgaManager(Path(order.root), order.deadline_s).program(bitstream, device_tree, name)
    except (AgentError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


def _verified(signed: Signed) -> bytes:
    handle = os.open(signed.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with os.fdopen(handle, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise FpgaError(f"{Path(signed.path).name}: expected at most {MAX_BYTES} bytes")
    if hashlib.sha256(data).hexdigest() != signed.sha256:
        raise FpgaError(f"{Path(signed.path).name} is not what was signed; the FPGA stays as it is")
    return data


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
