"""The addresses of MLflow's pages, the command that serves a store, and the views of a job's runs."""

import json
import shlex
import socket
import subprocess
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from encsearch.errors import PreflightError, UserError
from encsearch.reports import RunSummary
from encsearch.search.trials import Trial
from encsearch.tracking.browse.links import (
    allowed_hosts,
    children_link,
    compare_link,
    server_command,
    ui_base,
    ui_command,
    view_link,
)
from encsearch.tracking.browse.ui_server import UiServer, require_port
from encsearch.tracking.browse.views import MAX_NAMED, TAG, View, build_state, pack_state, plan_tags
from encsearch.tracking.outbox.forward import SENT_FILE, Sent
from encsearch.tracking.outbox.record import FOLDER
from encsearch.workflow.browse import find_job, find_links
from encsearch.workflow.job import write_summary
from encsearch.workflow.sweep.story import MAX_COMPARED, _compared
from tests.views import unpacked

PASSWORDS = ["postgresql://me:pw123@db/mlflow", "postgresql://db/mlflow?password=pw123"]
CHILDREN = "tags.`mlflow.parentRunId` = 'p1'"
PARAMS = ("model.num_codewords", "optim.lr")
VIEW = View("p1", "trials of toy-1", CHILDREN, "mIoU", PARAMS, ("encsearch.state",))


def summary(**changed: Any) -> RunSummary:
    values = {
        "kind": "sweep",
        "name": "toy",
        "metric": "mIoU",
        "value": 0.5,
        "fingerprint": "f",
        "split": "val",
    }
    values |= {"store": "s", "tracking_uri": "http://tracker", "experiment_id": "7", "bundle": "b"}
    values |= {"run": "trial3-seed1", "run_id": "best", "parent_run": "toy-1", "parent_run_id": "own"}
    return RunSummary(**{**values, **changed})


def test_links_are_quoted_and_show_no_secrets() -> None:
    base = ui_base("https://me:pw@tracker/")
    assert base == "https://tracker"
    assert compare_link(base, "7", ["a", "b"]) == (
        "https://tracker/#/compare-runs?runs=%5B%22a%22%2C%22b%22%5D&experiments=%5B%227%22%5D&workflowType=machine_learning"
    )
    assert "orderByKey=metrics.%60best%2FmIoU%60" in children_link(base, "7", "p", "mIoU")


def test_a_local_store_comes_with_the_command_that_opens_it() -> None:
    uri = "sqlite:////my runs/mlflow.db"
    command = ui_command(uri, port=5001)
    assert command is not None
    words = shlex.split(command)
    assert words[words.index("--backend-store-uri") + 1] == uri
    assert ui_base(uri, port=5001) == "http://127.0.0.1:5001"
    assert ui_base(uri, port=5001, host="::1") == "http://[::1]:5001"
    assert ui_command("http://tracker:5000") is None


@pytest.mark.parametrize("uri", PASSWORDS)
def test_a_password_is_in_no_argument(uri: str) -> None:
    command = server_command(uri, 5000, "127.0.0.1")
    assert "pw123" not in " ".join(command.arguments)
    assert command.environment["MLFLOW_BACKEND_STORE_URI"] == uri
    printed = ui_command(uri)
    assert printed is not None
    assert "pw123" not in printed
    assert 'MLFLOW_BACKEND_STORE_URI="$MLFLOW_TRACKING_URI"' in printed


def test_a_server_on_loopback_answers_to_no_other_name() -> None:
    assert allowed_hosts("127.0.0.1", ["box"]) == ["localhost", "localhost:*", "127.0.0.1", "127.0.0.1:*"]
    assert allowed_hosts("localhost", ["box"]) == allowed_hosts("127.0.0.1")
    assert allowed_hosts("::1", ["box"]) == [*allowed_hosts("127.0.0.1"), "[::1]", "[[]::1]:*"]
    assert {"box", "box:*", "0.0.0.0:*"} <= set(allowed_hosts("0.0.0.0", ["box"]))


def test_a_taken_port_is_refused_in_one_line() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(PreflightError, match=f"port {port}: Address already in use; try another --port"):
            require_port("127.0.0.1", port)
    require_port("127.0.0.1", port)


def test_an_address_of_another_machine_is_refused_in_one_line() -> None:
    with pytest.raises(PreflightError, match=r"cannot listen at 192\.0\.2\.1, port 5000: .+, or --host 127"):
        require_port("192.0.2.1", 5000)


def test_a_view_opens_with_what_was_searched_and_the_best_first() -> None:
    values = build_state(VIEW)
    assert values["selectedColumns"][:4] == [
        "metrics.`best/mIoU`",
        "tags.`encsearch.state`",
        "params.`model.num_codewords`",
        "params.`optim.lr`",
    ]
    assert (values["orderByKey"], values["orderByAsc"]) == ("metrics.`best/mIoU`", False)
    assert values["searchFilter"] == CHILDREN
    kinds = [chart["type"] for chart in values["compareRunCharts"]]
    assert kinds == ["PARALLEL", "LINE", "LINE", "BAR"]
    sections = {section["uuid"] for section in values["compareRunSections"]}
    assert {chart["metricSectionId"] for chart in values["compareRunCharts"]} <= sections


