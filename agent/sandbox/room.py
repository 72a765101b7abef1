"""What one worker may reach beyond its module's files: a folder for what runtimes compile, an accelerator's devices.

Only for modules that require an accelerator, and only what of it this device has. No heavy imports: asked by the parent
when it makes namespaces (`agent.sandbox.cage`), and by the worker when it confines itself (`agent.sandbox.session`).
Source: the device files of NVIDIA's, Intel's, Google's and Qualcomm's Linux drivers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

# By the kind that a manifest requires: device files, and what their libraries read of the machine.
_NODES = {
    "cuda": (
        "dev/nvidia[0-9]*", "dev/nvidiactl", "dev/nvidia-uvm*", "dev/nvidia-caps/*", "dev/nvmap", "dev/nvhost-*",
        "dev/nvgpu/*/*", "dev/dri/renderD*",
    ),
    "openvino": ("dev/dri/renderD*", "dev/accel/accel*"),
    "edgetpu": ("dev/apex_*", "dev/bus/usb/*/*"),
    "qnn": ("dev/fastrpc-*", "dev/adsprpc-smd*", "dev/dma_heap/system", "dev/kgsl-3d0"),
    "vitisai": ("dev/accel/accel*",),
}  # fmt: skip
_READ = {
    "cuda": (
        "proc/driver/nvidia", "proc/devices", "proc/modules", "sys/bus/pci/devices", "sys/devices/pci*",
        "sys/devices/soc0", "sys/module/nvidia*", "usr/local/cuda*", "opt/nvidia", "etc/nv_tegra_release",
    ),
    "openvino": ("sys/class/drm", "sys/class/accel", "sys/dev/char", "sys/devices/pci*", "etc/OpenCL", "opt/intel"),
    "edgetpu": ("sys/bus/usb/devices", "sys/class/apex", "sys/devices/pci*", "sys/devices/platform", "run/udev/data"),
    "qnn": ("sys/devices/soc0", "usr/share/qcom", "usr/lib/dsp", "dsp"),
    "vitisai": ("sys/class/accel", "sys/devices/pci*", "opt/xilinx"),
}  # fmt: skip


@dataclass(frozen=True)
class Room:
    """`cache` is a folder to write to, in files of at most `cache_bytes`; `devices` may be opened and told anything,
    `readable` is read. Files in the `shared` folders are read and written, as they are outside.
    `places` are read by sources, and `cameras` are their devices.
    """

    cache: Path | None = None
    cache_bytes: int = 0
    devices: tuple[Path, ...] = ()
    readable: tuple[Path, ...] = ()
    shared: tuple[Path, ...] = ()
    places: tuple[Path, ...] = ()
    cameras: tuple[Path, ...] = ()

    @property
    def groups(self) -> frozenset[int]:
        """Those that the device files and places are open to, such as `render`; never root's."""
        reached = (*self.devices, *self.cameras, *self.places)
        return frozenset(path.stat().st_gid for path in reached if path.exists()) - {0}


NO_ROOM = Room()


def with_places(room: Room, paths: Iterable[str]) -> Room:
    """And what a module's sources read. A place that is not there when the worker starts is not opened later."""
    places = [Path(path) for path in paths]
    cameras = [place for place in places if place.is_char_device()]
    return replace(room, cameras=tuple(cameras), places=tuple(place for place in places if place not in cameras))


def room_for(
    accelerators: Iterable[str],
    cache: Path | None,
    cache_bytes: int,
    root: Path = Path("/"),
    *,
    shares_memory: bool = False,
) -> Room:
    """`root` is where /dev and /sys stand. An accelerator that this device does not have opens nothing.
    `shares_memory`: clients may pass tensors in POSIX shared memory.
    """
    devices: dict[Path, None] = {}
    readable: dict[Path, None] = {}
    for kind in accelerators:
        nodes = list(_there(root, _NODES.get(kind, ())))
        if nodes:
            devices |= dict.fromkeys(nodes)
            readable |= dict.fromkeys(_there(root, _READ.get(kind, ())))
    shared = (root / "dev/shm",) if shares_memory else ()
    return Room(cache, cache_bytes if cache is not None else 0, tuple(devices), tuple(readable), shared)


def _there(root: Path, patterns: Iterable[str]) -> Iterator[Path]:
    for pattern in patterns:
        yield from sorted(root.glob(pattern))
