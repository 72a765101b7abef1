"""Where a worker may take its inputs from by itself, without a request: declared here, allowed by the device.

Pure values with their checks; `agent.sources` runs them. `results` says where answers go beside windows and samples.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Literal

import msgspec

from modules.bundle import check_path
from modules.errors import ModuleError
from modules.tensors import TensorSpec

Content = Literal["auto", "raw", "json", "text", "image"]
MAX_SOURCES = 8
MAX_TOPIC = 512
BROKER_PATTERN = r"^[A-Za-z0-9.:_-]{1,253}:[0-9]{1,5}$"


class SourceError(ModuleError):
    """A source that does not fit the module's inputs, or is none."""

    key = "source-invalid"


class Directory(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="directory"):
    """Files that appear in a folder, each one request; what was done with is remembered, never deleted.

    `path` is absolute; the device must allow it (`serving.sources`). Names that fit `pattern` are taken, oldest first,
    once they are closed or have not changed for `settle_s`. `results` is a folder, which the device must allow, too:
    what came out is written there as `<name>.json`. Files of more than `max_bytes` are passed over.
    """

    path: str
    pattern: str = "*"
    input: str = ""
    content: Content = "auto"
    results: str = ""
    every_s: float = 1.0
    settle_s: float = 0.5
    max_bytes: int = 64 * 1024 * 1024


class Mqtt(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="mqtt"):
    """Messages of a topic of a broker near by, each one request. The device must allow `broker` (host:port).

    `results` is a topic for what came out, as JSON with the prediction's id. With `qos` 1 a message is acknowledged
    after it was predicted, and may come twice; with 0 it may be lost. At most `queue` messages wait; then the oldest
    is dropped, and counted.
    """

    topic: str
    broker: str = "127.0.0.1:1883"
    input: str = ""
    content: Content = "auto"
    results: str = ""
    qos: Literal[0, 1] = 0
    queue: int = 256
    max_bytes: int = 8 * 1024 * 1024


class Video(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="video"):
    """Frames of a camera (/dev/video0), a video file, or a GStreamer `pipeline` whose devices are `path`.

    Frames have the size that the input wants. `fps` caps how many are taken in a second (0: all). `latest` drops the
    frames that came while a prediction ran; without it a file is read frame by frame. `repeat` begins a file again at
    its end. `results` is a folder as of Directory, for the last
    thousand (`000.json` to `999.json`, by the frame's number).
    """

    path: str
    pipeline: str = ""
    input: str = ""
    colour: Literal["rgb", "bgr", "grey"] = "rgb"
    fps: float = 0.0
    latest: bool = True
    repeat: bool = False
    results: str = ""


class Script(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, tag="script"):
    """A script's own `loop`, see docs/extend/sources.md: that of the entry script, or of a file of the module, `entry`,
    beside a model that needs no script.
    """

    entry: str = ""

    def __post_init__(self) -> None:
        if self.entry:
            check_path(self.entry)


Source = Directory | Mqtt | Video | Script


def check_sources(sources: Sequence[Source], inputs: Sequence[TensorSpec], scripted: bool) -> None:
    """Whether they fit the module. Raises SourceError, with the source's number and what was expected."""
    if len(sources) > MAX_SOURCES:
        raise SourceError(f"sources: expected at most {MAX_SOURCES}, got {len(sources)}")
    for number, source in enumerate(sources):
        where = f"source {number + 1} ({kind(source)})"
        match source:
            case Script():
                has_one = scripted or bool(source.entry)
                _require(where, has_one, "expected an entry script with loop(), got a module without one")
            case Directory():
                _check_folder(where, source.path)
                _require(where, 0.05 <= source.every_s <= 3600, "expected every_s of 0.05 to 3600")
                _require(where, 0.0 <= source.settle_s <= 3600, "expected settle_s of 0 to 3600")
                _check_input(where, source.input, source.content, inputs)
            case Mqtt():
                _check_mqtt(where, source)
                _check_input(where, source.input, source.content, inputs)
            case Video():
                _check_folder(where, source.path)
                _require(where, 0.0 <= source.fps <= 1000, "expected fps of 0 to 1000")
                spec = target(source.input, inputs)
                _require(
                    where, _is_frame(spec), f"expected a UINT8 input [1 or -1, height, width, channels], {_got(spec)}"
                )
        if not isinstance(source, Script | Mqtt) and source.results:
            _check_folder(where, source.results)


