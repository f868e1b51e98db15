"""Why a step has not everybody in it, as its planner noted it; it judges nobody.

A planner does not look at each one it leaves out: it stops at the first for whom there is no room
left. So most of the reasons are of a group, and only those looked at have one of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.core.decision import Reason
from engine.core.request import Request


class StepReasons:
    """The reasons of one step; None where nobody of that group was left out.

    `waiting` is why nobody else was started, and `head` the one looked at last, if any was.
    `due` and `spare` are why decodes were left out that had to run now, or had not; `prompts` why
    started prompts were, that nobody looked at. `single` are reasons of requests looked at.
    """

    __slots__ = ("_spare", "due", "head", "prompts", "single", "spare", "waiting")

    def __init__(self) -> None:
        self.waiting: Reason | None = None
        self.head: Request | None = None
        self.due: Reason | None = None
        self.spare: Reason | None = None
        self.prompts: Reason | None = None
        self.single: dict[Request, Reason] = {}
        self._spare: Sequence[Request] = ()

    def clear(self) -> None:
        """Another step is planned."""
        self.waiting = self.head = self.due = self.spare = self.prompts = None
        if self.single:
            self.single.clear()

    def split(self, spare: Sequence[Request]) -> None:
        """These decodes need not run now; all others have to."""
        self._spare = spare

    def stop(self, request: Request, reason: Reason) -> bool:
        """The first in line is not started, and so nobody else; False, for whoever says so."""
        self.head, self.waiting = request, reason
        return False

    def leave_out(self, reason: Reason, *, is_due: bool) -> None:
        """The decodes of a group that have no row by now get none."""
        if is_due:
            self.due = reason
        else:
            self.spare = reason

    @property
    def group(self) -> tuple[Reason | None, Reason | None, Reason | None]:
        """The reasons that hold for all of a group."""
        return self.due, self.spare, self.prompts

    @property
    def has_any(self) -> bool:
        """True where somebody who runs may be in no row; whoever is has a reason."""
        return bool(self.due or self.spare or self.prompts or self.single)

    @property
    def is_plain(self) -> bool:
        """True where no decode that had to run was left out, and nobody has a reason of his own."""
        return self.due is None and not self.single

    def of(self, requests: Sequence[Request]) -> list[tuple[Reason | None, bool]]:
        """Return the reason of each of these running ones that is in no row, and if it was due."""
        spare = frozenset(self._spare) if not self.is_plain else None
        found: list[tuple[Reason | None, bool]] = []
        for request in requests:
            own = self.single.get(request)
            if not request.is_decoding:
                found.append((own or self.prompts, True))
                continue
            is_due = spare is not None and request not in spare
            found.append((own or (self.due if is_due else self.spare or self.due), is_due))
        return found
