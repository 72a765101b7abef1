"""Files in which people write down what they want."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloud_hub.operator.documents import MAX_BYTES, read_document
from cloud_hub.operator.errors import FileError


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("plan.yaml", "groups: ['1', rest]\nrate: {per_minute: 5}\n"),
        ("plan.YML", 'groups: ["1", "rest"]\nrate:\n  per_minute: 5\n'),
        ("plan", "groups: ['1', rest]\nrate: {per_minute: 5}\n"),
        ("plan.json", '{"groups": ["1", "rest"], "rate": {"per_minute": 5}}'),
        ("plan.toml", 'groups = ["1", "rest"]\nrate = { per_minute = 5 }\n'),
    ],
)
def test_a_document_is_read_by_its_ending(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    assert read_document(tmp_path / name) == {"groups": ["1", "rest"], "rate": {"per_minute": 5}}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.yaml", b"groups: [", "not to be read as YAML"),
        ("a.yaml", b"!!python/object/apply:os.system ['true']", "not to be read as YAML"),
        ("a.yaml", b"- one\n- two\n", "expected names with values, got list"),
        ("a.yaml", b"1: one\n", "expected names with values"),
        ("a.yaml", b"", "expected names with values, got NoneType"),
        ("a.json", b"{'one': 1}", "not to be read as JSON"),
        ("a.json", b"[" * 100_000, "not to be read as JSON"),
        ("a.toml", b"groups =", "not to be read as TOML"),
        ("a.yaml", b"\xff\xfe\x00", "cannot be read"),
        ("a.yaml", b"#" * (MAX_BYTES + 1), "expected at most"),
    ],
)
def test_what_is_no_document_is_refused_by_name(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FileError, match=words) as caught:
        read_document(tmp_path / name)
    assert str(tmp_path / name) in caught.value.message


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"none\.yaml: cannot be read"):
        read_document(tmp_path / "none.yaml")
