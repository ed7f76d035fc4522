"""What a search asks its prediction for, so that what is measured comes out at the limit."""

__all__ = ["Aims"]

_EXACT = 1e-4  # what is counted is near enough so far below the limit


class Aims:
    """What the prediction is asked for, so that the measurement comes out at the limit: false position on (aim, measured / limit).

    Args:
        start: the predicted cost of all channels.
        least: that of the smallest widths.
        slack: how far below the limit to aim, and half of how far below it is near enough.
    """

    def __init__(self, start: float, least: float, slack: float) -> None:
        self.start, self.least, self.slack = start, least, slack
        self.next = start
        self.seen: dict[float, float] = {}

    def near(self, ratio: float) -> bool:
        """Whether that is near enough to the limit, and below it."""
        return 1 - 2 * self.slack - _EXACT <= ratio <= 1

    def learn(self, ratio: float) -> bool:
        """Take in what came of `next`; False if there is nothing left to try."""
        if self.next in self.seen:
            return False
        self.seen[self.next] = ratio
        target = 1 - self.slack
        if self.near(ratio) or (self.next <= self.least and ratio > 1):
            return False
        if self.next >= self.start and ratio <= 1:
            return False  # everything fits
        above = min((aim for aim, found in self.seen.items() if found > target), default=None)
        below = max((aim for aim, found in self.seen.items() if found <= target), default=None)
        if above is None or below is None or above <= below:
            # twice as far each time, so that it gets below also where what is predicted hardly moves what is measured
            overshoot = min(0.5, 0.001 * 2 ** len(self.seen)) if ratio > target else 0.0
            aim = self.next * target / ratio * (1 - overshoot)
        else:
            share = (target - self.seen[below]) / max(self.seen[above] - self.seen[below], 1e-12)
            aim = below + (above - below) * min(max(share, 0.05), 0.95)
        self.next = min(max(aim, self.least), self.start)
        return True
