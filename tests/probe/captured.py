"""Trees of kernel files as text: `== PATH` begins a file, `\\0` is a zero byte, the first lines say where from."""

from __future__ import annotations

from pathlib import Path

from agent.probe.tree import Tree

TREES = Path(__file__).parent / "trees"
NAMES = sorted(path.stem for path in TREES.glob("*.txt"))


def unpack(name: str, root: Path) -> Tree:
    head, *files = (TREES / f"{name}.txt").read_text().split("\n== ")
    assert head.startswith("# "), f"{name}: expected a line that says where it is from"
    for file in files:
        path, _, text = file.partition("\n")
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text.replace("\\0", "\0") + ("\n" if text else ""))
    return Tree(root)
