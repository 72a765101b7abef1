"""Manifests: canonical bytes, and nothing that this version does not understand."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modules.bundle import Chunk, FileEntry, check_path, sha256_hex
from modules.errors import ChunkError, ManifestError, TargetError, TensorError
from modules.manifest import Health, Lineage, Manifest, SamplingPolicy, decode_manifest, encode_manifest
from modules.targets import (
    DirectorCustom,
    ImageCustom,
    TargetPath,
    check_device_id,
    director_custom,
    image_custom,
    to_custom,
)
from modules.tensors import GoldenCase, GoldenSet, Tensor, TensorSpec, decode_golden, encode_golden

body = b"model bytes"
entry = FileEntry("model.onnx", len(body), sha256_hex(body), (Chunk(sha256_hex(body), len(body)),))
manifest = Manifest(
    name="digits",
    version=1,
    profile="generic-x86_64",
    lineage=Lineage("digits", 1),
    inputs=(TensorSpec("x", "FP32", (-1, 64)),),
    outputs=(TensorSpec("label", "INT64", (-1,)),),
    files=(entry,),
)


def test_a_manifest_survives_and_is_canonical() -> None:
    data = encode_manifest(manifest)
    assert decode_manifest(data) == manifest
    assert encode_manifest(decode_manifest(data)) == data


def test_what_older_agents_do_not_know_stands_in_a_manifest_only_where_it_is_said() -> None:
    assert b"factor" not in encode_manifest(manifest)
    assert manifest.health.agent_version == ""
    said = msgspec.structs.replace(manifest, health=Health(latency_factor=4.0))
    assert b'"latency_factor":4.0' in encode_manifest(said)
    assert decode_manifest(encode_manifest(said)) == said
    assert said.health.agent_version == "0.2.0"


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_not_a_manifest(data: bytes) -> None:
    with pytest.raises(ManifestError, match="manifest"):
        decode_manifest(data)


@pytest.mark.parametrize(
    ("spoiled", "words"),
    [
        ({"name": "../etc"}, "manifest.name"),
        ({"version": 0}, "at least 1"),
        ({"format": 2}, "expected format 1"),
        ({"colour": "blue"}, "unknown field"),
        ({"requires": {"quantum": True}}, "unknown field"),
        ({"reference": "missing.json"}, "missing.json"),
        ({"files": [msgspec.to_builtins(entry)] * 2}, "stands twice"),
        ({"sampling": {"rate": 1.5}}, "from 0 to 1"),
        ({"health": {"latency_factor": 0.5}}, "health.latency_factor: expected 0 .not compared. or 1 to 1000, got 0.5"),
        ({"inputs": [{"name": "x", "datatype": "FP8", "shape": [1]}]}, "FP8"),
    ],
)
def test_a_manifest_that_does_not_fit_is_refused_by_field(spoiled: dict[str, object], words: str) -> None:
    fields = msgspec.to_builtins(manifest) | spoiled
    with pytest.raises(ManifestError, match=words):
        decode_manifest(msgspec.json.encode(fields))


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../x",
        "a/../b",
        "a//b",
        "a\\b",
        "a\x00b",
        ".hidden",
        "a/./b",
        "",
        "x" * 300,
        "a/",
        "a\n",
        "é.onnx",
    ],
)
def test_paths_that_could_leave_the_slot_are_refused(path: str) -> None:
    with pytest.raises(ChunkError, match="plain relative path"):
        check_path(path)


def test_chunks_must_add_up_to_the_file() -> None:
    with pytest.raises(ChunkError, match="in all"):
        FileEntry("a.bin", 5, "0" * 64, (Chunk("0" * 64, 4),))
    with pytest.raises(ChunkError, match="chunks of 1"):
        FileEntry("a.bin", 2**30, "0" * 64, (Chunk("0" * 64, 2**30),))
    with pytest.raises(ChunkError, match="64 lower-case"):
        FileEntry("a.bin", 0, "../../etc/passwd", ())


def test_policies_are_bounded() -> None:
    with pytest.raises(ManifestError, match="window_s"):
        SamplingPolicy(window_s=0.0)


def test_target_paths_have_one_form() -> None:
    path = TargetPath("acme", "digits", 3, "generic-x86_64")
    assert TargetPath.parse(str(path)) == path
    for text in ("modules/acme/digits/03/p.json", "modules/a/b/1/../x.json", "modules/a/b/1/p.json/x", "x"):
        with pytest.raises(TargetError, match="expected"):
            TargetPath.parse(text)


def test_custom_fields_survive_and_missing_ones_are_refused() -> None:
    image = ImageCustom(("generic-x86_64",), 4)
    director = DirectorCustom("generic-x86_64", 4, "r-1", sampling=SamplingPolicy(rate=0.5), config={"a": 1})
    assert image_custom(to_custom(image)) == image
    assert director_custom(to_custom(director)) == director
    for broken in (None, {}, {"release_counter": "4"}, to_custom(director) | {"mode": "dance"}):
        with pytest.raises(TargetError, match="target"):
            director_custom(broken)


@pytest.mark.parametrize("device", ["", "a", "Cam-1", "_hub", "a/b", "+", "#", "cam\n1", "cam-1\n", "x" * 64, "-ab"])
def test_ids_that_no_certificate_may_hold_are_refused(device: str) -> None:
    with pytest.raises(TargetError, match="device id"):
        check_device_id(device)


def test_golden_sets_survive_and_lying_tensors_do_not() -> None:
    tensor = Tensor("x", "INT8", (2, 2), b"abcd")
    golden = GoldenSet((GoldenCase((tensor,), (tensor,)),))
    assert decode_golden(encode_golden(golden)) == golden
    with pytest.raises(TensorError, match="golden"):
        decode_golden(b"junk")
    with pytest.raises(TensorError, match="expected 8 bytes"):
        Tensor("x", "FP32", (2,), b"abc")
