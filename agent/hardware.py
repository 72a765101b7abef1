"""What this machine is: architecture, memory, disk, accelerators, read from the kernel's files.

The root of those files is an argument, so that a tree captured from a device can be probed anywhere. Called by
`enrol` and `doctor`; what a profile means is `firmware_profiles`.
"""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec

from agent import __version__
from firmware_profiles.profile import Accelerator, DeviceProfile

# Vendor and product of the Coral USB accelerator, before and after its firmware is loaded.
_CORAL_USB = {("1a6e", "089a"), ("18d1", "9302")}
_BOARDS = (
    ("raspberry pi 5", "raspberry-pi-5"),
    ("raspberry pi 4", "raspberry-pi-4"),
    ("orin nano", "jetson-orin-nano"),
    ("coral", "coral-dev-board"),
    ("kv260", "kria-kv260"),
    ("pynq-z2", "pynq-z2"),
)
_INTEL = "0x8086"


def probe(
    profile: DeviceProfile, root: Path = Path("/"), machine: str = "", state: Path | None = None
) -> DeviceProfile:
    """The profile with what this machine really has. `machine` is its architecture (empty: that of this process).

    `state` is a folder on the file system whose size counts (empty: the root). What cannot be read keeps the profile's
    word: a probe that fails must not refuse modules.
    """
    return msgspec.structs.replace(
        profile,
        arch=machine or platform.machine() or profile.arch,
        memory_mib=_memory_mib(root) or profile.memory_mib,
        disk_mib=_disk_mib(state or root) or profile.disk_mib,
        accelerators=tuple(_accelerators(root)) or profile.accelerators,
        agent_version=__version__,
        python=".".join(platform.python_version_tuple()[:2]),
    )


def suggest(root: Path = Path("/"), machine: str = "") -> str:
    """The name of the built-in profile that fits this machine best."""
    model = _text(root / "proc/device-tree/model").lower()
    for words, name in _BOARDS:
        if words in model:
            return name
    kinds = {accelerator.kind for accelerator in _accelerators(root)}
    arch = machine or platform.machine()
    if arch == "x86_64" and "cuda" in kinds:
        return "nvidia-datacenter"
    if arch == "x86_64" and "openvino" in kinds:
        return "intel-openvino"
    return "generic-aarch64" if arch == "aarch64" else "generic-x86_64"


def _memory_mib(root: Path) -> int:
    match = re.search(r"^MemTotal:\s+(\d+) kB", _text(root / "proc/meminfo"), re.MULTILINE)
    return int(match[1]) // 1024 if match else 0


def _disk_mib(folder: Path) -> int:
    try:
        space = os.statvfs(folder)
    except OSError:
        return 0
    return space.f_blocks * space.f_frsize // (1024 * 1024)


def _accelerators(root: Path) -> Iterator[Accelerator]:
    yield from _nvidia(root)
    yield from _edge_tpus(root)
    for manager in _listed(root / "sys/class/fpga_manager"):
        yield Accelerator("fpga", _text(manager / "name").strip() or manager.name)
    yield from _intel(root)
    if any(path.name.startswith("fastrpc-") for path in _listed(root / "dev")):
        yield Accelerator("qnn", "Hexagon DSP")


def _nvidia(root: Path) -> Iterator[Accelerator]:
    """Cards by the driver's own files; a Jetson's built-in GPU by its device node."""
    cards = _listed(root / "proc/driver/nvidia/gpus")
    for card in cards:
        match = re.search(r"^Model:\s+(.+)$", _text(card / "information"), re.MULTILINE)
        yield Accelerator("cuda", match[1].strip() if match else "NVIDIA GPU")
    if not cards and any((root / "dev" / name).exists() for name in ("nvidia0", "nvhost-gpu", "nvgpu")):
        yield Accelerator("cuda", "NVIDIA GPU")


def _edge_tpus(root: Path) -> Iterator[Accelerator]:
    for path in _listed(root / "dev"):
        if re.fullmatch(r"apex_\d+", path.name):
            yield Accelerator("edgetpu", "Coral Edge TPU (PCIe)")
    for device in _listed(root / "sys/bus/usb/devices"):
        if (_text(device / "idVendor").strip(), _text(device / "idProduct").strip()) in _CORAL_USB:
            yield Accelerator("edgetpu", "Coral Edge TPU (USB)")


def _intel(root: Path) -> Iterator[Accelerator]:
    """A GPU by its render node, a neural unit by its accelerator node; both by Intel's vendor id."""
    for folder, pattern, name in (("drm", r"renderD\d+", "Intel GPU"), ("accel", r"accel\d+", "Intel NPU")):
        for node in _listed(root / "sys/class" / folder):
            if re.fullmatch(pattern, node.name) and _text(node / "device/vendor").strip() == _INTEL:
                yield Accelerator("openvino", name)


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _text(path: Path) -> str:
    try:
        return path.read_bytes()[:65_536].decode("utf-8", "replace").replace("\0", "")
    except OSError:
        return ""
