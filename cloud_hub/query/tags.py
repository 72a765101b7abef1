"""What the tags of a device may be called, so that every query can name them. Pure; asked wherever tags are set."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from cloud_hub.errors import BadRequest
from cloud_hub.query.facts import MODULE, RESERVED, TAG

MAX_TAGS: Final = 64
_TAG: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,62}")
_VALUE: Final = re.compile(r"[^=!\s,*]{1,200}")


def check_tags(tags: Mapping[str, str]) -> None:
    """Raises BadRequest `tags-invalid` for tags that no query could name."""
    if len(tags) > MAX_TAGS:
        raise BadRequest("tags-invalid", f"tags: expected at most {MAX_TAGS}, got {len(tags)}")
    for name, value in tags.items():
        if name in RESERVED or name.startswith((MODULE, TAG)):
            raise BadRequest(
                "tags-invalid",
                f"tag {name[:63]!r}: queries mean something else by this name; choose another, such as my-{name[:20]}",
            )
        if _TAG.fullmatch(name) is None or _VALUE.fullmatch(value) is None:
            raise BadRequest(
                "tags-invalid",
                f"tag {name[:63]!r}: expected a name of letters, digits and ._/- other than the words of queries (id, "
                f"profile, ...), and a value of 1 to 200 characters without spaces or any of =!,* ; got {value[:80]!r}",
            )
