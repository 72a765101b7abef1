"""The pages of docs/reference, made from the code itself. Run by `scripts/generate-reference`, checked by a test.

Every function here gives the same text for the same code: nothing depends on time, machine or order of import.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from reference_pages import api, commands, errors, settings

NOTE = "<!-- Made from the code by scripts/generate-reference; do not edit. -->\n"


def pages(root: Path) -> Mapping[str, str]:
    """Every page by its file name."""
    texts = {
        "cli-mooring.md": commands.page(commands.operator()),
        "cli-mooring-hub.md": commands.page(commands.hub()),
        "cli-mooring-agent.md": commands.page(commands.agent()),
        "api.md": api.page(),
        "settings.md": settings.page(),
        "errors.md": errors.page(errors.find(root)),
    }
    return {name: NOTE + text for name, text in texts.items()}
