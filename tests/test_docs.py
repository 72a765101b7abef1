"""The documentation against the code: reference pages are what the code gives, commands have help and an example,
links lead somewhere, every error key has its line.
"""

import importlib
import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

PAGES = ("cli-mooring.md", "cli-mooring-hub.md", "cli-mooring-agent.md", "api.md", "settings.md", "errors.md")
_LINK = re.compile(r"(?<!!)\[[^\]\n]*\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"`[^`\n]*`")


@pytest.fixture(scope="module")
def generator(repository: Path) -> Iterator[ModuleType]:
    """The package behind scripts/generate-reference."""
    sys.path.insert(0, str(repository / "scripts"))
    yield importlib.import_module("reference_pages")
    sys.path.remove(str(repository / "scripts"))


@pytest.fixture(scope="module")
def generated(generator: ModuleType, repository: Path) -> Mapping[str, str]:
    texts: Mapping[str, str] = generator.pages(repository)
    return texts


@pytest.fixture(scope="module", params=["operator", "hub", "agent"])
def program(request: pytest.FixtureRequest, generator: ModuleType) -> Any:
    return getattr(generator.commands, request.param)()


@pytest.mark.parametrize("name", PAGES)
def test_a_reference_page_is_what_the_code_gives(name: str, generated: Mapping[str, str], repository: Path) -> None:
    committed = repository / "docs" / "reference" / name
    same = committed.is_file() and committed.read_text() == generated[name]
    assert same, f"docs/reference/{name} differs from the code: run scripts/generate-reference"


def test_the_generator_writes_the_pages_that_are_tested(generated: Mapping[str, str]) -> None:
    assert sorted(generated) == sorted(PAGES)


def test_every_command_has_help_and_an_example_of_itself(program: Any) -> None:
    bare = [one.name for one in program.commands if not one.help]
    unshown = [one.name for one in program.commands if not any(e.startswith(one.name) for e in one.examples)]
    assert program.commands
    assert (bare, unshown) == ([], [])


def test_relative_links_lead_to_files(repository: Path) -> None:
    documents = [repository / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
    documents += sorted((repository / "docs").rglob("*.md"))
    broken = [
        f"{document.relative_to(repository)}: {target}"
        for document in documents
        for target in _links(document.read_text())
        if not _leads_somewhere(document, target)
    ]
    assert broken == []


def test_every_error_key_has_a_line(generator: ModuleType, repository: Path) -> None:
    page = (repository / "docs" / "reference" / "errors.md").read_text()
    keys = {use.key for use in generator.errors.find(repository)}
    assert "model-not-found" in keys
    assert sorted(key for key in keys if f"\n| `{key}` |" not in page) == []


def test_every_numbered_requirement_is_given_once(repository: Path) -> None:
    given: dict[str, int] = {}
    for page in (repository / "docs" / "understand").glob("*.md"):
        for number in re.findall(r"^- \[([a-z]+-\d+\.\d+)\] ", page.read_text(), re.MULTILINE):
            assert number.startswith(page.stem + "-"), f"{number} stands in {page.name}"
            given[number] = given.get(number, 0) + 1
    assert given
    assert [number for number, times in given.items() if times > 1] == []


def test_every_decision_is_listed_and_has_its_parts(repository: Path) -> None:
    folder = repository / "docs" / "decisions"
    index = (folder / "README.md").read_text()
    for decision in sorted(folder.glob("[0-9]*.md")):
        text = decision.read_text()
        assert f"]({decision.name})" in index, f"{decision.name} is not in the list of decisions"
        for part in ("\nDate: ", "\nStatus: ", "\n## Question\n", "\n## Options\n", "\n## Outcome\n"):
            assert part in text, f"{decision.name}: expected {part.strip()}"


def _links(text: str) -> list[str]:
    """Targets of links to files, code left out."""
    plain = _CODE.sub("", _FENCE.sub("", text))
    return [target for target in _LINK.findall(plain) if not re.match(r"[a-z]+:", target)]


def _leads_somewhere(document: Path, target: str) -> bool:
    """Whether the file is there, and in it the heading when the link names one."""
    path, _, heading = target.partition("#")
    file = document.parent / path if path else document
    if not file.exists():
        return False
    return not heading or heading in _headings(file)


def _headings(file: Path) -> set[str]:
    """Anchors of a page's headings, as code hosts make them: lower case, blanks to hyphens, the rest left out."""
    titles = re.findall(r"^#+ (.+)$", _FENCE.sub("", file.read_text()), re.MULTILINE)
    return {re.sub(r"[^a-z0-9_ -]", "", title.lower()).replace(" ", "-") for title in titles}
