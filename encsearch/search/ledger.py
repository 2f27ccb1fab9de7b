"""The ledger of a running sweep: each trial's values, its progress and its end.

It does not depend on Ray Tune. It keeps the study, the recorders and the user's view in step: every epoch is
recorded once, and every trial ends once, with its true state. The study holds enough to continue after a
kill: the open trials are assigned again and repeat the reports they had sent before.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from encsearch.config import Config, LimitsConfig, Minimized
from encsearch.reports import Recorder, Report
from encsearch.search.budget.rules import devices_of, spent_by
from encsearch.search.study.study import COST, HARDWARE, SECONDS, Proposal, Study
from encsearch.search.trials import (
    LATENCY,
    PARAMETERS,
    STATUS_OF,
    TrialEvent,
    TrialState,
    flag_trials,
    seeded_config,
)
from encsearch.search.tune.board import Assignment, Board, BoardEntry
from encsearch.text import format_bytes, format_count, format_duration, format_number
from encsearch.train.checkpoint_files import drop_checkpoints, stored_bytes

# A trial is a straggler if it is silent STRAGGLER_FACTOR times as long as an epoch usually takes, and over
# STRAGGLER_MIN_S seconds.
STRAGGLER_FACTOR, STRAGGLER_MIN_S = 4, 30


@dataclass(frozen=True)
class Network:
    """The size of a trial's network; `memory_gib` may be None if no limit needs it."""

    parameters: int
    memory_gib: float | None = None


@dataclass(frozen=True)
class Excess:
    """How far a trial exceeds a limit, as a share of that limit."""

    share: float
    reason: str


def find_excess(limits: LimitsConfig, network: Network) -> Excess | None:
    """Return the first limit that the network exceeds, or None."""
    parameters, gib = network.parameters, network.memory_gib
    if limits.parameters is not None and parameters > limits.parameters:
        given, allowed = format_count(parameters, "parameter"), format_count(limits.parameters)
        return _make_excess("parameters", parameters / limits.parameters, given, allowed)
    if limits.memory_gib is not None and gib is not None and gib > limits.memory_gib:
        given, allowed = f"{format_bytes(gib * 2**30)} of memory", format_bytes(limits.memory_gib * 2**30)
        return _make_excess("memory_gib", gib / limits.memory_gib, given, allowed)
    return None


def find_latency_excess(limits: LimitsConfig, latency_ms: float) -> Excess | None:
    """Return by how much a measured latency exceeds the limit, or None."""
    if limits.latency_ms is None or latency_ms <= limits.latency_ms:
        return None
    given, allowed = f"{format_number(latency_ms)} ms an image", format_number(limits.latency_ms)
    return _make_excess("latency_ms", latency_ms / limits.latency_ms, given, allowed)


class SweepObserver(Protocol):
    """The sweep owner's reactions to its trials; called in the driver, between two Tune events."""

    def open_recorder(self, number: int, config: Config) -> Recorder:
        """A trial starts, or continues after a kill; closed as FINISHED, also if stopped early, or FAILED."""
        ...

    def trial_ended(self, event: TrialEvent, config: Config, folder: Path) -> None:
        """A trial has ended; its recorder is still open, and `folder` has its last checkpoint."""
        ...

    def follow(self, event: TrialEvent) -> None:
        """Something happened that the user may want to see."""
        ...

    def say(self, line: str) -> None:
        """Show one line of text to the user."""
        ...


class Limiter(Protocol):
    """The budget as the ledger asks it; see `budget`."""

    def may_start(self) -> bool: ...

    def may_repeat(self) -> bool:
        """Like `may_start`, for a trial that does not count towards the number of trials."""
        ...

    def must_end(self) -> bool: ...


@dataclass(kw_only=True)
class _Entry(BoardEntry):
    """`cleared` is the newest epoch at which the scheduler let the trial go on; `pauses` if it did not.

    `kept_bytes` is the size of a paused trial's checkpoint.
    """

    values: Mapping[str, Any]
    cleared: int = 0
    pauses: bool = False
    hardware: tuple[str, ...] = ()
    excess: Excess | None = None
    heard_s: float = 0.0
    is_late: bool = False
    kept_bytes: int = 0


