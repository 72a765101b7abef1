"""The processor: its name, cores, and the instructions that make inference fast. Called by `agent.probe.device`.

Source: /proc/cpuinfo of x86 ("flags", "model name") and of Arm ("Features"; kernel documentation,
arch/arm64/elf_hwcaps); part numbers of Arm Ltd. from the processors' reference manuals (MIDR_EL1).
"""

from __future__ import annotations

import re

from agent.probe.tree import Tree
from firmware_profiles.profile import Processor

# The kernel's word -> ours. Only what a runtime chooses its kernels by.
_X86 = {
    "sse4_2": "sse4.2", "avx": "avx", "avx2": "avx2", "fma": "fma", "f16c": "f16c", "avx512f": "avx512",
    "avx512_vnni": "avx512-vnni", "avx512_bf16": "avx512-bf16", "avx512_fp16": "avx512-fp16", "avx_vnni": "avx-vnni",
    "amx_tile": "amx", "amx_int8": "amx-int8", "amx_bf16": "amx-bf16",
}  # fmt: skip
_ARM = {
    "asimd": "neon", "neon": "neon", "asimdhp": "fp16", "asimddp": "dotprod", "i8mm": "i8mm", "bf16": "bf16",
    "sve": "sve", "sve2": "sve2", "sme": "sme",
}  # fmt: skip
_ARM_LTD = "0x41"
_PARTS = {
    "0xc09": "Cortex-A9", "0xd03": "Cortex-A53", "0xd04": "Cortex-A35", "0xd05": "Cortex-A55", "0xd07": "Cortex-A57",
    "0xd08": "Cortex-A72", "0xd09": "Cortex-A73", "0xd0a": "Cortex-A75", "0xd0b": "Cortex-A76", "0xd0c": "Neoverse-N1",
    "0xd41": "Cortex-A78", "0xd42": "Cortex-A78AE", "0xd44": "Cortex-X1", "0xd46": "Cortex-A510",
    "0xd47": "Cortex-A710", "0xd49": "Neoverse-N2", "0xd4f": "Neoverse-V2",
}  # fmt: skip


def processor(tree: Tree) -> Processor:
    text = tree.text("proc/cpuinfo")
    flags = set(_field(text, "flags").split()) | set(_field(text, "Features").split())
    features = dict.fromkeys(ours for theirs, ours in {**_X86, **_ARM}.items() if theirs in flags)
    cores = len(re.findall(r"^processor\s*:", text, re.MULTILINE))
    return Processor(_name(text), cores, tuple(features), _mhz(tree))


def _name(text: str) -> str:
    if said := _field(text, "model name"):
        return said
    parts = dict.fromkeys(re.findall(r"^CPU part\s*:\s*(\S+)", text, re.MULTILINE))
    if not parts or _field(text, "CPU implementer") != _ARM_LTD:
        return ""
    return " + ".join(_PARTS.get(part, f"Arm part {part}") for part in parts)


def _field(text: str, name: str) -> str:
    match = re.search(rf"^{name}\s*:\s*(.+)$", text, re.MULTILINE)
    return match[1].strip() if match else ""


def _mhz(tree: Tree) -> int:
    """Of the fastest core, at most; 0 where the kernel does not say."""
    folder = "sys/devices/system/cpu"
    names = [name for name in tree.names(folder) if re.fullmatch(r"cpu\d+", name)]
    most = (tree.number(f"{folder}/{name}/cpufreq/cpuinfo_max_freq") or 0 for name in names)
    return max(most, default=0) // 1000
