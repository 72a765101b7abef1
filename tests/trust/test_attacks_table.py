"""docs/understand/attacks.md is complete and names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def rows(repository: Path) -> dict[int, str]:
    text = (repository / "docs" / "understand" / "attacks.md").read_text()
    found = re.findall(r"^\| (\d+) \|(.*)\|$", text, re.MULTILINE)
    assert len(found) == len({number for number, _ in found})
    return {int(number): rest for number, rest in found}


def test_every_attack_has_its_row(rows: dict[int, str]) -> None:
    assert sorted(rows) == list(range(1, 76))


def test_every_row_of_the_device_names_a_test_or_says_why_not(rows: dict[int, str]) -> None:
    assert [number for number in range(1, 50) if "`test_" not in rows[number] and "none: " not in rows[number]] == []


def test_every_test_that_is_named_exists(rows: dict[int, str], repository: Path) -> None:
    missing = []
    for number, rest in rows.items():
        for cell in rest.split(";"):
            files = re.findall(r"`(tests/[a-z_/]+\.py)`", cell)
            for name in re.findall(r"`(test_[a-z0-9_]+)`", cell):
                defined = [file for file in files if f"def {name}(" in (repository / file).read_text()]
                if not defined:
                    missing.append((number, name))
    assert missing == []