class Ledger(Board[_Entry]):
    """The trials of one sweep; `network` measures the size of a trial's network."""

    def __init__(
        self,
        config: Config,
        study: Study,
        observer: SweepObserver,
        limiter: Limiter,
        *,
        folder: Path,
        fingerprint: str,
        room: int,
        network: Callable[[Config], Network],
    ) -> None:
        super().__init__(room)
        self._config, self._study, self._observer, self._limiter = config, study, observer, limiter
        self._folder, self._fingerprint, self._network = folder, fingerprint, network
        self._paused = {proposal.number: self._entry(proposal) for proposal in study.paused()}
        for entry in self._paused.values():
            entry.kept_bytes = stored_bytes(entry.assignment.folder)
        self._failures: list[str] = []
        for proposal in study.running():
            self._take_up(proposal)

    def next_assignment(self, key: str) -> Assignment | None:
        if not self._waiting and len(self._out) < self.room:
            self._ask()
        return super().next_assignment(key)

    def is_done(self) -> bool:
        if not super().is_done():
            return False
        if self._study.search.flagged == "rerun":
            self._repeat_flagged()
        return not self._may_ask() and not self._may_promote()

    def is_over(self) -> bool:
        self._report_stragglers()
        return self._limiter.must_end() or self.gives_up_on is not None

    @property
    def gives_up_on(self) -> str | None:
        """The reason with which the last trials failed, `search.budget.max_failed` in a row; else None."""
        newest = self._failures[-self._study.search.budget.max_failed :]
        is_same = len(newest) == self._study.search.budget.max_failed and len(set(newest)) == 1
        return newest[0] if is_same else None

    def started(self, key: str) -> None:
        entry = self._out[key]
        entry.heard_s, entry.pauses = time.monotonic(), False
        super().started(key)

    def reported(self, key: str, result: Mapping[str, Any]) -> bool:
        entry = self._out[key]
        entry.heard_s, entry.is_late = time.monotonic(), False
        self._note_hardware(entry, result["hardware"])
        if LATENCY in result:
            return self._is_slow(entry, result[LATENCY])
        report = self._hear(entry, result)
        if report is not None and report.ends:
            return False  # it has come to its own end, and is neither paused nor stopped
        # An attempt that continues repeats reports that were judged before.
        if report is None or not entry.cleared < report.epoch == max(self._study.curve(entry.number)):
            return False
        match self._study.judge(entry.number):
            case "continue":
                entry.cleared = report.epoch
                return False
            case "pause":
                entry.pauses = True
                return True
            case "stop":
                return True

    def lost(self, key: str, reason: str) -> bool:
        entry = self._out[key]
        starts_again = super().lost(key, reason)
        if starts_again:
            self._observer.say(f"trial {entry.number} lost its process and starts again ({reason})")
        return starts_again

    def end_all(self, reason: str) -> None:
        """End the open trials with their curves: paused ones as stopped early, running ones for `reason`.

        A paused one that would still have been promoted ends for `reason` too.
        """
        if (number := self._study.promote(keep_one=True)) is not None:
            entry = self._paused.pop(number)
            self._study.prune(number, reason)
            self._close(entry, "PRUNED", reason)
        for entry in self._paused.values():
            self._study.prune(entry.number)
            self._close(entry, "PRUNED")
        self._paused.clear()
        for entry in self._still_open():
            self._study.prune(entry.number, reason)
            self._close(entry, "PRUNED", reason)

    def leave_all(self) -> None:
        """Leave the trials open in the study when the sweep is interrupted; a resume continues them."""
        for entry in (*self._still_open(), *self._paused.values()):
            if entry.recorder:
                entry.recorder.close("KILLED")

    def _ask(self) -> None:
        """Queue a paused trial that is promoted, or else one proposal that is within the limits."""
        if self._may_promote():
            number = self._study.promote(keep_one=self._is_ending())
            assert number is not None
            self._go_on(self._paused.pop(number))
            return
        while self._may_ask():
            proposal = self._study.ask()
            if proposal is None or self._take_up(proposal):
                return

    def _may_promote(self) -> bool:
        """A promoted trial was counted when it started, but it must report in time."""
        return self._study.can_promote(keep_one=self._is_ending()) and self._limiter.may_repeat()

    def _is_ending(self) -> bool:
        """Whether the last trials of the search have come to their rungs."""
        return not self._out and not self._waiting and not self._may_ask()

    def _go_on(self, entry: _Entry) -> None:
        entry.cleared = max(self._study.curve(entry.number))
        entry.heard_s = 0.0  # its pause was no silence
        self._waiting.append(entry)
        self._observer.follow(self._event(entry, self._study.curve(entry.number)[entry.cleared]))
        self._observer.say(f"trial {entry.number} goes on after epoch {entry.cleared}")

    def _may_ask(self) -> bool:
        """Repeats of flagged trials are not counted, and refused proposals are counted separately."""
        if self._study.num_repeats_waiting():
            return self._limiter.may_repeat()
        if not self._limiter.may_start():
            return False
        spent = spent_by(self._study.trials(), wall_s=0)
        most = max(spent.refused, spent.trials)
        return most < self._study.search.budget.trials and not self._study.is_exhausted()

    def _take_up(self, proposal: Proposal) -> bool:
        """Queue a proposal, unless a limit refuses it."""
        entry = self._entry(proposal)
        network = self._network(entry.assignment.config)
        self._study.note(proposal.number, **{PARAMETERS: network.parameters})
        beyond = find_excess(self._study.search.limits, network)
        if beyond:
            self._study.refuse(proposal.number, beyond.reason, beyond.share)
            return False
        self._waiting.append(entry)
        return True

    def _entry(self, proposal: Proposal) -> _Entry:
        search = self._study.search
        measures = bool(search.limits.latency_ms) or _is_latency(search.minimize)
        config = seeded_config(self._config, proposal.values, proposal.repeat)
        folder = trial_folder(self._folder, proposal.number)
        assignment = Assignment(config, folder, self._fingerprint, measures)
        return _Entry(proposal.number, assignment, values=proposal.values)

    def _begin(self, entry: _Entry) -> None:
        entry.recorder = self._observer.open_recorder(entry.number, entry.assignment.config)
        self._observer.follow(self._event(entry, None))

    def _take(self, entry: _Entry, report: Report) -> None:
        is_new = report.epoch not in self._study.curve(entry.number)
        value = report.metrics[self._config.metric]
        if is_new:
            # The value comes last: if a kill prevents it, a resume writes the notes and the value again.
            cost = entry.seconds * devices_of(self._config.scaling)
            self._study.note(entry.number, **{SECONDS: entry.seconds, COST: cost})
            self._study.report(entry.number, report.epoch, value)
        assert entry.recorder is not None
        entry.recorder.log(report)
        if is_new:
            self._observer.follow(self._event(entry, value))

    def _note_hardware(self, entry: _Entry, hardware: str) -> None:
        if not entry.hardware:
            entry.hardware = self._study.hardware(entry.number)
        if entry.hardware[-1:] != (hardware,):
            entry.hardware += (hardware,)
            self._study.note(entry.number, **{HARDWARE: list(entry.hardware)})

    def _is_slow(self, entry: _Entry, latency_ms: float) -> bool:
        """Judge the latency once: a resumed trial measures it again, but was judged before the kill."""
        if self._study.curve(entry.number):
            return False
        self._study.note(entry.number, **{LATENCY: latency_ms})
        entry.excess = find_latency_excess(self._study.search.limits, latency_ms)
        return entry.excess is not None

    def _repeat_flagged(self) -> None:
        repeats = {trial.number for trial in self._study.trials() if trial.rerun_of is not None}
        for number in flag_trials(self._study.trials()):
            if number not in repeats:
                self._study.repeat(number)

    def _report_stragglers(self) -> None:
        epochs = [e.last.seconds for e in self._out.values() if e.last]
        if not epochs:
            return
        usual = sorted(epochs)[len(epochs) // 2]
        for entry in self._out.values():
            silent = time.monotonic() - entry.heard_s if entry.heard_s else 0.0
            if not entry.is_late and silent > max(STRAGGLER_MIN_S, STRAGGLER_FACTOR * usual):
                entry.is_late = True
                self._observer.say(
                    f"trial {entry.number} is a straggler: silent for {format_duration(silent)}; an epoch "
                    f"usually takes {format_duration(usual)}"
                )

    def _end(self, entry: _Entry) -> None:
        """Pause the trial, or give it its terminal state, by the epochs that it reached."""
        if entry.pauses and not entry.failure:
            self._pause(entry)
        elif entry.excess and not entry.failure:
            self._study.refuse(entry.number, entry.excess.reason, entry.excess.share)
            self._close(entry, "PRUNED", entry.excess.reason)
        elif entry.failure or entry.last is None:
            reason = entry.failure or "the trial ended without a report"
            self._study.fail(entry.number, reason)
            self._close(entry, "FAIL", reason)
        elif entry.last.epoch < self._config.train.epochs and not entry.last.ends:
            self._study.prune(entry.number)
            self._close(entry, "PRUNED")
        else:
            self._study.complete(entry.number)
            self._close(entry, "COMPLETE", entry.last.ends or None)

    def _pause(self, entry: _Entry) -> None:
        """Set the trial aside; the worst paused ones lose their checkpoints beyond `search.disk_gib`."""
        self._failures = []
        self._study.pause(entry.number)
        self._paused[entry.number] = entry
        self._observer.follow(self._event(entry, max(self._study.curve(entry.number).values()), "PAUSED"))
        entry.kept_bytes = stored_bytes(entry.assignment.folder)
        excess = sum(one.kept_bytes for one in self._paused.values()) - self._study.search.disk_gib * 2**30
        if excess <= 0:
            return
        for number in sorted(self._paused, key=self._standing):
            worst = self._paused[number]
            if excess <= 0:
                return
            if worst.kept_bytes:
                drop_checkpoints(worst.assignment.folder)
                # It trains from its first epoch again if it is promoted, and costs that once more.
                worst.last = None
                self._observer.say(f"trial {number} would start again: search.disk_gib is spent")
            excess -= worst.kept_bytes
            worst.kept_bytes = 0

    def _standing(self, number: int) -> tuple[int, float]:
        """How far the trial has come, then how good it is."""
        epoch = max(self._study.curve(number))
        return epoch, self._study.curve(number)[epoch]

    def _close(self, entry: _Entry, state: TrialState, reason: str | None = None) -> None:
        self._failures = [*self._failures, str(reason)] if state == "FAIL" else []
        best = max(self._study.curve(entry.number).values(), default=None)
        event = self._event(entry, best, state, reason)
        if entry.recorder:
            try:
                self._observer.trial_ended(event, entry.assignment.config, entry.assignment.folder)
            finally:
                entry.recorder.close(STATUS_OF[state])
        self._observer.follow(event)

    def _event(
        self, entry: _Entry, value: float | None, state: TrialState = "RUNNING", reason: str | None = None
    ) -> TrialEvent:
        epoch = max(self._study.curve(entry.number), default=0)
        cost = entry.seconds * devices_of(self._config.scaling)
        return TrialEvent(entry.number, entry.values, state, epoch, value, reason, cost)


def trial_folder(folder: Path, number: int) -> Path:
    """Where a trial of the sweep in `folder` keeps its reports and its newest checkpoint."""
    return folder / "trials" / f"{number:04d}"


def _is_latency(minimize: Minimized | None) -> bool:
    """Whether a trial must measure its latency; the number of parameters is always recorded."""
    match minimize:
        case "latency_ms":
            return True
        case "parameters" | None:
            return False


def _make_excess(name: str, ratio: float, given: str, allowed: str) -> Excess:
    return Excess(ratio - 1, f"{given}, but search.limits.{name} is {allowed}")
