"""How fast the trials of a sweep train, from what they reported: pure."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from encsearch.search.trials import TrialRecord

# A machine is not equally fast all the time: a pace that many trials agree on may still be off by so much.
DRIFT = 0.05
# Eight confirmations of four sweeps took 0.75 to 2.2 times what their trials let expect; by other numbers of
# workers, alone instead of side by side, and one on a machine that was busy otherwise.
CONFIRM_DOUBT = 0.35


@dataclass(frozen=True)
class Pace:
    """What trials take.

    epoch_s    seconds an epoch, validation included, ascending: one figure for every trial that was measured;
               they stand for the networks to come, whichever searched value makes them slow or fast
    startup_s  seconds from a free place to a trial's first step
    doubt      standard deviation, as a share, of an error that all figures have in common
    confirm_doubt  the same of an error that the trainings after the search have beside that
    """

    epoch_s: tuple[float, ...]
    startup_s: float
    doubt: float
    confirm_doubt: float

    def quantile(self, share: float) -> float:
        """Seconds an epoch that `share` of the trials do not exceed, interpolated."""
        place = share * (len(self.epoch_s) - 1)
        low, high = math.floor(place), math.ceil(place)
        return self.epoch_s[low] + (place - low) * (self.epoch_s[high] - self.epoch_s[low])


def pace_of(records: Sequence[TrialRecord], startup_s: float) -> Pace | None:
    """From the trials so far, those that run included; None before the first report."""
    epoch_s = sorted(r.seconds / r.epochs for r in records if r.epochs and r.seconds)
    if not epoch_s:
        return None
    mean = statistics.fmean(epoch_s)
    # Of one trial nothing is known but that it may be as unusual as its own length.
    error = statistics.stdev(epoch_s) / mean / math.sqrt(len(epoch_s)) if len(epoch_s) > 1 else 1 / 3
    return Pace(tuple(epoch_s), startup_s, max(error, DRIFT), CONFIRM_DOUBT)


def duration_text(seconds: float) -> str:
    """As in 1 h 40 min, 12 min, 45 s, 0.31 s."""
    if seconds < 10:
        return f"{seconds:.2g} s"
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, rest = divmod(minutes, 60)
    return f"{hours} h {rest} min" if rest else f"{hours} h"
