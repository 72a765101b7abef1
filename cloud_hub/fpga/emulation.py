"""The emulation library: hls4ml's generated sources, compiled for processors, behind a C interface of our own.

Same sources, same fixed-point types as the circuit, so the same bits come out; only the time differs. One library per
machine, where its compiler is on PATH. Called by the child.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from cloud_hub.fpga.request import FpgaError
from modules.emulation import ABI, ABI_NAME, INPUT_NAME, OUTPUT_NAME, RUN_NAME

if TYPE_CHECKING:
    from cloud_hub.fpga.convert import Project

COMPILE_DEADLINE_S = 600.0
MAX_WORDS = 800
# `uname -m` -> the compiler's name as Debian's cross packages give it (g++-aarch64-linux-gnu and so on).
COMPILERS = {
    "x86_64": "x86_64-linux-gnu-g++",
    "aarch64": "aarch64-linux-gnu-g++",
    "armv7l": "arm-linux-gnueabihf-g++",
    "riscv64": "riscv64-linux-gnu-g++",
}
# The runtime library goes in, because a board's may be older; no time, path or build id does.
_FLAGS = (
    "-O2", "-fPIC", "-shared", "-std=c++17", "-w", "-fno-gnu-unique", "-fvisibility=hidden", "-ffp-contract=off",
    "-static-libstdc++", "-static-libgcc", "-Wl,-z,defs", "-Wl,--build-id=none", "-s",
)  # fmt: skip
_SOURCE = f"""\
#include <cstddef>
#include <map>
#include <string>
#include "firmware/overlay.cpp"
#include "firmware/overlay_axi.cpp"
#define SHOWN extern "C" __attribute__((visibility("default")))

namespace nnet {{
bool trace_enabled = false;
std::map<std::string, void *> *trace_outputs = NULL;
size_t trace_type_size = sizeof(double);
}}

SHOWN unsigned {ABI_NAME}() {{ return {ABI}; }}
SHOWN unsigned {INPUT_NAME}() {{ return N_IN; }}
SHOWN unsigned {OUTPUT_NAME}() {{ return N_OUT; }}
SHOWN void {RUN_NAME}(const float *in, float *out, size_t rows) {{
    static input_axi_t given[N_IN];
    static output_axi_t answered[N_OUT];
    for (size_t row = 0; row < rows; row++) {{
        for (unsigned i = 0; i < N_IN; i++) given[i] = input_axi_t(in[row * N_IN + i], i + 1 == N_IN);
        overlay_axi(given, answered);
        for (unsigned i = 0; i < N_OUT; i++) out[row * N_OUT + i] = answered[i].data;
    }}
}}
"""


def machines(wanted: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """Compilers by machine (ours always), and notes about those that are not there."""
    here = platform.machine()
    found, notes = {here: _own()}, []
    for machine in dict.fromkeys(wanted):
        compiler = shutil.which(COMPILERS.get(machine, ""))
        if machine != here and compiler:
            found[machine] = compiler
        elif machine != here:
            name = COMPILERS.get(machine, f"a compiler for {machine}")
            notes.append(f"no emulation for {machine}: {name} is not on PATH")
    return found, notes


def compile_emulation(project: Project, compiler: str, target: Path) -> None:
    """Raises FpgaError("fpga-tool")."""
    source = project.folder / "emulation.cpp"
    source.write_text(_SOURCE)
    command = [compiler, *_FLAGS, f"-ffile-prefix-map={project.folder}=.", "-I.", "-Ifirmware/ap_types",
               '-DWEIGHTS_DIR=""', source.name, "-o", str(target)]  # fmt: skip
    try:
        done = subprocess.run(
            command, cwd=project.folder, stdin=subprocess.DEVNULL, capture_output=True, timeout=COMPILE_DEADLINE_S,
            check=False, env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "SOURCE_DATE_EPOCH": "0"},
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise FpgaError("fpga-tool", f"{compiler}: {error}") from error
    if done.returncode != 0:
        words = next((line for line in done.stderr.decode(errors="replace").splitlines() if "error" in line), "")
        raise FpgaError("fpga-tool", f"{Path(compiler).name} ended with {done.returncode}: {words[:MAX_WORDS]}")


def compiler_version(compiler: str) -> str:
    done = subprocess.run([compiler, "-dumpfullversion"], capture_output=True, timeout=30, check=False)
    return f"{Path(compiler).name} {done.stdout.decode(errors='replace').strip()}"


def _own() -> str:
    compiler = shutil.which("g++") or shutil.which(COMPILERS.get(platform.machine(), ""))
    if compiler is None:
        raise FpgaError("fpga-tool", "g++ is not on PATH: the emulation, which gives the golden answers, needs it")
    return compiler
