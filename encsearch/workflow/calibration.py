"""Measures how fast a network trains and validates on this machine, by a few steps of the real loop."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from statistics import median

import torch

from encsearch.config import Config
from encsearch.data.loading import Batch
from encsearch.search.budget.rules import CONFIRM_DOUBT, Pace
from encsearch.train.experiment import Experiment, build
from encsearch.train.loop import Loaders, fit
from encsearch.workflow.checked import Calibration

# Seconds for one network after its warm-up; exceeded if a single step takes longer.
CALIBRATION_S = 5
# Training steps and validation batches of the warm-up, and their maximum in one measurement.
WARM_UP, MAX_COUNT = 2, 50
# Shares of CALIBRATION_S for the training and the validation of one measurement.
TRAINING_SHARE, VALIDATION_SHARE = 0.2, 0.1
# Seconds between two trials in a process that has imported torch (Ray 2.60), without building the experiment.
BETWEEN_TRIALS_S = 1.0
# Standard deviation, as a share, between a network's time alone on the machine and next to others.
DOUBT = 0.25


def calibrate(config: Config, device: str, *, num_train: int, num_val: int) -> Calibration:
    """Train a few steps and validate a few batches in this process, with one worker's part of the batch.

    `num_train` and `num_val` samples make an epoch. Communication between workers is not measured, nor what
    `train.compile` and `data.processes` gain. The weights are thrown away. Raises TrainingError at a
    non-finite gradient.
    """
    train, workers = config.train, config.scaling.num_workers
    # Neither is what a step costs: a compilation, and processes that start for each measurement.
    part = train.model_copy(
        update={"global_batch_size": train.global_batch_size // workers, "compile": False}
    )
    data = config.data.model_copy(update={"processes": 0})
    scaling = config.scaling.model_copy(update={"num_workers": 1, "min_workers": None})
    with _threads(config.scaling.cpus_per_worker):
        started = time.monotonic()
        alone = config.model_copy(update={"train": part, "data": data, "scaling": scaling})
        experiment = build(alone, device=device)
        build_s = time.monotonic() - started
        measured = list(_measurements(experiment))
    step_s, batch_s = (median(times) for times in zip(*measured, strict=True))
    steps = train.steps_per_epoch or -(-num_train // train.global_batch_size)
    batches = -(-num_val // (workers * train.val_batch_size))
    return Calibration(build_s, step_s, batch_s, steps * step_s + batches * batch_s)


def pace_of_calibrations(calibrations: Sequence[Calibration]) -> Pace:
    """The pace of trials whose networks lie between the measured ones."""
    epoch_s = sorted(calibration.epoch_s for calibration in calibrations)
    build_s = max(calibration.build_s for calibration in calibrations)
    return Pace(tuple(epoch_s), BETWEEN_TRIALS_S + build_s, DOUBT, CONFIRM_DOUBT)


@contextmanager
def _threads(cpus: float) -> Iterator[None]:
    """Use as many threads as Ray gives a worker through OMP_NUM_THREADS."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, int(cpus)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _measurements(experiment: Experiment) -> Iterator[tuple[float, float]]:
    """Yield seconds of a step and of a validation batch until CALIBRATION_S have passed.

    A network whose warm-up takes longer is measured by its warm-up.
    """
    started = time.monotonic()
    step_s, batch_s = _timed(experiment, WARM_UP, WARM_UP)
    if time.monotonic() - started > CALIBRATION_S:
        yield step_s, batch_s
        return
    started = time.monotonic()
    while time.monotonic() - started < CALIBRATION_S:
        step_s, batch_s = _timed(
            experiment,
            _count(TRAINING_SHARE * CALIBRATION_S, step_s),
            _count(VALIDATION_SHARE * CALIBRATION_S, batch_s),
        )
        yield step_s, batch_s


def _timed(experiment: Experiment, num_steps: int, num_batches: int) -> tuple[float, float]:
    """Time a step and a validation batch, in one short epoch of the real loop."""
    validation_began = 0.0
    num_validated = 0

    def validation() -> Iterator[Batch]:
        nonlocal validation_began, num_validated
        validation_began = time.monotonic()
        for batch in islice(experiment.loaders.validation(), num_batches):
            num_validated += 1
            yield batch

    experiment.state.step = 0  # start of this short plan, which has one epoch
    plan = replace(experiment.plan, epochs=1, steps_per_epoch=num_steps)
    began = time.monotonic()
    for _ in fit(experiment.state, Loaders(experiment.loaders.train, validation), experiment.loss, plan):
        ended = time.monotonic()
    return (validation_began - began) / num_steps, (ended - validation_began) / num_validated


def _count(seconds: float, each_s: float) -> int:
    return min(max(1, round(seconds / each_s)), MAX_COUNT)
