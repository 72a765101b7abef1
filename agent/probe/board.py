"""Which board or machine this is, and its kernel. Called by `agent.probe.device` and the doctor.

Sources: Devicetree specification (model, compatible); Linux ABI documentation, sysfs-class-dmi; the header of
/etc/nv_tegra_release as NVIDIA's L4T writes it.
"""

from __future__ import annotations

import re

from agent.probe.tree import Tree

# A word of the model or of the compatible strings, and the built-in profile that it means.
_BOARDS = (
    ("raspberry pi 5", "raspberry-pi-5"),
    ("raspberry pi compute module 5", "raspberry-pi-5"),
    ("raspberry pi 4", "raspberry-pi-4"),
    ("raspberry pi compute module 4", "raspberry-pi-4"),
    ("orin nano", "jetson-orin-nano"),
    ("p3767-0003", "jetson-orin-nano"),
    ("p3767-0005", "jetson-orin-nano"),
    ("coral", "coral-dev-board"),
    ("phanbell", "coral-dev-board"),
    ("kv260", "kria-kv260"),
    ("pynq-z2", "pynq-z2"),
    ("pynq z2", "pynq-z2"),
)
_TEGRA = re.compile(r"# R(\d+) \(release\), REVISION: ([\d.]+)")


def model(tree: Tree) -> str:
    """For people; empty where neither firmware nor device tree says it."""
    said = tree.text("proc/device-tree/model")
    if said:
        return said
    dmi = "sys/devices/virtual/dmi/id/"
    return " ".join(word for word in (tree.text(dmi + "sys_vendor"), tree.text(dmi + "product_name")) if word)


def known_as(tree: Tree) -> str:
    """The built-in profile of this very board; empty for any other machine."""
    words = f"{model(tree)} {tree.text('proc/device-tree/compatible')}".lower()
    return next((name for part, name in _BOARDS if part in words), "")


def kernel(tree: Tree) -> str:
    return tree.text("proc/sys/kernel/osrelease")


def tegra(tree: Tree) -> str:
    """The release of NVIDIA's Linux for Tegra, such as 36.4.3; empty elsewhere."""
    match = _TEGRA.search(tree.text("etc/nv_tegra_release"))
    return f"{match[1]}.{match[2]}" if match else ""


def is_tegra(tree: Tree) -> bool:
    return "nvidia,tegra" in tree.text("proc/device-tree/compatible")
