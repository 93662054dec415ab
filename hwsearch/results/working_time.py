"""The working time of a search: the time of its drivers, without the pauses between them."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import pairwise


class WorkingTime:
    """The sum of all drivers' times.

    A driver's time runs from the moment it reached the candidates to its last entry in the record. The last driver's time goes
    on. Entries from before the first known driver count as one more driver, whose time begins at the first entry.
    """

    def __init__(self, starts: Sequence[datetime], entries: Sequence[datetime]) -> None:
        """Take the times when drivers reached the candidates, and the times of entries. Both rise, and at most one is empty."""
        if entries and (not starts or entries[0] < starts[0]):
            starts = [entries[0], *starts]
        self._starts = list(starts)
        self._before = [timedelta()]
        """Time worked before each driver."""
        for start, following in pairwise(starts):
            last = bisect_left(entries, following) - 1
            worked = max(timedelta(), entries[last] - start) if last >= 0 else timedelta()
            self._before.append(self._before[-1] + worked)

    def seconds(self, moment: datetime) -> float:
        """Return the seconds worked until a moment."""
        number = bisect_right(self._starts, moment) - 1
        if number < 0:
            return 0.0
        worked = self._before[number] + (moment - self._starts[number])
        if number + 1 < len(self._before):
            worked = min(worked, self._before[number + 1])
        return worked.total_seconds()
