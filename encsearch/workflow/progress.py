"""How a job tells a person what it is doing; the command line decides what that looks like."""

from typing import Protocol

from encsearch.config import Config
from encsearch.records import Report
from encsearch.search.trials import TrialEvent


class Progress(Protocol):
    """Called from the driver, in the order of events."""

    def say(self, line: str) -> None: ...

    def epoch(self, name: str, report: Report, config: Config) -> None: ...

    def trial(self, event: TrialEvent, config: Config) -> None: ...