def loops(sources: Sequence[Source]) -> tuple[str, ...]:
    """The files of the module whose loops are sources."""
    return tuple(source.entry for source in sources if isinstance(source, Script) and source.entry)


def kind(source: Source) -> str:
    return str(source.__struct_config__.tag)


def target(name: str, inputs: Sequence[TensorSpec]) -> TensorSpec | None:
    """The input that a source feeds: the one named, or the only one; None where that says nothing."""
    if name:
        return next((spec for spec in inputs if spec.name == name), None)
    return inputs[0] if len(inputs) == 1 else None


def _check_mqtt(where: str, source: Mqtt) -> None:
    fits = bool(source.topic) and len(source.topic) <= MAX_TOPIC and "\0" not in source.topic
    levels = source.topic.split("/")
    fits = fits and all("+" not in level or level == "+" for level in levels)
    fits = fits and all("#" not in level or (level == "#" and n == len(levels) - 1) for n, level in enumerate(levels))
    _require(where, fits, f"expected a topic (+ and # as whole levels), got {source.topic[:80]!r}")
    fits = len(source.results) <= MAX_TOPIC and not set("+#\0") & set(source.results)
    _require(where, fits, f"expected results as a topic without + and #, got {source.results[:80]!r}")
    _require(where, source.results != source.topic, "expected another topic for results")
    fits = bool(re.fullmatch(BROKER_PATTERN, source.broker)) and 0 < int(source.broker.rpartition(":")[2]) < 65_536
    _require(where, fits, f"expected a broker as host:port, got {source.broker[:80]!r}")
    _require(where, 1 <= source.queue <= 65_536, f"expected a queue of 1 to 65536, got {source.queue}")


def _check_folder(where: str, path: str) -> None:
    pure = PurePosixPath(path)
    fits = pure.is_absolute() and ".." not in pure.parts and "\0" not in path and len(path) <= 1024
    _require(where, fits, f"expected an absolute path without .., got {path[:80]!r}")


def _check_input(where: str, name: str, content: Content, inputs: Sequence[TensorSpec]) -> None:
    names = ", ".join(spec.name for spec in inputs)
    spec = target(name, inputs)
    _require(where, not name or spec is not None, f"expected input among {names}, got {name!r}")
    if content == "json" or (content == "auto" and spec is None):
        return  # which names its inputs itself
    _require(where, spec is not None and len(inputs) == 1, f"expected one input for {content}, or json, got {names}")
    if content == "text":
        _require(where, spec is not None and spec.datatype == "BYTES", f"expected a BYTES input, {_got(spec)}")
    if content == "image":
        fits = spec is not None and (spec.datatype == "BYTES" or _is_frame(spec))
        _require(where, fits, f"expected a BYTES input or UINT8 [n, height, width, channels], {_got(spec)}")


def _is_frame(spec: TensorSpec | None) -> bool:
    return (
        spec is not None
        and spec.datatype == "UINT8"
        and len(spec.shape) == 4
        and spec.shape[0] in (1, -1)
        and spec.shape[3] in (1, 3)
    )


def _got(spec: TensorSpec | None) -> str:
    return "got none" if spec is None else f"got {spec.name} as {spec.datatype} {list(spec.shape)}"


def _require(where: str, condition: bool, text: str) -> None:
    if not condition:
        raise SourceError(f"{where}: {text}")
