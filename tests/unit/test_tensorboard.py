"""`encsearch sync FOLDER --to tensorboard DIR`: what TensorBoard reads back is what the record holds."""

import json
import math
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata

from encsearch.cli.main import main
from encsearch.reports import Point, Report
from encsearch.text import round_figure
from encsearch.tracking.outbox.events import Filed, Logged, read_events
from encsearch.tracking.outbox.forward import SENT_FILE
from encsearch.tracking.outbox.record import EVENTS_FILE, FOLDER, own_record
from encsearch.tracking.tensorboard import write_tensorboard

SPACE = {"optim.lr": {"loguniform": [0.001, 0.1]}, "loss.ohem": {"choice": [True, False]}}
SHEET = "predictions+step+3+timestamp+1795823110995+076c3123.png"


def report(epoch: int) -> Report:
    step = 3 * (epoch + 1)
    points = tuple(
        Point(step - 2 + i, 1_700_000_000_123 + step, {"step/loss": 1 / (step + i)}) for i in (0, 1)
    )
    metrics = {"mIoU": math.nan if epoch == 1 else 0.1234567 * (epoch + 1), "train/loss": 1 / 3}
    return Report(
        epoch=epoch, step=step, seconds=1.5, metrics=metrics, class_iou={"a tree": 0.5}, points=points
    )


def write_sweep(folder: Path, epochs: int = 3) -> Path:
    """Two trials that differ in what was searched, and a third that has no value for one of the paths."""
    pictures = folder / "trial-artifacts" / "trial0" / "images"
    pictures.mkdir(parents=True)
    Image.new("RGB", (4, 2), (200, 0, 0)).save(pictures / SHEET)
    Image.new("P", (4, 2)).save(pictures.parent / "panels.png")
    with own_record(folder) as record:
        params = {"metric": "mIoU", "search.space": json.dumps(SPACE)}
        sweep = record.start(folder.name, params=params, tags={"encsearch.kind": "sweep"})
        for i, (lr, ohem) in enumerate([(0.01, True), (0.025, False), (1.0, None)]):
            values = {
                "metric": "mIoU",
                "optim.lr": lr,
                "loss.ohem": ohem,
                "model.context": "none",
                "data.store": "5|6",
            }
            trial = record.start(
                f"trial{i}",
                params=values,
                tags={"encsearch.kind": "trial", "mlflow.note.content": "about **it**"},
                parent=folder.name,
                artifacts=pictures.parent if i == 0 else None,
            )
            for epoch in range(epochs):
                trial.log(report(epoch))
                if i == epoch == 0:
                    trial.file(pictures / SHEET, "images")
            trial.note({"encsearch.state": "COMPLETE"})
            if epochs == 3:
                trial.close("FAILED" if i == 2 else "FINISHED")
        sweep.summarize(report(0))
    return folder


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    return write_sweep(tmp_path / "runs" / "toy-1")


def read(folder: Path) -> EventAccumulator:
    sizes = dict.fromkeys(("scalars", "images", "tensors"), 0)  # 0 is all
    return EventAccumulator(str(folder), size_guidance=sizes).Reload()


def all_of(folder: Path) -> dict[str, Any]:
    """What TensorBoard has of each run: curves, pictures, texts, the contents of its plugins."""
    found: dict[str, Any] = {}
    for path in sorted({file.parent for file in folder.rglob("*tfevents*")}):
        run = read(path)
        tags = run.Tags()
        parts = {
            name: getattr(run, kind.title())(name)
            for kind in ("scalars", "images", "tensors")
            for name in tags[kind]
        }
        found[str(path.relative_to(folder))] = repr((parts, hparams(run)))
    return found


def hparams(run: EventAccumulator) -> dict[str, Any]:
    contents = run.PluginTagToContent(metadata.PLUGIN_NAME)
    kinds = {
        "start": (metadata.SESSION_START_INFO_TAG, metadata.parse_session_start_info_plugin_data),
        "end": (metadata.SESSION_END_INFO_TAG, metadata.parse_session_end_info_plugin_data),
        "columns": (metadata.EXPERIMENT_TAG, metadata.parse_experiment_plugin_data),
    }
    return {name: parse(contents[tag]) for name, (tag, parse) in kinds.items() if tag in contents}


