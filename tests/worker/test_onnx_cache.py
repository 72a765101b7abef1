"""The optimised copy that stays on the device: made once, believed only whole, the same answers."""

import hashlib
import json
import os
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from agent.backends.onnx import OnnxBackend
from agent.backends.onnx_cache import MODEL, SEAL, WEIGHTS
from agent.backends.place import Place
from modules.runtime import Stage
from support.patches import onnx_with_external_data
from worker.conftest import INPUTS, OUTPUTS, Digits

STAGE = Stage("digits", INPUTS, OUTPUTS, "onnx", "model.onnx")


@pytest.fixture
def here(tmp_path: Path, digits: Digits) -> Place:
    (tmp_path / "slot").mkdir()
    (tmp_path / "slot" / "model.onnx").write_bytes(digits.onnx)
    (tmp_path / "cache").mkdir()
    return Place(tmp_path / "slot", frozenset({"model.onnx"}), cache=tmp_path / "cache")


def answers(here: Place, digits: Digits) -> None:
    backend = OnnxBackend()
    backend.load(STAGE, here)
    given = backend.run({"x": digits.x[:20]})
    np.testing.assert_array_equal(given["label"], digits.labels[:20])
    np.testing.assert_allclose(given["probabilities"], digits.probabilities[:20], rtol=1e-4, atol=1e-5)


def copies(here: Place) -> list[Path]:
    assert here.cache is not None
    return sorted((here.cache / "optimised").iterdir())


def test_the_second_load_takes_the_copy_of_the_first(here: Place, digits: Digits) -> None:
    answers(here, digits)
    (made,) = copies(here)
    assert sorted(path.name for path in made.iterdir()) == [MODEL, SEAL, WEIGHTS]
    born = (made / SEAL).stat().st_ino
    answers(here, digits)
    assert copies(here) == [made]
    assert (made / SEAL).stat().st_ino == born


def test_the_copy_is_what_is_loaded(here: Place, digits: Digits, monkeypatch: pytest.MonkeyPatch) -> None:
    answers(here, digits)
    opened: list[str] = []
    original = onnxruntime.InferenceSession

    def noted(path: str, *arguments: object, **named: object) -> object:
        opened.append(path)
        return original(path, *arguments, **named)

    monkeypatch.setattr(onnxruntime, "InferenceSession", noted)
    answers(here, digits)
    assert opened == [str(copies(here)[0] / MODEL)]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(bytes(data))


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("name", [MODEL, WEIGHTS, SEAL])
@pytest.mark.parametrize("spoil", [cut, flip, empty, Path.unlink], ids=["cut", "flipped", "empty", "gone"])
def test_a_damaged_copy_is_never_believed_and_made_anew(
    here: Place, digits: Digits, name: str, spoil: Callable[[Path], None]
) -> None:
    answers(here, digits)
    (made,) = copies(here)
    whole = {path.name: path.read_bytes() for path in made.iterdir()}
    if name == SEAL and spoil is cut:
        empty(made / name)
    else:
        spoil(made / name)
    answers(here, digits)
    assert copies(here) == [made]
    assert {path.name: path.read_bytes() for path in made.iterdir()} == whole


def test_a_copy_that_names_a_file_elsewhere_is_removed(here: Place, digits: Digits) -> None:
    answers(here, digits)
    (made,) = copies(here)
    onnx_with_external_data(made, "stolen", {"w": np.zeros((4, 4), np.float32)})
    hostile = (made / "stolen.onnx").read_bytes()
    (made / MODEL).write_bytes(hostile)
    seal = json.loads((made / SEAL).read_bytes())
    seal[MODEL] = {"size": len(hostile), "sha256": hashlib.sha256(hostile).hexdigest()}
    (made / SEAL).write_text(json.dumps(seal))
    answers(here, digits)
    assert (made / MODEL).read_bytes() != hostile
    assert not (made / "stolen.onnx").exists()


def test_what_a_killed_worker_left_is_cleaned_up(here: Place, digits: Digits) -> None:
    assert here.cache is not None
    left = here.cache / "optimised" / ".new-abc"
    left.mkdir(parents=True)
    (left / MODEL).write_bytes(b"half")
    answers(here, digits)
    assert not left.exists()
    assert len(copies(here)) == 1


def test_another_processor_or_model_has_a_copy_of_its_own(here: Place, digits: Digits, tmp_path: Path) -> None:
    answers(here, digits)
    (tmp_path / "other/proc").mkdir(parents=True)
    (tmp_path / "other/proc/cpuinfo").write_text("flags : fpu\n")
    answers(Place(here.slot, here.signed, cache=here.cache, root=tmp_path / "other"), digits)
    assert len(copies(here)) == 2


def test_without_room_the_model_is_loaded_as_it_is(here: Place, digits: Digits) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        answers(here, digits)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert copies(here) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written_costs_nothing_but_the_copy(here: Place, digits: Digits) -> None:
    assert here.cache is not None
    here.cache.chmod(0o500)
    answers(here, digits)
    here.cache.chmod(0o700)
    assert list(here.cache.iterdir()) == []


def test_the_cache_that_is_gone_costs_nothing_but_the_copy(here: Place, digits: Digits) -> None:
    assert here.cache is not None
    here.cache.rmdir()
    answers(here, digits)
