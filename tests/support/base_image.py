"""A base image made of this machine's own Python: interpreter, standard library, what a worker imports, and the shared
libraries of all that. As `docker save` would write it. No registry is asked.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterator
from pathlib import Path

# What a worker with the ONNX backend has imported; everything else may stay away from the image.
_ASK = """
import sys, agent.containers.inside, agent.sandbox.session, agent.sandbox.standalone, agent.backends.onnx, msgspec
import agent.endpoint.http, pyseccomp, httptools
for module in list(sys.modules.values()):
    print(getattr(module, "__file__", None) or "")
"""
_LEFT_OUT = re.compile(
    r"/(__pycache__|tests?|idlelib|ensurepip|tkinter|turtledemo|lib2to3|pydoc_data|config-3[^/]*|site-packages)(/|$)"
    r"|/_tkinter\.|\.(a|pyi|c|h|pyx|pxd)$|/onnxruntime/(transformers|tools|quantization|datasets|backend)(/|$)|/f2py(/|$)"
)
PYTHON = "/opt/python/bin/python3"


def write_base(target: Path) -> None:
    """One layer of about 150 MB, as a tar archive of an image."""
    layer = target.with_suffix(".layer")
    with tarfile.open(layer, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, path in sorted(_files().items()):
            tar.add(path, name, recursive=False)
        for folder in ("tmp", "proc", "sys", "dev", "etc", "mooring"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
    with layer.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[_machine()],
        "os": "linux",
        "config": {"Env": [f"PATH={Path(PYTHON).parent}:/usr/bin:/bin", "PYTHONHOME=/opt/python"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    with tarfile.open(target, "w") as tar:
        for name, body in (
            ("config.json", json.dumps(config).encode()),
            ("manifest.json", json.dumps([{"Config": "config.json", "Layers": ["layer.tar"]}]).encode()),
        ):
            entry = tarfile.TarInfo(name)
            entry.size = len(body)
            tar.addfile(entry, io.BytesIO(body))
        tar.add(layer, "layer.tar")
    layer.unlink()


def _machine() -> str:
    return subprocess.run(["uname", "-m"], capture_output=True, text=True, check=True).stdout.strip()


def _files() -> dict[str, Path]:
    """By their name in the image."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    found = {PYTHON.lstrip("/"): Path(sys.executable).resolve()}
    stdlib = Path(sysconfig.get_path("stdlib"))
    found |= dict(_tree(stdlib, f"opt/python/lib/{version}"))
    for root in _packages():
        found |= dict(_tree(root, f"opt/python/lib/{version}/site-packages/{root.name}"))
    binaries = [path for path in found.values() if path.suffix == ".so" or ".so." in path.name]
    for library in _libraries([Path(sys.executable).resolve(), *binaries]):
        if not any(library.resolve() == path for path in found.values()):
            found[str(library).lstrip("/")] = library.resolve()
    return found


def _packages() -> list[Path]:
    """The packages, and what stands beside them (`numpy.libs`), that a worker has imported."""
    asked = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True, check=True, timeout=60)
    sites = {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")}
    roots: set[Path] = set()
    for line in asked.stdout.split():
        for site in sites:
            if Path(line).is_relative_to(site):
                name = Path(line).relative_to(site).parts[0]
                roots.add(site / name)
                roots |= {other for other in (site / f"{name}.libs",) if other.is_dir()}
    return sorted(roots)


def _tree(root: Path, name: str) -> Iterator[tuple[str, Path]]:
    if root.is_file():
        yield name, root
        return
    for path in root.rglob("*"):
        if path.is_file() and not _LEFT_OUT.search(f"/{root.name}/{path.relative_to(root)}"):
            yield f"{name}/{path.relative_to(root)}", path


def _libraries(binaries: list[Path]) -> set[Path]:
    """Shared libraries from outside, and the loader, by the paths under which they are looked for."""
    said = subprocess.run(["ldd", *map(str, binaries)], capture_output=True, text=True, check=False, timeout=60).stdout
    named = [
        name for name in re.findall(r"(?:=>\s*|^\s*)(/\S+)\s+\(0x", said, re.MULTILINE) if "-packages/" not in name
    ]
    seccomp = list(Path("/usr/lib").rglob("libseccomp.so.2"))
    return {Path(name) for name in named} | set(seccomp)
