"""Accelerators that a module can ask for, each with its driver's version. Called by `agent.probe.device`.

Sources: the NVIDIA driver's /proc/driver/nvidia; kernel documentation (fpga-mgr, drm, accel, sysfs-bus-pci and -usb);
Google's gasket driver (/sys/class/apex); Xilinx's zocl.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from agent.probe.board import is_tegra, tegra
from agent.probe.tree import Tree
from firmware_profiles.profile import Accelerator

# Vendor and product of the Coral USB accelerator, before and after its firmware is loaded.
_CORAL_USB = {("1a6e", "089a"), ("18d1", "9302")}
_CORAL_PCI = ("0x1ac1", "0x089a")
_INTEL = "0x8086"
_NVIDIA_VERSION = re.compile(r"Kernel Module(?: for \S+)?\s+(\d[\d.]*)")


def accelerators(tree: Tree) -> Iterator[Accelerator]:
    yield from _nvidia(tree)
    yield from _edge_tpus(tree)
    yield from _fpgas(tree)
    yield from _intel(tree)
    if any(name.startswith("fastrpc-") for name in tree.names("dev")):
        yield Accelerator("qnn", "Hexagon DSP")


def _nvidia(tree: Tree) -> Iterator[Accelerator]:
    """Cards by the driver's own files; a Jetson's built-in GPU by its device node, its driver by the L4T release."""
    version = _NVIDIA_VERSION.search(tree.text("proc/driver/nvidia/version"))
    driver = f"nvidia {version[1]}" if version else ""
    cards = [] if is_tegra(tree) else tree.names("proc/driver/nvidia/gpus")
    for card in cards:
        about = tree.text(f"proc/driver/nvidia/gpus/{card}/information")
        match = re.search(r"^Model:\s+(.+)$", about, re.MULTILINE)
        yield Accelerator("cuda", match[1].strip() if match else "NVIDIA GPU", driver=driver)
    nodes = ("nvidia0", "nvhost-gpu", "nvgpu")
    if not cards and any(tree.has(f"dev/{name}") for name in nodes):
        release = tegra(tree)
        yield Accelerator("cuda", "NVIDIA GPU", driver=f"l4t {release}" if release else driver)


def _edge_tpus(tree: Tree) -> Iterator[Accelerator]:
    """The PCIe card counts once its driver has made a node; without one it is `waiting`'s to tell."""
    for name in tree.names("dev"):
        if re.fullmatch(r"apex_\d+", name):
            said = tree.text(f"sys/class/apex/{name}/driver_version") or tree.text("sys/module/gasket/version")
            yield Accelerator("edgetpu", "Coral Edge TPU (PCIe)", driver=f"gasket {said}".strip() if said else "")
    base = "sys/bus/usb/devices"
    for name in tree.names(base):
        if (tree.text(f"{base}/{name}/idVendor"), tree.text(f"{base}/{name}/idProduct")) in _CORAL_USB:
            yield Accelerator("edgetpu", "Coral Edge TPU (USB)")


def _fpgas(tree: Tree) -> Iterator[Accelerator]:
    zocl = tree.text("sys/module/zocl/version") or ("loaded" if tree.has("sys/module/zocl") else "")
    for name in tree.names("sys/class/fpga_manager"):
        said = tree.text(f"sys/class/fpga_manager/{name}/name") or name
        yield Accelerator("fpga", said, driver=f"zocl {zocl}" if zocl else "")


def _intel(tree: Tree) -> Iterator[Accelerator]:
    """A GPU by its render node, a neural unit by its accelerator node; both by Intel's vendor id."""
    for kind, pattern, name in (("drm", r"renderD\d+", "Intel GPU"), ("accel", r"accel\d+", "Intel NPU")):
        for node in tree.names(f"sys/class/{kind}"):
            if re.fullmatch(pattern, node) and tree.text(f"sys/class/{kind}/{node}/device/vendor") == _INTEL:
                yield Accelerator("openvino", name)


def waiting(tree: Tree) -> Iterator[str]:
    """Hardware that is there and that no driver has taken, with what to do. For people."""
    cards = [name for name in tree.names("sys/bus/pci/devices") if _pci(tree, name, "class").startswith("0x03")]
    if any(_pci(tree, card, "vendor") == "0x10de" for card in cards) and not list(_nvidia(tree)):
        yield "an NVIDIA GPU without its driver: install NVIDIA's driver for this kernel"
    ids = {(_pci(tree, name, "vendor"), _pci(tree, name, "device")) for name in tree.names("sys/bus/pci/devices")}
    if _CORAL_PCI in ids and not any(name.startswith("apex_") for name in tree.names("dev")):
        yield "a Coral Edge TPU (PCIe) without its driver: install gasket-dkms"
    for name in tree.names("sys/class/fpga_manager"):
        state = tree.text(f"sys/class/fpga_manager/{name}/state")
        if "error" in state:
            yield f"FPGA {name} is in state {state}: load its bitstream anew"


def _pci(tree: Tree, name: str, what: str) -> str:
    return tree.text(f"sys/bus/pci/devices/{name}/{what}")
