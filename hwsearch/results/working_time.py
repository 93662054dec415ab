"""The time that a search was worked at: that of its drivers, without the pauses between them."""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from datetime import datetime, timedelta
from itertools import pairwise


class WorkingTime:
    """Each driver's time runs from when it came to candidates to its last entry in the record, the last one's goes on.

    What was entered before the first driver that is known counts as of one driver, from the first entry on.
    """

    def __init__(self, starts: Sequence[datetime], entries: Sequence[datetime]) -> None:
        """Take in when drivers came to candidates and when something was entered, both rising; at least one of them is given."""
        if entries and (not starts or entries[0] < starts[0]):
            starts = [entries[0], *starts]
        self._starts = list(starts)
        self._before = [timedelta()]
        """Worked before each driver."""
        for start, following in pairwise(starts):
            last = bisect_left(entries, following) - 1
            worked = max(timedelta(), entries[last] - start) if last >= 0 else timedelta()
            self._before.append(self._before[-1] + worked)

    def seconds(self, moment: datetime) -> float:
        """Worked until a moment."""
        number = bisect_right(self._starts, moment) - 1
        if number < 0:
            return 0.0
        worked = self._before[number] + (moment - self._starts[number])
        if number + 1 < len(self._before):
            worked = min(worked, self._before[number + 1])
        return worked.total_seconds()
