"""`mooring module run`: a module on this machine, with a device's worker and limits. Registered by `modules`."""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from cloud_hub.operator.cli.session import INTERRUPTED, ModuleRef, told
from cloud_hub.operator.errors import FileError
from cloud_hub.operator.unpacked import MANIFEST_FILE, write_slot

_AGENT = (sys.executable, "-P", "-m", "agent.local")

# Verifies a module and writes it to a folder; its manifest's digest.
Export = Callable[[typer.Context, ModuleRef, Path], str]


def run_in(context: typer.Context, module: str, export: Export, arguments: list[str]) -> None:
    """`module` is a reference, or a folder: a device's slot, or what `export` wrote. Ends with the worker's status."""
    with told():
        if importlib.util.find_spec("agent") is None:
            raise FileError("agent-missing", "a device's worker is needed here; install mooring[agent,onnx]")
    with tempfile.TemporaryDirectory(prefix="mooring-run-") as folder:
        slot = _slot(context, module, export, Path(folder))
        status = _ended([*_AGENT, str(slot), *arguments, *_limits(slot, arguments)])
    if status:
        raise typer.Exit(INTERRUPTED if status < 0 else status)


def _slot(context: typer.Context, module: str, export: Export, work: Path) -> Path:
    place = Path(module)
    if (place / MANIFEST_FILE).is_file():
        return place
    with told():
        if (place / "blobs").is_dir():
            bundle, digest = place, _manifest_of(place)
        else:
            bundle = work / "bundle"
            digest = export(context, ModuleRef.parse(module), bundle)
        write_slot(bundle, digest, work / "slot")
    return work / "slot"


def _limits(slot: Path, arguments: list[str]) -> list[str]:
    """Those of the module's device profile, where neither the module nor the command line says others."""
    from firmware_profiles.catalog import built_in
    from modules.manifest import decode_manifest

    manifest = decode_manifest((slot / MANIFEST_FILE).read_bytes())
    profile = built_in().get(manifest.profile)
    if profile is None:
        return []
    found = []
    if profile.memory_mib and not manifest.resources.memory_mib and "--memory" not in arguments:
        found += ["--memory", str(profile.memory_mib)]
    if profile.processor.cores and "--cpus" not in arguments:
        found += ["--cpus", str(profile.processor.cores)]
    return found


def _manifest_of(bundle: Path) -> str:
    """Of a folder that `export` wrote: the only blob that is a manifest. It was verified when it was written."""
    from modules.errors import ModuleError
    from modules.manifest import MAX_MANIFEST_BYTES, decode_manifest

    found = []
    for path in sorted((bundle / "blobs").iterdir()):
        if path.stat().st_size <= MAX_MANIFEST_BYTES:
            try:
                manifest = decode_manifest(path.read_bytes())
            except ModuleError:
                continue
            found.append((manifest.runtime.kind == "container", path.name))
    if not found:
        raise FileError("bundle-incomplete", f"{bundle}: expected a folder written by `mooring module export`")
    return max(found)[1]  # a module in a container has its own manifest without it among its files


def _ended(command: list[str]) -> int:
    """A terminal's Ctrl-C goes to both: the child drains, this waits for it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return subprocess.run(command, check=False).returncode
    finally:
        signal.signal(signal.SIGINT, before)


Port = Annotated[int, typer.Option(min=0, max=65535, help="Of the endpoint on 127.0.0.1; 0: any that is free.")]
Memory = Annotated[int, typer.Option(metavar="MIB", min=0, help="The device's; 0: the module's own limit.")]
Cpus = Annotated[int, typer.Option(min=0, help="How many processors the device has; 0: all of this machine.")]
Engine = Annotated[str, typer.Option(metavar="ADDRESS", help="The engine for modules in containers.")]
NoConfine = Annotated[bool, typer.Option("--no-confine", help="Without confinement, for a debugger.")]
