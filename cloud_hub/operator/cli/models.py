"""`mooring model`: register, list, show, download, delete."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cloud_hub.operator.cli.references import Model
from cloud_hub.operator.cli.session import (
    Format,
    Output,
    act,
    note,
    parse_pairs,
    show,
    told,
    transferring,
)
from cloud_hub.operator.errors import FileError

if TYPE_CHECKING:
    from cloud_hub.operator.client import HubClient
    from cloud_hub.registry import ModelVersion

app = typer.Typer(no_args_is_help=True, help="Models: versions of files, with where they come from.")
Tags = Annotated[list[str], typer.Option("--tag", metavar="NAME=VALUE", help="May be given more than once.")]
GIT_DEADLINE_S = 5.0


@app.command(epilog="Example:  mooring model register digits model.onnx --tag task=ocr --dataset s3://data/digits@3")
def register(
    context: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Small letters, digits, - and _.")],
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="Files, or folders with all that is in them.")],
    tag: Tags = [],  # noqa: B006 - typer reads the default, nobody changes it
    description: Annotated[str, typer.Option(help="What it is for.")] = "",
    author: Annotated[str, typer.Option(help="Who made it.")] = "",
    git_commit: Annotated[
        str | None, typer.Option(help="The training code's commit; that of the repository here, if in one.")
    ] = None,
    training_run: Annotated[str, typer.Option(help="The run that made it, in your tracker's words.")] = "",
    mlflow_run: Annotated[str, typer.Option(metavar="ID", help="The run that made it, in MLflow.")] = "",
    mlflow_uri: Annotated[
        str, typer.Option(metavar="URL", envvar="MLFLOW_TRACKING_URI", help="Of the MLflow server with that run.")
    ] = "",
    parent: Annotated[str, typer.Option(metavar="NAME:VERSION", help="The version that it was trained from.")] = "",
    dataset: Annotated[
        list[str],
        typer.Option(help="What it was trained on, such as dataset:NAME:VERSION; may be given more than once."),
    ] = [],  # noqa: B006
    output: Output = Format.TABLE,
) -> None:
    """Upload files and register them as the next version of NAME."""
    with told():
        paths = _paths(files)
        total = sum(file.stat().st_size for file in paths.values())
    tags = parse_pairs(tag)

    async def work(hub: HubClient) -> ModelVersion:
        from cloud_hub.registry import NewModel

        commit = await _head() if git_commit is None else git_commit
        try:
            new = NewModel(
                name, description, author, commit, training_run, await _references(hub, dataset), tags,
                mlflow_run, mlflow_uri if mlflow_run else "", parent,
            )  # fmt: skip
        except ValueError as error:
            raise FileError("model-invalid", f"{error}; nothing was sent") from error
        with transferring(name, total) as progress:
            return await hub.register(new, paths, progress)

    found = act(context, work)
    from cloud_hub.operator import render

    show(found, output, render.model)


@app.command("list", epilog="Example:  mooring model list --tag task=ocr")
def list_models(
    context: typer.Context,
    name: Annotated[str, typer.Option(help="Versions of this model only.")] = "",
    tag: Tags = [],  # noqa: B006
    limit: Annotated[int, typer.Option(min=1, max=500, help="At most so many.")] = 100,
    output: Output = Format.TABLE,
) -> None:
    """List model versions, newest first."""
    tags = [f"{key}={value}" for key, value in parse_pairs(tag).items()]
    found = act(context, lambda hub: hub.models(name, tags, limit))
    from cloud_hub.operator import render

    show(found, output, render.models)


@app.command("show", epilog="Example:  mooring model show digits:2")
def show_model(context: typer.Context, model: Model, output: Output = Format.TABLE) -> None:
    """Show a model version: where it comes from, and its files."""
    found = act(context, lambda hub: hub.model(model.name, model.version))
    from cloud_hub.operator import render

    show(found, output, render.model)


@app.command(epilog="Example:  mooring model download digits:2 ./digits-2")
def download(
    context: typer.Context,
    model: Model,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Made where it is not there.")],
) -> None:
    """Download all files of a model version and check their digests."""

    async def work(hub: HubClient) -> int:
        found = await hub.model(model.name, model.version)
        with transferring(str(folder), sum(file.size for file in found.files)) as progress:
            for file in found.files:
                target = folder / file.path
                await asyncio.to_thread(target.parent.mkdir, parents=True, exist_ok=True)
                await hub.download_model_file(found.name, found.version, file.path, target, progress)
                await asyncio.to_thread(_check_digest, target, file.sha256)
        return len(found.files)

    note(f"{act(context, work)} files in {folder}, digests as registered")


@app.command(epilog="Example:  mooring model delete digits:1")
def delete(context: typer.Context, model: Model) -> None:
    """Delete a model version that no device is assigned and no rollout needs."""
    act(context, lambda hub: hub.delete_model(model.name, model.version))
    note(f"deleted {model.name}:{model.version}; its number is not used again")


async def _references(hub: HubClient, datasets: list[str]) -> tuple[str, ...]:
    """A data set of the hub may be said as dataset:NAME:VERSION; its digest is asked for."""
    found = []
    for text in datasets:
        short = re.fullmatch(r"dataset:([a-z0-9][a-z0-9_-]{0,62}):([1-9][0-9]{0,8})", text)
        found.append((await hub.dataset(short[1], int(short[2]))).reference if short else text)
    return tuple(found)


def _paths(files: list[Path]) -> dict[str, Path]:
    """Path in the model -> file. A file keeps its name, a folder's files their paths below it."""
    found: dict[str, Path] = {}
    for file in files:
        members = sorted(path for path in file.rglob("*") if path.is_file()) if file.is_dir() else [file]
        if not members or not all(member.is_file() for member in members):
            raise FileError("not-readable", f"{file}: expected a file, or a folder with files; nothing was sent")
        for member in members:
            path = member.relative_to(file).as_posix() if file.is_dir() else member.name
            if path in found:
                raise FileError("path-twice", f"{member}: {path} is named twice; nothing was sent")
            found[path] = member
    return found


def _check_digest(path: Path, sha256: str) -> None:
    import hashlib

    with path.open("rb") as file:
        got = hashlib.file_digest(file, "sha256").hexdigest()
    if got != sha256:
        path.unlink()
        raise FileError("digest-differs", f"{path}: expected SHA-256 {sha256}, got {got}; the file was removed")


async def _head() -> str:
    """The commit checked out here; empty outside a repository or without git."""
    try:
        process = await asyncio.create_subprocess_exec(
            "git", "rev-parse", "HEAD", stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
        )
        text, _ = await asyncio.wait_for(process.communicate(), GIT_DEADLINE_S)
    except (OSError, TimeoutError):
        return ""
    return text.decode().strip() if process.returncode == 0 else ""
