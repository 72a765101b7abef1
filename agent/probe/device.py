"""The device's profile as this machine has it, and which built-in profile fits it.

Called by `agent.enrol`, `agent.service` and the doctor. What a profile means, and what of it modules may
require, is `firmware_profiles`.
"""

from __future__ import annotations

import platform
from pathlib import Path

import msgspec

from agent import __version__
from agent.probe import board
from agent.probe.accelerators import accelerators
from agent.probe.memory import disk_mib, memory_mib
from agent.probe.processor import processor
from agent.probe.tree import THIS, Tree
from firmware_profiles.profile import DeviceProfile


def probe(profile: DeviceProfile, tree: Tree = THIS, machine: str = "", state: Path | None = None) -> DeviceProfile:
    """The profile with what this machine really has. `machine` is its architecture (empty: that of this process).

    `state` is a folder on the file system whose size counts (empty: the root). What cannot be read keeps the profile's
    word: a probe that fails must not refuse modules.
    """
    found = tuple(accelerators(tree))
    return msgspec.structs.replace(
        described(profile, tree),
        arch=machine or platform.machine() or profile.arch,
        memory_mib=memory_mib(tree) or profile.memory_mib,
        disk_mib=disk_mib(state or tree.root) or profile.disk_mib,
        accelerators=found or profile.accelerators,
    )


def described(profile: DeviceProfile, tree: Tree = THIS) -> DeviceProfile:
    """What an upgrade changes (kernel, Python, agent) and what is there for people. Not what it was enrolled with."""
    return msgspec.structs.replace(
        profile,
        board=board.model(tree),
        processor=processor(tree),
        kernel=board.kernel(tree),
        agent_version=__version__,
        python=".".join(platform.python_version_tuple()[:2]),
    )


def suggest(tree: Tree = THIS, machine: str = "") -> str:
    """The name of the built-in profile that fits this machine best."""
    if known := board.known_as(tree):
        return known
    kinds = {accelerator.kind for accelerator in accelerators(tree)}
    arch = machine or platform.machine()
    if arch == "x86_64" and "cuda" in kinds:
        return "nvidia-datacenter"
    if arch == "x86_64" and "openvino" in kinds:
        return "intel-openvino"
    return "generic-aarch64" if arch == "aarch64" else "generic-x86_64"
