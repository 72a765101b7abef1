"""Which sources of a module this device allows: asked before its worker is started. Parent side.

`serving.sources` lists what workers may use: folders, video files and devices by absolute path, folders for results as
`write:/path`, brokers as `mqtt:host:port`, and `gstreamer` for pipelines. Nothing is allowed by default. A module that
wants more is refused before it is tried, with the words that would allow it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from agent.errors import WorkerError
from modules.manifest import Manifest
from modules.sources import Directory, Mqtt, Source, Video

_WRITE = "write:"


class SourceNotAllowed(WorkerError):
    """A module wants a source that this device does not allow (`serving.sources`)."""

    key = "source-not-allowed"


def check_allowed(manifest: Manifest, allowed: Sequence[str]) -> None:
    """Raises SourceNotAllowed, with what is missing."""
    runtime = manifest.runtime
    if runtime.sources and runtime.container is not None:
        raise SourceNotAllowed(f"{manifest.name}: expected no sources in a container's module; it is refused")
    missing = [want for source in runtime.sources for want in wants(source) if not _is_allowed(want, allowed)]
    if missing:
        words = ", ".join(f'"{want}"' for want in dict.fromkeys(missing))
        raise SourceNotAllowed(
            f"{manifest.name}: its sources need {words} in serving.sources of this device, which allows "
            f"{', '.join(allowed) or 'none'}; the module is refused"
        )


def wants(source: Source) -> Iterator[str]:
    """As an operator would allow it."""
    match source:
        case Directory():
            yield source.path
        case Mqtt():
            yield f"mqtt:{source.broker}"
        case Video():
            yield source.path
            if source.pipeline:
                yield "gstreamer"
    if isinstance(source, Directory | Video) and source.results:
        yield _WRITE + source.results


def places(sources: Sequence[Source]) -> tuple[str, ...]:
    """The paths that a worker must be able to read, for its confinement; allowed already."""
    return tuple(dict.fromkeys(source.path for source in sources if isinstance(source, Directory | Video)))


def _is_allowed(want: str, allowed: Sequence[str]) -> bool:
    if want in allowed:
        return True
    kind = _WRITE if want.startswith(_WRITE) else ""
    path = want.removeprefix(kind)
    if not path.startswith("/"):
        return False
    # Where the links lead is what counts: an allowed folder must not be a way into another one.
    folders = [one.removeprefix(kind) for one in allowed if one.startswith(kind + "/")]
    return any(Path(path).resolve().is_relative_to(Path(folder).resolve()) for folder in folders)
