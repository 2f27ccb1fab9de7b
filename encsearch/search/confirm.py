"""The best configurations are trained again from scratch; the winner is named by those trainings alone.

A sweep's own maximum is the best of many noisy figures and so too high; a finalist's figure is not selected.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from encsearch.config import Config
from encsearch.records import Recorder, recording
from encsearch.runner.ray_train import run_ray_train
from encsearch.search.finalists import Finalist, finalist_config, pick_finalists
from encsearch.search.study import TrialRecord


def confirm(
    config: Config,
    records: Sequence[TrialRecord],
    folder: Path,
    open_recorder: Callable[[int, int, Config], Recorder],
    trained: Callable[[Finalist], None],
) -> list[Finalist]:
    """Train every finalist with every confirmation seed by Ray Train, one after the other.

    `trained` is called before the recorder that `open_recorder(trial, seed, config)` returned is closed.
    """
    assert config.search is not None
    finalists = []
    for record in pick_finalists(records, config.search.confirm.finalists):
        for seed in config.search.confirm.seeds:
            trial_config = finalist_config(config, record.values, seed)
            recorder = open_recorder(record.number, seed, trial_config)
            with recording(recorder):
                result = run_ray_train(trial_config, folder / f"trial{record.number}-seed{seed}", recorder)
                finalist = Finalist(record.number, seed, trial_config, result)
                trained(finalist)
            finalists.append(finalist)
    return finalists
