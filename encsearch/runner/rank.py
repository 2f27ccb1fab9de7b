"""One rank's training in its folder: where it goes on, what it keeps there, and what it reports.

The same for a training in this process, a worker of Ray Train and a trial. The folder is seen by every rank;
rank 0 alone writes there.
"""

import logging
import math
from collections.abc import Callable, Generator, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch.distributed as dist

from encsearch.config import EarlyStop
from encsearch.errors import NoticeError, TrainingError, UserError
from encsearch.reports import INIT_FILE, REPORTS_FILE, Report, append, best_report, distinct_reports
from encsearch.text import format_count, format_points, format_score
from encsearch.train.checkpoint import CheckpointWriter, load_checkpoint
from encsearch.train.checkpoint_files import (
    MODEL_FILE,
    copy_files,
    find_best,
    intact,
    read_content,
    write_best,
)
from encsearch.train.experiment import Experiment
from encsearch.train.gpu_memory import telling_full_gpu
from encsearch.train.loop import fit
from encsearch.train.moments import Moment, no_notice

KEPT = 2
"""Newest checkpoints on disk: if one is damaged, the training goes on from the one before."""


class RankTraining:
    """`begin` once, then iterate over `reports`; every rank does the same.

    `keep` newest checkpoints stay, and with `keeps_best` the best one. `settles`: whether a report waits
    until its checkpoint is on disk, for an owner that may delete the folder then. `notice` says whether this
    rank was told to end, `preempted` whether the state is to be saved at once.
    """

    def __init__(
        self,
        experiment: Experiment,
        folder: Path,
        metric: str,
        *,
        keep: int = KEPT,
        keeps_best: bool = True,
        settles: bool = False,
        notice: Callable[[], bool] = no_notice,
        preempted: Callable[[], bool] = no_notice,
    ) -> None:
        self._experiment, self._folder, self._metric = experiment, folder, metric
        self._keep, self._keeps_best, self._settles = keep, keeps_best, settles
        self._plan = replace(experiment.plan, notice=notice, preempted=preempted)
        self._reports: list[Report] = []
        self._known: dict[int, Report] = {}
        self._start: str | None = None

    def begin(self) -> tuple[Report, ...]:
        """Go on from the newest intact checkpoint, if there is any; returns the reports up to there.

        Where the best one is kept it is from an earlier one, or the beginning, if the best weights up to
        there are lost. Raises UserError for a checkpoint of another model, and PreflightError for a damaged
        report.
        """
        state = self._experiment.state
        self._together(self._find_start)
        if start := self._from_first_rank(self._start):
            self._together(lambda: load_checkpoint(state, self._folder / start))
        self._reports = [
            report for step, report in self._known.items() if step < state.step or self._is_at(step)
        ]
        return tuple(self._reports)

    def reports(self) -> Generator[Report, None, None]:
        """Train to the end, yielding each new report when it is on disk.

        An epoch that is trained again keeps its first report, which was recorded. Raises TrainingError
        when the training or a checkpoint fails, and NoticeError once the state is saved after a notice.
        """
        e, plan = self._experiment, self._plan
        start = e.state.step
        if self._from_first_rank(self._reports[-1].ends if self._reports else None):
            return
        writer = CheckpointWriter(self._folder, keep=self._keep) if plan.rank == 0 else None
        events = self._events()
        try:
            for event in events:
                if isinstance(event, Moment):
                    self._together(partial(self._save, writer, settles=event is Moment.END))
                    if event is Moment.END:
                        raise NoticeError(f"saved at step {e.state.step} of {plan.total_steps}")
                    continue
                # The record shows where a training went on.
                resumed = {"resumed_from_step": float(start)} if start else {}
                origin = {INIT_FILE: f"{e.origin}\n"} if e.origin and not self._reports else {}
                trained = replace(
                    event, metrics={**event.metrics, **resumed}, texts={**event.texts, **origin}
                )
                report = self._known.get(trained.step, trained)
                self._reports.append(report)
                report = self._reports[-1] = replace(report, ends=self._find_end())
                self._together(partial(self._save, writer, report, settles=self._settles))
                yield report
                if report.ends:
                    break
            self._together(lambda: writer.wait() if writer else None)
        finally:
            events.close()
            if writer:
                writer.close()

    def _find_end(self) -> str:
        """Why no epoch follows, as rank 0 finds, which alone has the reports from before a resume."""
        rule, plan = self._experiment.early_stop, self._plan
        if not rule.patience or self._reports[-1].epoch == plan.epochs:
            return ""
        return self._from_first_rank(find_stall(self._reports, self._metric, rule)) or ""

    def _events(self) -> Generator[Report | Moment, None, None]:
        """What the loop yields. Of several ranks one without memory raises: Ray then ends those that wait."""
        e, plan = self._experiment, self._plan
        with telling_full_gpu(plan.device) if plan.world_size == 1 else nullcontext():
            yield from fit(e.state, e.loaders, e.loss, plan)

    def _save(self, writer: CheckpointWriter | None, report: Report | None = None, *, settles: bool) -> None:
        """Keep the state, at the end of an epoch after its report: no checkpoint is without it."""
        if writer is None:
            return
        is_best = False
        if report:
            if report.step not in self._known:
                append(self._folder / REPORTS_FILE, report)
            is_best = self._keeps_best and report is best_report(tuple(self._reports), self._metric)
        writer.write(self._experiment.state, len(self._reports), best=is_best)
        if settles:
            writer.wait()

    def _is_at(self, step: int) -> bool:
        """Whether the state is at the end of the epoch that ended with `step`, and validated."""
        state = self._experiment.state
        return step == state.step and not state.parts

    def _from_first_rank(self, choice: str | None) -> str | None:
        """The choice of rank 0: every rank must begin and end at the same step."""
        choices = [choice]
        if self._plan.world_size > 1:
            dist.broadcast_object_list(choices, src=0, device=self._plan.device)
        return choices[0]

    def _together(self, act: Callable[[], None]) -> None:
        """Do what may fail on one rank; then it fails on all, which would wait for that one otherwise."""
        failure: TrainingError | UserError | None = None
        try:
            act()
        except (TrainingError, UserError) as error:
            failure = error
        failures = [failure]
        if self._plan.world_size > 1:
            failures = [None] * self._plan.world_size
            dist.all_gather_object(failures, failure)
        if first := next(filter(None, failures), None):
            raise first

    def _find_start(self) -> None:
        """Rank 0: choose the newest intact checkpoint up to which the best weights are kept, if any is.

        The log says so if it is not the newest. Puts the best weights in their place if a kill was between.
        """
        if self._plan.rank > 0:
            return
        self._known = {report.step: report for report in distinct_reports(self._folder / REPORTS_FILE)}
        starts = {content.step: place for place, content in intact(self._folder)}
        if not self._keeps_best:
            self._start = starts[max(starts)].name if starts else None
            return
        best = find_best(self._folder)
        weights = dict(starts)
        with suppress(UserError):
            weights[read_content(best, (MODEL_FILE,)).step] = best  # its optimizer state is not needed
        needed = {step: self._best_step(step) for step in starts}
        start = max((step for step in starts if needed[step] in (None, *weights)), default=None)
        if self._known and start != max(starts, default=0):
            logging.getLogger(__name__).warning(
                "%s: no newer checkpoint is whole with the best weights up to it; training again from %s",
                self._folder,
                "the beginning" if start is None else starts[start].name,
            )
        if start is None:
            return
        best_step = needed[start]
        if best_step is not None and (kept := weights[best_step]) != best:
            write_best(self._folder, partial(copy_files, kept))
        self._start = starts[start].name

    def _best_step(self, step: int) -> int | None:
        """The step of the best report up to `step`; None inside the first epoch, which needs none.

        -1, which no checkpoint has, where the reports up to the step are lost.
        """
        steps_per_epoch = self._plan.steps_per_epoch
        up_to = tuple(report for report in self._known.values() if report.step <= step)
        if up_to:
            return best_report(up_to, self._metric).step
        return None if step < steps_per_epoch else -1


def find_stall(reports: Sequence[Report], metric: str, rule: EarlyStop) -> str | None:
    """Why a training ends after `reports`, whose metric has not risen in the last `rule.patience`; else None.

    A report is a rise if its metric exceeds that of the last rise by more than `rule.min_delta`.
    """
    highest, waited = -math.inf, 0
    for report in reports:
        value = report.metrics[metric]
        if value > highest + rule.min_delta:
            highest, waited = value, 0
        else:
            waited += 1
    if waited < rule.patience:
        return None
    least = f" by more than {format_points(rule.min_delta)}" if rule.min_delta else ""
    return (
        f"train.early_stop: {format_count(waited, 'report')} without a rise of {metric} above "
        f"{format_score(highest)}{least}"
    )
