"""The device query: which devices somebody means, as one small language for API, CLI, scopes and rollouts.

`facts` says what can be asked, `grammar` and `parsing` read a text, `tree` holds what was read, `matching` applies it
to one device in memory, `sql` to all devices in the database, `tags` checks what a device may be called.
"""

from __future__ import annotations

from cloud_hub.query.facts import RESERVED, DeviceFacts, Moment
from cloud_hub.query.parsing import MAX_QUERY_CHARS, parse
from cloud_hub.query.query import EVERY_DEVICE, Query
from cloud_hub.query.tags import check_tags

__all__ = ["EVERY_DEVICE", "MAX_QUERY_CHARS", "RESERVED", "DeviceFacts", "Moment", "Query", "check_tags", "parse"]
