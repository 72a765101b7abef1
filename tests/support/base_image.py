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

# What a worker with the ONNX backend has imported, and which libraries that has loaded; the rest may stay away.
_ASK = """
import sys, agent.containers.inside, agent.sandbox.session, agent.sandbox.standalone, agent.backends.onnx, msgspec
import agent.endpoint.http, pyseccomp, httptools, http.server, ssl, sqlite3, lzma, bz2, multiprocessing.pool, zoneinfo
for module in list(sys.modules.values()):
    print(getattr(module, "__file__", None) or "")
for line in open("/proc/self/maps"):
    print(line.split()[-1])
"""
_LEFT_OUT = re.compile(
    r"/(__pycache__|tests?|idlelib|ensurepip|tkinter|turtledemo|lib2to3|pydoc_data|config-3[^/]*|site-packages)(/|$)"
    r"|/_tkinter\.|\.(a|pyi|c|h|pyx|pxd)$|/onnxruntime/(transformers|tools|quantization|datasets|backend)(/|$)|/f2py(/|$)"
)
LIBRARIES = "lib64"  # where the loader is, too
PYTHON = "/opt/python/bin/python3"


def write_base(target: Path) -> None:
    """One layer of about 150 MB, as a tar archive of an image."""
    layer = target.with_suffix(".layer")
    with tarfile.open(layer, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, path in sorted(_files().items()):
            tar.add(path, name, recursive=False)
            for shorter in _shorter(name) if name.startswith(f"{LIBRARIES}/") else ():
                link = tarfile.TarInfo(shorter)
                link.type, link.linkname, link.mode = tarfile.SYMTYPE, path.name, 0o777
                tar.addfile(link)
        for folder in ("tmp", "proc", "sys", "dev", "etc", "mooring"):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
    with layer.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[_machine()],
        "os": "linux",
        "config": {
            "Env": [f"PATH={Path(PYTHON).parent}:/bin", "PYTHONHOME=/opt/python", f"LD_LIBRARY_PATH=/{LIBRARIES}"]
        },
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
    asked = subprocess.run([sys.executable, "-c", _ASK], capture_output=True, text=True, check=True, timeout=60)
    loaded = [Path(line) for line in dict.fromkeys(asked.stdout.split()) if line.startswith("/")]
    sites = {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")}
    for root in _packages(loaded, sites):
        found |= dict(_tree(root, f"opt/python/lib/{version}/site-packages/{root.name}"))
    for library in loaded:
        outside = not any(library.is_relative_to(root) for root in (*sites, stdlib))
        if outside and (library.suffix == ".so" or ".so." in library.name):
            found[f"{LIBRARIES}/{library.name}"] = library
    return found


def _shorter(library: str) -> Iterator[str]:
    """The names under which it may be looked for: libstdc++.so.6.0.30 is known as libstdc++.so.6."""
    while re.search(r"\.so\..*\.", library):
        library = library.rpartition(".")[0]
        yield library


def _packages(loaded: list[Path], sites: set[Path]) -> list[Path]:
    """The packages, and what stands beside them (`numpy.libs`)."""
    roots: set[Path] = set()
    for path in loaded:
        for site in sites:
            if path.is_relative_to(site):
                name = path.relative_to(site).parts[0]
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
