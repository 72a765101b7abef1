"""The cheapest way to a file: what is here costs nothing, then a patch or blocks, whichever is fewer bytes. Pure.

Called by `agent.transfer.fetch`.
"""

from __future__ import annotations

from collections.abc import Collection

from modules.messages import PatchOffer, Way

# A patch must be rebuilt and read back, and may fail: it has to save more than this share of the bytes.
PATCH_MOST_SHARE = 0.8
# Below this a patch saves less than asking for it costs.
PATCH_LEAST_BYTES = 64 * 1024


def worth_asking(missing: int) -> bool:
    """Whether a patch could save anything, where so many bytes would have to come as blocks."""
    return missing >= PATCH_LEAST_BYTES


def best_patch(missing: int, way: Way | None, held: Collection[str], spoilt: Collection[str]) -> PatchOffer | None:
    """The smallest patch from a file that is held, where it is cheaper than the `missing` bytes; else None.

    `held` and `spoilt` are SHA-256 digests: of whole files here, and of patches that have failed before.
    """
    if way is None or not worth_asking(missing):
        return None
    able = [offer for offer in way.patches if offer.base in held and offer.sha256 not in spoilt and offer.size > 0]
    best = min(able, key=lambda offer: offer.size, default=None)
    return best if best is not None and best.size < PATCH_MOST_SHARE * missing else None
