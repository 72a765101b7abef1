"""Frames of a camera, a file or a pipeline as items, by OpenCV.

With `latest` a thread reads on while a prediction runs, and only the newest frame is kept: the others are dropped, and
counted. A file is then read at its own speed, as a camera would give it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from types import ModuleType

import numpy as np

from agent.backends import Array
from agent.backends.steps.pictures import opencv, resize
from agent.sources.asking import Device
from agent.sources.content import checked
from agent.sources.items import Ended, Item, Result, Writer
from agent.sources.talk import VIDEO_RESULTS
from modules.sources import Video
from modules.tensors import TensorSpec

WAIT_S = 0.25
MAX_FRAME_BYTES = 256 * 1024 * 1024
USUAL_FPS = 25.0


class VideoIntake:
    """One camera or file."""

    def __init__(self, number: int, source: Video, device: Device, spec: TensorSpec, writer: Writer) -> None:
        self.dropped = 0
        self._number = number
        self._source = source
        self._device = device
        self._spec = spec
        self._writer = writer
        self._cv2: ModuleType = opencv()
        self._capture: _Capture | None = None
        self._frames = 0
        self._pace_s = 0.0
        self._due = 0.0
        self._newest: Array | None = None
        self._end = ""
        self._news = threading.Condition()
        self._reader: threading.Thread | None = None

    def open(self) -> None:
        """Raises OSError."""
        self._capture = _Capture(self._cv2, self._source)
        fps = self._source.fps
        if not fps and self._source.latest and not self._capture.live:
            fps = self._capture.fps or USUAL_FPS
        self._pace_s, self._due = (1 / fps if fps else 0.0), time.monotonic()
        self._newest, self._end = None, ""
        if self._source.latest:
            self._reader = threading.Thread(target=self._read_on, args=(self._capture,), name="source-video-reader")
            self._reader.daemon = True
            self._reader.start()

    def take(self, most_rows: int) -> list[Item]:
        frame = self._wait_for_newest() if self._source.latest else self._next()
        if frame is None:
            return []
        self._frames += 1
        name = f"{self._frames:09d}"
        try:
            return [Item(name, {self._spec.name: self._fitted(frame)})]
        except ValueError as error:
            return [Item(name, {}, error=str(error))]

    def answered(self, item: Item, result: Result) -> None:
        if self._source.results:
            place = int(item.name) % VIDEO_RESULTS
            self._device.write(self._number, f"{place:03d}.json", self._writer.json(result))

    def settled(self, items: Sequence[Item]) -> None:
        """Frames do not come again."""

    def close(self) -> None:
        capture, self._capture = self._capture, None
        if self._reader is not None:
            if capture is not None:
                capture.stop.set()
            self._reader.join(WAIT_S * 8)
            self._reader = None
        if capture is not None:
            capture.close()

    def _next(self) -> Array | None:
        """The next one in its order, not before it is due."""
        assert self._capture is not None  # noqa: S101 - opened
        wait_s = self._due - time.monotonic()
        if wait_s > 0:
            self._capture.stop.wait(min(WAIT_S, wait_s))
            if wait_s > WAIT_S:
                return None
        self._due = max(self._due + self._pace_s, time.monotonic() - self._pace_s)
        frame = self._capture.read()
        if frame is None:
            raise Ended("the end of the file") if not self._capture.live else OSError("no frame came")
        return frame

    def _wait_for_newest(self) -> Array | None:
        with self._news:
            if self._newest is None and not self._end:
                self._news.wait(WAIT_S)
            frame, self._newest = self._newest, None
        if frame is None and self._end:
            raise Ended(self._end) if self._capture is None or not self._capture.live else OSError(self._end)
        return frame

    def _read_on(self, capture: _Capture) -> None:
        due = time.monotonic()
        while not capture.stop.is_set():
            frame = capture.read()
            with self._news:
                if frame is None:
                    self._end = "no frame came" if capture.live else "the end of the file"
                elif capture.live and self._pace_s and time.monotonic() < due:
                    self.dropped += 1  # the camera is faster than was asked for
                    continue
                else:
                    self.dropped += self._newest is not None
                    self._newest = frame
                self._news.notify()
            if frame is None:
                return
            due = max(due + self._pace_s, time.monotonic() - self._pace_s)
            if not capture.live:
                capture.stop.wait(max(0.0, due - time.monotonic()))

    def _fitted(self, frame: Array) -> Array:
        """As the input wants it. Raises ValueError."""
        channels = self._spec.shape[3]
        if frame.ndim == 2:
            frame = frame[:, :, np.newaxis]
        if channels == 1 and frame.shape[2] == 3:
            frame = self._cv2.cvtColor(frame, self._cv2.COLOR_BGR2GRAY)[:, :, np.newaxis]
        elif self._source.colour == "rgb" and frame.shape[2] == 3:
            frame = self._cv2.cvtColor(frame, self._cv2.COLOR_BGR2RGB)
        high, wide = (
            have if want == -1 else want for want, have in zip(self._spec.shape[1:3], frame.shape, strict=False)
        )
        return checked(self._spec, resize(np.asarray(frame)[np.newaxis], high, wide, "bilinear"))


class _Capture:
    """OpenCV's own, with the end of a file told from a camera that fails."""

    def __init__(self, cv2: ModuleType, source: Video) -> None:
        self.stop = threading.Event()
        self.live = bool(source.pipeline) or source.path.startswith("/dev/")
        self._cv2 = cv2
        self._repeat = source.repeat
        self._first = True
        if source.pipeline:
            # No helper can be started in here, so the registry of plug-ins is read in this process.
            os.environ.setdefault("GST_REGISTRY_FORK", "no")
            self._capture = cv2.VideoCapture(source.pipeline, cv2.CAP_GSTREAMER)
        elif self.live:
            self._capture = cv2.VideoCapture(source.path, cv2.CAP_V4L2)
        else:
            os.stat(source.path)
            self._capture = cv2.VideoCapture(source.path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
        if not self._capture.isOpened():
            self._capture.release()
            raise OSError(f"{source.pipeline or source.path}: OpenCV cannot open it")

    @property
    def fps(self) -> float:
        fps = float(self._capture.get(self._cv2.CAP_PROP_FPS))
        return fps if 0.0 < fps <= 1000.0 else 0.0

    def read(self) -> Array | None:
        """None at the end, or when the camera gives none."""
        read, frame = self._capture.read()
        if not read and self._repeat and not self.live and not self._first:
            self._capture.set(self._cv2.CAP_PROP_POS_FRAMES, 0)
            read, frame = self._capture.read()
        self._first = False
        if not read or frame is None or frame.nbytes > MAX_FRAME_BYTES:
            return None
        return np.asarray(frame)

    def close(self) -> None:
        self._capture.release()
