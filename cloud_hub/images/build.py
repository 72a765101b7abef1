"""Build an image for a module without an engine: the base's layers, one with our worker, one with the module's files.

The same input gives the same bytes, so the same digest. The last layer is not written: whoever loads the image makes it
from the module's files, and its digest is in the image's manifest (`modules.images`). Blocking: called by the build of
modules, in a thread.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from cloud_hub.images.base import BaseImage, BaseLayer, read_base
from cloud_hub.images.worker import worker_layer
from modules.bundle import sha256_hex
from modules.containers import Container
from modules.images import (
    CODE_ROOT,
    CONFIG_TYPE,
    FOLDER,
    GZIP_LAYER_TYPE,
    LAYER_TYPE,
    MANIFEST_TYPE,
    MODULE_LAYER,
    MODULE_ROOT,
    SITE_ROOT,
    STANDALONE_PORT,
    Descriptor,
    ImageError,
    ImageIndex,
    ImageManifest,
    blob_path,
)
from modules.layers import Content, digest, module_layer, size, stream

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}  # a device's, as images say it
USER = "65532:65532"  # where nobody says another: not root, and nobody's
_DEFAULT = Container(FOLDER, f"sha256:{'0' * 64}")


class BuiltImage(msgspec.Struct, frozen=True):
    """`files` are to be added to the module's, by path; `container` goes into its manifest."""

    files: dict[str, Path]
    container: Container


def build_image(
    base: Path,
    module_files: Mapping[str, Path],
    arch: str,
    work: Path,
    wanted: Container = _DEFAULT,
    wheels: Sequence[Path] = (),
) -> BuiltImage:
    """`module_files` are all of the module's other files, `module.json` (its manifest without a container) among them;
    `arch` is the device's. `wanted` is what the container may have; its digest is filled in. `wheels` are unpacked for
    the worker. Raises ImageError.
    """
    if arch not in ARCHITECTURES:
        raise ImageError(f"image: expected a device of {', '.join(ARCHITECTURES)}, got {arch}")
    image = read_base(base, ARCHITECTURES[arch], work / "base")
    layers = [*image.layers, *([_worker(wheels, work)] if wanted.serves == "worker" else [])]
    last = _last_layer(module_files)
    config = _config(image, layers, last, wanted)
    manifest = msgspec.json.encode(
        ImageManifest(
            Descriptor(CONFIG_TYPE, f"sha256:{sha256_hex(config)}", len(config)),
            (*(Descriptor(one.media_type, f"sha256:{one.digest}", one.size) for one in layers), last),
        )
    )
    files = {blob_path(layer.digest): layer.path for layer in layers}
    files |= _documents(config, manifest, work)
    return BuiltImage(files, msgspec.structs.replace(wanted, image=FOLDER, digest=f"sha256:{sha256_hex(manifest)}"))


def _worker(wheels: Sequence[Path], work: Path) -> BaseLayer:
    work.mkdir(parents=True, exist_ok=True)
    path, plain = work / "worker-layer", hashlib.sha256()
    with path.open("wb") as file, gzip.GzipFile("", "wb", 6, file, mtime=0) as packed:
        for block in stream(worker_layer(wheels, work), _open):
            plain.update(block)
            packed.write(block)
    found = _hash(path)
    return BaseLayer(path, found, path.stat().st_size, f"sha256:{plain.hexdigest()}", GZIP_LAYER_TYPE)


def _last_layer(module_files: Mapping[str, Path]) -> Descriptor:
    contents = {}
    for path, source in module_files.items():
        contents[path] = Content(path, source.stat().st_size, _hash(source))
    pieces = module_layer(MODULE_ROOT, contents)

    def opened(path: str) -> BinaryIO:
        return module_files[path].open("rb")

    return Descriptor(LAYER_TYPE, digest(pieces, opened), size(pieces), {MODULE_LAYER: "module"})


def _config(image: BaseImage, layers: Sequence[BaseLayer], last: Descriptor, wanted: Container) -> bytes:
    """The base's own, with our layers; where our worker serves, the image serves the module also when it is run alone,
    without an agent.
    """
    before = image.config
    starts: dict[str, Any] = dict(before.get("config") or {})
    starts["Env"] = _environment(starts.get("Env") or [], wanted)
    if wanted.serves == "worker":
        starts |= {
            "Entrypoint": [wanted.python, "-P", "-m", "agent.sandbox.standalone", f"/{MODULE_ROOT}"],
            "Cmd": ["--host", "0.0.0.0", "--port", str(STANDALONE_PORT)],  # noqa: S104 - of the container
            "User": USER,
            "WorkingDir": "/",
            "ExposedPorts": {f"{STANDALONE_PORT}/tcp": {}},
        }
        starts.pop("Healthcheck", None)
    kept: dict[str, Any] = {
        name: before[name] for name in ("architecture", "os", "variant", "os.version") if before.get(name)
    }
    history = list(before.get("history") or [])
    if history:  # one entry for each layer, or none at all
        history += [{"created_by": "mooring: worker"}] * (len(layers) - len(image.layers))
        kept["history"] = [*history, {"created_by": "mooring: module"}]
    return msgspec.json.encode(
        {
            **kept,
            "config": starts,
            "rootfs": {"type": "layers", "diff_ids": [*(layer.diff_id for layer in layers), last.digest]},
        },
        order="sorted",
    )


def _environment(base: Sequence[str], wanted: Container) -> list[str]:
    found = dict(entry.split("=", 1) for entry in base if "=" in entry)
    found["AZUREML_MODEL_DIR"] = f"/{MODULE_ROOT}"
    if wanted.serves == "worker":
        paths = [f"/{CODE_ROOT}", f"/{SITE_ROOT}", *filter(None, [found.get("PYTHONPATH", "")])]
        found |= {"PYTHONPATH": ":".join(paths), "PYTHONDONTWRITEBYTECODE": "1", "ORT_DISABLE_TELEMETRY": "1"}
    return [f"{name}={value}" for name, value in (found | wanted.environment).items()]


def _documents(config: bytes, manifest: bytes, work: Path) -> dict[str, Path]:
    index = ImageIndex((Descriptor(MANIFEST_TYPE, f"sha256:{sha256_hex(manifest)}", len(manifest)),))
    bodies = {
        f"{FOLDER}/oci-layout": b'{"imageLayoutVersion":"1.0.0"}',
        f"{FOLDER}/index.json": msgspec.json.encode(index),
        blob_path(sha256_hex(config)): config,
        blob_path(sha256_hex(manifest)): manifest,
    }
    found = {}
    for number, (path, body) in enumerate(bodies.items()):
        found[path] = work / f"document-{number}"
        found[path].write_bytes(body)
    return found


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _open(path: str) -> BinaryIO:
    return Path(path).open("rb")
