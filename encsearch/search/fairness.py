"""Which trials were not run as the others were, so that their figures are not comparable: pure."""

from collections import Counter
from collections.abc import Mapping, Sequence

from encsearch.search.trials import TrialRecord


def flags(records: Sequence[TrialRecord]) -> Mapping[int, str]:
    """Why a trial is not comparable, by its number; those that are have no entry.

    Hardware, software and the number of workers change rounding, batch norm and latency, and so the figure. A
    trial is flagged if they changed midway, and if they are not those of most trials that kept theirs (of as
    many on either, those of the first one count). A trial that never reported says nothing and has no entry.
    """
    kept = Counter(record.hardware[0] for record in records if len(record.hardware) == 1)
    usual = max(kept, key=kept.__getitem__, default=None)
    reasons = {}
    for record in records:
        if len(record.hardware) > 1:
            reasons[record.number] = f"changed midway: {', then '.join(record.hardware)}"
        elif record.hardware and record.hardware[0] != usual:
            reasons[record.number] = f"ran on {record.hardware[0]}, most trials on {usual}"
    return reasons
