"""What may stand in a committed file: no download addresses, no paths of one machine; lock lines have hashes."""

import re
import subprocess
from pathlib import Path

import pytest

# Put together from halves, so that this file does not find itself.
REGISTRY_HOSTS = ("pypi" + ".org", "python" + "hosted.org", "conda.ana" + "conda.org", "registry.npm" + "js.org")
FORBIDDEN = {
    "a package registry": re.compile("|".join(re.escape(host) for host in REGISTRY_HOSTS)),
    "a download address": re.compile(r"https?://[^\s\"'<>)]+\.(?:whl|zip|tgz|tar|gz|xz|bz2|deb|rpm|onnx|tflite)\b"),
    "an installer option naming a source": re.compile(r"--(?:extra-)?index" + r"-url[ =]\S|--find" + r"-links[ =]\S"),
    "a path of one machine": re.compile(r"(?<![\w.$}/-])/(?:ro" + r"ot|ho" + r"me/[a-z]\w*|Us" + r"ers/\w+)/"),
}
PINNED = re.compile(r"^[A-Za-z0-9._-]+(?:\[[a-z0-9,-]+\])?==[^\s;]+")
HASH = re.compile(r"^    --hash=sha256:[0-9a-f]{64}(?: \\)?$")


def committed_texts(repository: Path) -> dict[str, str]:
    """Every committed file that is text, by its path. Files deleted but not yet committed are left out."""
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=repository, capture_output=True, timeout=30, check=True)
    texts: dict[str, str] = {}
    for name in listing.stdout.decode().split("\0"):
        file = repository / name
        if name and file.is_file():
            content = file.read_bytes()
            if b"\0" not in content:
                texts[name] = content.decode("utf-8")
    return texts


@pytest.mark.parametrize("what", sorted(FORBIDDEN))
def test_committed_files_are_free_of(what: str, repository: Path) -> None:
    found = [
        f"{name}:{number}: {line.strip()[:120]}"
        for name, text in committed_texts(repository).items()
        for number, line in enumerate(text.splitlines(), 1)
        if FORBIDDEN[what].search(line)
    ]
    assert found == []


@pytest.mark.parametrize("name", ["build.lock", "dev.lock"])
def test_every_requirement_in_a_lock_is_pinned_and_has_hashes(name: str, repository: Path) -> None:
    hashes: dict[str, int] = {}
    current = ""
    for line in (repository / "requirements" / name).read_text().splitlines():
        if HASH.match(line):
            hashes[current] += 1
        elif line.strip() and not line.lstrip().startswith("#"):
            assert PINNED.match(line), f"expected a pinned requirement, got: {line}"
            current = line.split(" ")[0]
            hashes[current] = 0
    assert hashes
    assert [requirement for requirement, count in hashes.items() if count == 0] == []
