"""The verdicts of a comparison: what a family of differences allows to be said, and no more."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from adamnx_hf.studies.compare.sweep import HeadRoom
from adamnx_hf.studies.paired import Difference, add_errors, adjust_by_holm, student_tail

__all__ = ["LEVEL", "Case", "Side", "judge_family"]

#: The probability that a family of verdicts may have of holding a wrong one.
LEVEL = 0.05


@dataclasses.dataclass(frozen=True)
class Side:
    """One of the two contenders of a difference."""

    label: str
    swept: bool = False
    """Whether a sweep has chosen values for it."""
    head_room: HeadRoom | None = None
    """What the sweep's grid leaves it; None where that is not known."""
    unknown_because: str = ""
    """Why it is not known, such as "its best learning_rate lies at the edge of the sweep"."""
    diverged: int = 0
    """How many of its runs did."""


@dataclasses.dataclass(frozen=True)
class Case:
    """A difference of a family that is judged together."""

    first: Side
    second: Side
    best: str
    """`"min"` or `"max"`, the best that the metric can be."""
    difference: Difference | None
    """The first minus the second, paired by seed; None where a run diverged."""
    seeds: int

    @property
    def loss(self) -> float:
        """How much worse the first is than the second: negative where it is better."""
        assert self.difference is not None
        return self.difference.mean if self.best == "min" else -self.difference.mean

    @property
    def loser(self) -> Side:
        """The side whose values are worse."""
        return self.first if self.loss > 0 else self.second


def judge_family(cases: Sequence[Case], smallest_effect: float | None = None) -> list[dict[str, Any]]:
    """Judges the differences of a family, so that none of its verdicts is wrong in 19 of 20 families.

    The first is "better" or "worse" only where the difference is at least `smallest_effect`, and more than
    chance and what the sweep's grid leaves to the other explain. The two are "no more than `smallest_effect`
    apart" where that is shown, also for what the grid leaves to either. Both are tests with Holm's correction
    over the family. Anything else is "not decided", with its reason.

    Args:
        cases: the family.
        smallest_effect: the smallest difference that matters, in units of the metric. None: any does, and no
            two are called equivalent.

    Returns:
        For each case, with None for what is not known: `p`, of the difference as it was measured; `p_better`,
        also for what the grid leaves; `p_equivalence`; the latter two with Holm's correction; `verdict`.
    """
    p_values = [case.difference.p_value() if case.difference else None for case in cases]
    by_chance = adjust_by_holm(p_values)
    better = adjust_by_holm([_test_better(case) for case in cases])
    alike = adjust_by_holm([_test_equivalence(case, smallest_effect) for case in cases])
    return [
        {
            "p": p_values[i],
            "p_better": better[i],
            "p_equivalence": alike[i],
            "verdict": _say(case, by_chance[i], better[i], alike[i], smallest_effect),
        }
        for i, case in enumerate(cases)
    ]


def _test_better(case: Case) -> float | None:
    """Returns the p value that the better one is better also where the other is at its best values.

    Two-sided, as nobody has said beforehand which one that is.
    """
    if case.difference is None or case.difference.error is None:
        return None
    if not case.loser.swept:
        return case.difference.p_value()
    if (room := case.loser.head_room) is None:
        return None
    error, freedom = add_errors(
        (case.difference.error, case.difference.freedom), (room.error or 0.0, room.freedom)
    )
    return min(1.0, 2 * student_tail((abs(case.loss) - room.estimate) / error, freedom))


def _test_equivalence(case: Case, bound: float | None) -> float | None:
    """Returns the p value that neither is more than `bound` better, also where both are at their best."""
    if bound is None or case.difference is None or case.difference.error is None:
        return None
    rooms = []
    for side in (case.first, case.second):
        if side.swept and side.head_room is None:
            return None
        rooms.append(side.head_room or HeadRoom(0.0, None))
    most = max(abs(case.loss), abs(case.loss - rooms[0].estimate), abs(case.loss + rooms[1].estimate))
    errors = [(room.error or 0.0, room.freedom) for room in rooms]
    error, freedom = add_errors((case.difference.error, case.difference.freedom), *errors)
    return student_tail((bound - most) / error, freedom)


def _say(
    case: Case, by_chance: float | None, better: float | None, alike: float | None, smallest: float | None
) -> str:
    """Says the verdict.

    Args:
        case: see :class:`Case`.
        by_chance, better, alike: the p values, with Holm's correction.
        smallest: the smallest difference that matters.
    """
    if by_chance is None:
        return _say_why_unknown(case)
    if alike is not None and alike < LEVEL:
        return f"no more than {smallest:g} apart"
    if by_chance >= LEVEL:
        return f"not decided: so much may be chance (p = {by_chance:.2g})"
    size, loser = f"{abs(case.loss):.2g}", case.loser
    if abs(case.loss) < (smallest or 0):
        return f"not decided: {size} is below the smallest effect of interest, {smallest:g}"
    if loser.swept and loser.head_room is None:
        return f"not decided: {loser.label}: {loser.unknown_because}"
    if loser.head_room and (better is None or better >= LEVEL):
        error = loser.head_room.error
        spread = "" if error is None else f" ± {error:.2g}"
        room = f"{loser.head_room.estimate:.2g}{spread}"
        return f"not decided: the sweep's grid leaves {loser.label} about {room}; the difference is {size}"
    word = "worse" if loser is case.first else "better"
    return f"{case.first.label} is {word} than {case.second.label} here"


def _say_why_unknown(case: Case) -> str:
    if case.difference is None:
        told = " and ".join(
            f"{side.label} in {side.diverged} of {case.seeds}"
            for side in (case.first, case.second)
            if side.diverged
        )
        return f"no number (diverged?): {told}; not compared"
    if case.seeds == 1:
        return "one seed: cannot be judged"
    return "the same in every seed" if case.difference.mean == 0 else "cannot be judged: the same each time"
