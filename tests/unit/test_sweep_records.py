"""What a sweep's runs say after a job that was cut off."""

from pathlib import Path

import pytest

from encsearch.cli.progress import LineProgress
from encsearch.config import Config
from encsearch.data.store import Store
from encsearch.reports import Status
from encsearch.search.trials import Trial, TrialState
from encsearch.tracking.outbox.record import own_record
from encsearch.workflow.sweep.records import SweepRecords


@pytest.mark.parametrize(
    ("state", "status"), [("COMPLETE", "FINISHED"), ("PRUNED", "KILLED"), ("FAIL", "FAILED")]
)
def test_a_trial_that_ended_just_before_a_ctrl_c_is_closed_truly(
    toy_config: Config, tmp_path: Path, state: TrialState, status: Status
) -> None:
    ended = Trial(0, {}, state, value=0.5, curve=((1, 0.5),), seconds=1.0)
    with own_record(tmp_path) as record:
        record.start("sweep", params={}, tags={})
        records = SweepRecords(
            toy_config, Store(toy_config.data.store), record, "sweep", tmp_path, LineProgress()
        )
        records.open_recorder(0, toy_config).close("KILLED")
        records.settle([ended])
        closed = record.find("trial0")
    assert closed
    assert closed.status == status