def test_curves_are_those_of_the_record_in_value_step_and_wall_time(sweep: Path, tmp_path: Path) -> None:
    (written,) = write_tensorboard([sweep], tmp_path / "tb")
    logged: dict[str, dict[str, list[tuple[int, float, str]]]] = defaultdict(lambda: defaultdict(list))
    for event, _ in read_events(sweep / FOLDER / EVENTS_FILE):
        for point in event.points if isinstance(event, Logged) and event.run != sweep.name else ():
            for name, value in point.values.items():
                logged[event.run][name].append((point.step, point.time_ms / 1000, repr(value)))
    assert written.trainings == len(logged) == 3
    assert written.figures == sum(len(points) for run in logged.values() for points in run.values())
    assert {path.name for path in (tmp_path / "tb" / sweep.name).iterdir()} == set(logged)
    for name, curves in logged.items():
        run = read(tmp_path / "tb" / sweep.name / name)
        # An event file has numbers of 32 bits, which hold the six digits of the record.
        shown = {
            tag: [(one.step, one.wall_time, repr(round_figure(one.value))) for one in run.Scalars(tag)]
            for tag in run.Tags()["scalars"]
        }
        assert shown == {tag: sorted(points) for tag, points in curves.items()}
    assert len(logged["trial0"]["step/loss"]) == 6


def test_every_training_has_an_entry_of_hparams_in_the_types_of_the_recipe(
    sweep: Path, tmp_path: Path
) -> None:
    write_tensorboard([sweep], tmp_path / "tb")
    found = [hparams(read(tmp_path / "tb" / sweep.name / f"trial{i}")) for i in range(3)]
    starts = [entry["start"] for entry in found]
    assert [start.hparams["optim.lr"].number_value for start in starts] == [0.01, 0.025, 1.0]
    assert [start.hparams["loss.ohem"].WhichOneof("kind") for start in starts[:2]] == ["bool_value"] * 2
    assert starts[0].hparams["loss.ohem"].bool_value
    assert "loss.ohem" not in starts[2].hparams
    assert starts[0].hparams["model.context"].string_value == "none"
    assert len({start.group_name for start in starts}) == 3
    assert [entry["end"].status for entry in found] == [1, 1, 2]
    (columns,) = [entry["columns"] for entry in found if "columns" in entry]
    assert {column.name: (column.type, column.differs) for column in columns.hparam_infos} == {
        "optim.lr": (3, True),
        "loss.ohem": (2, True),
    }
    assert [metric.name.tag for metric in columns.metric_infos][:3] == ["best/mIoU", "mIoU", "train/loss"]


def test_texts_and_pictures_are_shown(sweep: Path, tmp_path: Path) -> None:
    (written,) = write_tensorboard([sweep], tmp_path / "tb")
    run = read(tmp_path / "tb" / sweep.name / "trial0")
    texts = {
        tag: run.Tensors(tag)[0].tensor_proto.string_val[0].decode()
        for tag in run.Tags()["tensors"]
        if "text" in tag
    }
    assert texts["description/text_summary"] == "about **it**"
    assert "| optim.lr | 0.01 |" in texts["params/text_summary"]
    assert r"| data.store | 5\|6 |" in texts["params/text_summary"]
    assert "| encsearch.state | COMPLETE |" in texts["tags/text_summary"]
    assert "| status | FINISHED |" in texts["tags/text_summary"]
    (sheet,), (panels,) = run.Images("images/predictions"), run.Images("panels")
    assert (sheet.step, sheet.wall_time, sheet.width, sheet.height) == (3, 1795823110.995, 4, 2)
    assert (panels.step, written.pictures) == (9, 2)


def test_a_second_sync_is_the_first_and_a_running_job_is_synced_again(tmp_path: Path) -> None:
    sweep, target = write_sweep(tmp_path / "a" / "toy-1"), tmp_path / "tb"
    half = write_sweep(tmp_path / "b" / "toy-1", epochs=1)
    record = (sweep / FOLDER / EVENTS_FILE).read_bytes()
    write_tensorboard([sweep], target)
    first = all_of(target)
    write_tensorboard([half], target)
    assert all_of(target) != first
    write_tensorboard([tmp_path / "a"], target)
    assert all_of(target) == first
    assert len(list(target.rglob("*"))) == 1 + 3 + 3
    assert (sweep / FOLDER / EVENTS_FILE).read_bytes() == record
    assert not (sweep / FOLDER / SENT_FILE).exists()


