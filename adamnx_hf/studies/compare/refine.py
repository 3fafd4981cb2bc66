"""Learning rates that a sweep finds by itself: wide steps until the best lies inside, then its neighbours."""

from __future__ import annotations

import math
from collections.abc import Mapping

__all__ = ["AUTO", "FIRST_PLACES", "choose_next_places", "write_rate"]

#: The word that stands for values in `--sweep learning_rate=auto`.
AUTO = "auto"

# A place n stands for the recipe's rate times 2^(n/2): neighbours are ×1.41 apart, those tried first ×2.
FIRST_PLACES = (-4, -2, 0, 2, 4)


def write_rate(start: float, place: int) -> str:
    """Returns the learning rate at a place as text, with three digits."""
    return f"{start * 2 ** (place / 2):.3g}"


def choose_next_places(means: Mapping[int, float]) -> list[int]:
    """Returns the places to try next; none where the best has both its neighbours.

    Args:
        means: of what has been tried, by place, of which lower ones are better; inf where a run diverged.
    """
    best = min(means, key=lambda place: (means[place], place))
    if not math.isfinite(means[best]) or best == min(means):
        return [min(means) - 2]
    if best == max(means):
        return [best + 2]
    return [place for place in (best - 1, best + 1) if place not in means]