def test_a_view_can_open_grouped() -> None:
    grouped = build_state(replace(VIEW, grouped_by="encsearch.configuration"))["groupBy"]
    assert grouped["groupByKeys"] == [{"mode": "tag", "groupByData": "encsearch.configuration"}]
    assert build_state(VIEW)["groupBy"] is None


def test_a_view_without_params_has_no_parallel_coordinates() -> None:
    bare = build_state(replace(VIEW, params=()))
    assert "PARALLEL" not in [chart["type"] for chart in bare["compareRunCharts"]]


def test_a_view_is_stored_once_as_the_page_reads_it() -> None:
    tags = plan_tags(VIEW, {}, now_ms=5)
    (envelope,) = (json.loads(value) for value in tags.values())
    assert set(tags) == {TAG + "p1"}
    assert (envelope["name"], envelope["createdAt"]) == ("trials of toy-1", 5)
    assert unpacked(envelope["state"]) == build_state(VIEW)
    assert plan_tags(VIEW, tags, now_ms=6) == {}


def test_a_view_of_more_params_replaces_the_one_before() -> None:
    more = replace(VIEW, params=(*VIEW.params, "loss.se_weight"))
    assert set(plan_tags(more, plan_tags(VIEW, {}, now_ms=5), now_ms=6)) == {TAG + "p1"}


def test_a_view_fits_into_a_tag() -> None:
    paths = tuple(f"model.some_long_parameter_{i}" for i in range(8))
    (value,) = plan_tags(replace(VIEW, name="n" * 120, params=paths), {}, now_ms=5).values()
    assert len(value) < 5000  # MLflow's limit


def test_the_menu_keeps_room_for_views_that_people_save() -> None:
    """MLflow's page takes 40 names; the oldest of ours lose theirs, and open by their links as before."""
    tags = {TAG + "mine": json.dumps({"name": "my view", "createdAt": 0, "state": pack_state({})})}
    for i in range(MAX_NAMED + 3):
        tags |= plan_tags(replace(VIEW, key=f"p{i}", filter=f"parent {i}"), tags, now_ms=i)
    named = [key for key, value in tags.items() if value.startswith("{")]
    assert len(named) == MAX_NAMED + 1
    assert TAG + "mine" in named
    assert unpacked(tags[TAG + "p0"])["searchFilter"] == "parent 0"


def test_a_view_link_holds_no_filter_since_the_page_would_take_that_instead() -> None:
    link = view_link("http://x", "7", "p1-trials")
    assert link.endswith("&viewStateShareKey=p1-trials")
    assert "searchFilter" not in link
    assert "orderBy" not in link


def test_a_finished_sweep_is_its_own_run_and_the_winners(tmp_path: Path) -> None:
    write_summary(tmp_path, summary())
    job = find_job(tmp_path)
    assert (job.run_id, job.best_run_id, job.has_children) == ("own", "best", True)


def test_runs_that_were_sent_later_are_found_by_their_names(tmp_path: Path) -> None:
    write_summary(tmp_path, summary(run_id=None, parent_run_id=None))
    note_sent(tmp_path, {"toy-1": "own", "trial3-seed1": "best"})
    job = find_job(tmp_path)
    assert (job.run_id, job.best_run_id) == ("own", "best")


def test_a_job_that_runs_is_the_run_that_it_began_first(tmp_path: Path) -> None:
    note_sent(tmp_path, {"toy-1": "own", "trial0": "t0"})
    job = find_job(tmp_path)
    assert (job.run_id, job.best_run_id, job.uri) == ("own", None, "sqlite:////m.db")


def test_of_a_job_that_no_store_has_the_way_out_is_told(tmp_path: Path) -> None:
    write_summary(tmp_path, summary(run_id=None, parent_run_id=None))
    with pytest.raises(UserError, match="encsearch sync"):
        find_job(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        find_job(tmp_path / "elsewhere")


def test_links_are_named_without_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    write_summary(tmp_path, summary())
    links = find_links(tmp_path)
    assert list(links) == ["open MLflow", "trials", "best run"]
    assert links["best run"].startswith("http://tracker/#/experiments/7/runs/best")


def test_a_server_that_ends_says_its_last_line(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("one\nport is gone\n\n")
    process = subprocess.Popen(["false"])
    process.wait()
    with pytest.raises(PreflightError, match="ended at its start: port is gone"):
        UiServer("http://127.0.0.1:9", process, log).wait_until_up()


def note_sent(folder: Path, runs: dict[str, str]) -> None:
    (folder / FOLDER).mkdir()
    sent = Sent(9, "sqlite:////m.db", "7", runs)
    (folder / FOLDER / SENT_FILE).write_text(json.dumps(asdict(sent)))


def test_a_link_compares_the_best_of_very_many_trials_and_says_so() -> None:
    trials = [Trial(n, {}, "PRUNED", n / 1000, (), 1.0) for n in range(MAX_COMPARED + 2)]
    run_ids = {f"trial{n}": f"id{n}" for n in range(1, MAX_COMPARED + 2)}
    assert _compared(trials[:3], run_ids) == ("comparison", ["id1", "id2"])
    name, compared = _compared(trials, run_ids)
    assert name == "comparison of the best 500 of 501 trials"
    assert len(compared) == MAX_COMPARED
    assert compared[0] == f"id{MAX_COMPARED + 1}"
    assert "id1" not in compared
