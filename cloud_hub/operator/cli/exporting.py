"""What `mooring module export` writes beside the module: its image, and how a cluster runs it. Called by `modules`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from cloud_hub.operator.errors import FileError

_RUN_ELSEWHERE = "Without an agent"

Image = Annotated[
    Path | None,
    typer.Option(metavar="TAR", help="The image, for `docker load`.", rich_help_panel=_RUN_ELSEWHERE),
]
Kubernetes = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Deployment and Service; - prints them.", rich_help_panel=_RUN_ELSEWHERE),
]
Reference = Annotated[
    str,
    typer.Option("--image-name", metavar="NAME", help="Of the image, in both.", rich_help_panel=_RUN_ELSEWHERE),
]


def write_container(
    bundle: Path, manifest_sha256: str, reference: str, image: Path | None, kubernetes: Path | None
) -> None:
    """Raises OperatorError, FileError."""
    if image is None and kubernetes is None:
        return
    import yaml

    from cloud_hub.operator.kubernetes import objects
    from cloud_hub.operator.unpacked import exported_manifest, write_image

    manifest = exported_manifest(bundle, manifest_sha256)
    name = reference or f"mooring/{manifest.name}:{manifest.version}-{manifest.profile}"
    if kubernetes is not None:
        text = yaml.safe_dump_all(objects(manifest, manifest_sha256, name), sort_keys=False)
        _write(kubernetes, text)
    if image is not None:
        write_image(bundle, manifest, name, image)


def _write(target: Path, text: str) -> None:
    if str(target) == "-":
        sys.stdout.write(text)
        return
    try:
        target.write_text(text)
    except OSError as error:
        raise FileError("not-written", f"{target}: {error.strerror}") from error