def test_a_training_is_one_run_whether_it_has_ended_or_not(tmp_path: Path) -> None:
    (tmp_path / "toy").mkdir()
    with own_record(tmp_path / "toy") as record:
        run = record.start("toy", params={"metric": "mIoU"}, tags={"encsearch.kind": "training"})
        run.log(report(0))
        write_tensorboard([tmp_path / "toy"], tmp_path / "tb")
        entry = hparams(read(tmp_path / "tb" / "toy"))
        assert entry.keys() == {"start"}
        run.log(report(1))
    write_tensorboard([tmp_path / "toy"], tmp_path / "tb")
    assert [one.step for one in read(tmp_path / "tb" / "toy").Scalars("epoch")] == [3, 6]


def test_a_damaged_record_does_not_hold_up_the_others(sweep: Path, tmp_path: Path) -> None:
    write_sweep(sweep.parent / "toy-2")
    events = sweep / FOLDER / EVENTS_FILE
    events.write_text(events.read_text() + '{"kind": "Unknown"}\n')
    one, other = write_tensorboard([sweep.parent], tmp_path / "tb")
    assert "no event at byte" in one.reason
    assert other.trainings == 3
    assert [path.name for path in (tmp_path / "tb").iterdir()] == ["toy-2"]


def test_a_picture_out_of_the_jobs_folder_is_not_shown(sweep: Path, tmp_path: Path) -> None:
    Image.new("RGB", (4, 2)).save(tmp_path / "private.png")
    with own_record(sweep) as record:
        record.append(Filed("trial0", "../../private.png"))
    (written,) = write_tensorboard([sweep], tmp_path / "tb")
    assert "leads out of the job's folder" in written.reason
    assert not list((tmp_path / "tb").iterdir())


def test_a_mistake_is_one_line_and_nothing_is_written(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / sweep.name).write_text("mine")
    write_sweep(tmp_path / "twin" / sweep.name)
    tb = str(tmp_path / "tb")

    def refuse(*arguments: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(SystemExit) as exit_:
            main(["sync", *map(str, arguments)])
        assert exit_.value.code == 2
        assert sorted(tmp_path.rglob("*")) == before
        out, err = capsys.readouterr()
        assert not out
        assert err.count("\n") == 1
        return err

    assert "is a file" in refuse(str(sweep), "--to", "tensorboard", str(tmp_path / "file"))
    assert "cannot be written" in refuse(str(sweep), "--to", "tensorboard", str(tmp_path / "file" / "below"))
    assert "cannot be written" in refuse(str(sweep), "--to", "tensorboard", str(tmp_path / "taken"))
    assert "neither a job's folder nor one of jobs" in refuse(
        str(tmp_path / "empty"), "--to", "tensorboard", tb
    )
    assert "does not exist" in refuse(str(tmp_path / "nowhere"), "--to", "tensorboard", tb)
    assert "'wandb' is not 'tensorboard'" in refuse(str(sweep), "--to", "wandb", tb)
    assert "leave out --wait" in refuse(str(sweep), "--to", "tensorboard", tb, "--wait", "3")
    # The job's own folder would be replaced.
    assert "would be replaced" in refuse(str(sweep), "--to", "tensorboard", str(sweep.parent))
    assert "2 jobs have this name" in refuse(
        str(sweep), str(tmp_path / "twin" / sweep.name), "--to", "tensorboard", tb
    )
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert "pip install 'encsearch[tensorboard]'" in refuse(str(sweep), "--to", "tensorboard", tb)


def test_the_command_writes_and_sends_nothing(
    sweep: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_:
        main(["sync", str(sweep), "--to", "tensorboard", str(tmp_path / "tb"), "--json"])
    assert exit_.value.code == 0
    (written,) = json.loads(capsys.readouterr().out)
    assert written["trainings"] == 3
    assert written["reason"] == ""
    assert not (sweep / FOLDER / SENT_FILE).exists()
