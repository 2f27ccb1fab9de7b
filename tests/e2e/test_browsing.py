"""`encsearch ui` with MLflow's real server, and `encsearch runs` against what MlflowClient says."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from html import unescape
from pathlib import Path

import psutil
import pytest
from mlflow.entities import Metric, Param, Run
from mlflow.tracking import MlflowClient

from encsearch.reports import RunSummary
from encsearch.tracking.browse.views import TAG
from encsearch.tracking.mlflow import connect
from encsearch.workflow.job import write_summary
from tests.e2e.shell import Shell, read_until
from tests.views import unpacked

ENDED_TIMEOUT_S = 120
FAMILY_TIMEOUT_S = 20  # the server goes with its parent, or right after it
VALUES = {"trial0": (0.1 + 0.2, "0.05"), "trial1": (1 / 3, "0.001"), "trial2": (0.25, "0.01")}
SPACE = '{"optim.lr": {"loguniform": [0.001, 0.1]}}'


@dataclass(frozen=True)
class Store:
    """A store with a sweep of three trials, a second job, and the sweep's folder."""

    shell: Shell
    client: MlflowClient
    experiment_id: str
    sweep: str
    trials: dict[str, str]
    folder: Path

    def run(self, name: str) -> Run:
        return self.client.get_run(self.trials[name])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, empty_database: Path) -> Store:
    home = tmp_path_factory.mktemp("browsing")
    shutil.copy(empty_database, home)
    uri = f"sqlite:///{home / 'mlflow.db'}"
    tracking = connect(uri, "encsearch")
    client, experiment = tracking.client, tracking.experiment_id

    def start(name: str, kind: str, params: dict[str, str], parent: str | None = None) -> str:
        tags = {"encsearch.kind": kind, "data.fingerprint": "f00d"}
        tags |= {"mlflow.parentRunId": parent} if parent else {}
        run = client.create_run(experiment, run_name=name, tags=tags)
        client.log_batch(run.info.run_id, params=[Param(*item) for item in params.items()])
        return str(run.info.run_id)

    sweep = start("toy-1", "sweep", {"name": "toy", "metric": "mIoU", "search.space": SPACE})
    trials = {}
    for name, (value, lr) in VALUES.items():
        trials[name] = start(
            name, "trial", {"optim.lr": lr, "metric": "mIoU", "model.backbone": "tiny"}, sweep
        )
        points = [Metric(key, value, 1_000, 8) for key in ("mIoU", "best/mIoU")]
        client.log_batch(trials[name], metrics=[*points, Metric("train/loss", 1 - value, 1_000, 8)])
        client.set_terminated(trials[name], "FINISHED" if name != "trial2" else "KILLED")
    client.log_text(trials["trial1"], "a: 1\n", "tables/config.yaml")
    client.set_terminated(sweep)
    client.set_terminated(start("other-1", "training", {"metric": "mIoU"}))
    folder = home / "runs" / "toy-1"
    folder.mkdir(parents=True)
    write_summary(
        folder,
        RunSummary(
            kind="sweep",
            name="toy",
            metric="mIoU",
            value=1 / 3,
            fingerprint="f00d",
            store="scenes",
            split="val",
            tracking_uri=uri,
            experiment_id=experiment,
            run="trial1",
            run_id=trials["trial1"],
            bundle="bundle",
            parent_run="toy-1",
            parent_run_id=sweep,
        ),
    )
    shell = Shell(home, {"MLFLOW_TRACKING_URI": uri})
    return Store(shell, client, experiment, sweep, trials, folder)


@dataclass(frozen=True)
class Ui:
    process: subprocess.Popen[str]
    pages: dict[str, str]
    index: str
    port: int

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


@pytest.fixture
def ui(store: Store) -> Iterator[Ui]:
    """`encsearch ui FOLDER` that serves."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = store.shell.start("encsearch", "ui", str(store.folder), "--port", str(port))
    read_until(process, "stderr", lambda line: "serving until" in line)
    (line,) = said_on_stdout(process)
    index = line.removeprefix("pages: ")
    with urllib.request.urlopen(index, timeout=ENDED_TIMEOUT_S) as reply:
        links = re.findall('<a href="(.*?)">(.*?)</a>', reply.read().decode())
    found = Ui(process, {unescape(name): unescape(link) for link, name in links}, index, port)
    family = found.family()
    yield found
    process.kill()
    process.communicate()
    assert psutil.wait_procs(family, timeout=FAMILY_TIMEOUT_S)[1] == []


def said_on_stdout(process: subprocess.Popen[str]) -> list[str]:
    """What lies in the pipe now; the process goes on."""
    assert process.stdout is not None
    return os.read(process.stdout.fileno(), 65536).decode().splitlines()


def status(url: str, host: str | None = None) -> int:
    headers = {"Host": host} if host else {}
    try:
        with urllib.request.urlopen(
            urllib.request.Request(url, headers=headers), timeout=ENDED_TIMEOUT_S
        ) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_the_pages_answer_on_loopback_alone_and_end_with_the_command(store: Store, ui: Ui) -> None:
    assert list(ui.pages) == ["sweep", "winner", "trials", "trials, charts", "trials, the best compared"]
    assert {status(page) for page in ui.pages.values()} == {200}
    assert ui.pages["winner"].startswith(f"http://127.0.0.1:{ui.port}/")
    assert store.trials["trial1"] in ui.pages["winner"]
    assert status(ui.pages["sweep"], host="evil.example") == 403
    assert status(ui.index) == 200
    assert status(ui.index, host="evil.example") == 403
    assert status(ui.index + "other") == 404
    (address,) = {
        one.laddr.ip for process in ui.family() for one in process.net_connections() if one.status == "LISTEN"
    }
    assert address == "127.0.0.1"
    # The links open a view that the experiment holds, of this sweep's trials.
    tags = store.client.get_experiment(store.experiment_id).tags
    view = unpacked(json.loads(tags[f"{TAG}{store.sweep}-trials"])["state"])
    assert f"viewStateShareKey={store.sweep}-trials" in ui.pages["trials"]
    assert "params.`optim.lr`" in view["selectedColumns"]
    shown = store.client.search_runs(
        [store.experiment_id], view["searchFilter"], order_by=[view["orderByKey"]]
    )
    assert {run.info.run_id for run in shown} == set(store.trials.values())

    taken = store.shell.refusal("ui", "--port", str(ui.port), code=3)
    assert f"port {ui.port}: Address already in use; try another --port" in taken

    family = ui.family()
    ui.process.send_signal(signal.SIGTERM)
    assert ui.process.wait(ENDED_TIMEOUT_S) == 128 + signal.SIGTERM
    assert psutil.wait_procs(family, timeout=FAMILY_TIMEOUT_S)[1] == []


def test_a_killed_command_leaves_no_server(ui: Ui) -> None:
    family = ui.family()
    assert len(family) == 2  # MLflow's command and its worker
    ui.process.kill()
    assert psutil.wait_procs(family, timeout=FAMILY_TIMEOUT_S)[1] == []


def test_runs_say_what_mlflow_says(store: Store) -> None:
    listed = json.loads(store.shell.encsearch("runs", "list", "--json").stdout)
    assert [(run["name"], run["kind"]) for run in listed] == [("other-1", "training"), ("toy-1", "sweep")]
    ranked = store.shell.encsearch("runs", "list", "--sweep", str(store.folder), "--json").stdout
    found = json.loads(ranked)
    assert [run["name"] for run in found] == ["trial1", "trial0", "trial2"]
    for run in found:
        data = store.run(run["name"]).data
        assert (run["metrics"], run["params"]) == (data.metrics, data.params)
    conditions = ("params.`optim.lr` != '0.05'", "--kind", "trial", "--status", "FINISHED")
    text = store.shell.encsearch("runs", "list", *conditions, "--columns", "name,optim.lr").stdout
    assert [line.split() for line in text.splitlines()[2:]] == [["trial1", "0.001"]]


def test_one_run_is_told_in_full(store: Store) -> None:
    run_id = store.trials["trial1"]
    told = json.loads(store.shell.encsearch("runs", "show", run_id[:12], "--json").stdout)
    assert told["run_id"] == run_id
    assert told["set_params"] == {"optim.lr": "0.001", "model.backbone": "tiny"}
    assert told["lineage"] == {"data.fingerprint": "f00d"}
    assert told["artifacts"] == {"tables/config.yaml": 5}
    sweep = json.loads(store.shell.encsearch("runs", "show", "toy-1", "--json").stdout)
    assert {child["run_id"] for child in sweep["children"]} == set(store.trials.values())


def test_runs_side_by_side_differ_in_what_is_shown(store: Store) -> None:
    seen = json.loads(store.shell.encsearch("runs", "compare", *VALUES, "--json").stdout)
    assert seen["params"] == {"optim.lr": [lr for _, lr in VALUES.values()]}
    assert seen["metrics"]["best/mIoU"] == [value for value, _ in VALUES.values()]
    assert seen["best"]["best/mIoU"] == seen["best"]["train/loss"] == [store.trials["trial1"]]


def test_what_is_not_there_is_one_line(store: Store) -> None:
    assert "no run nowhere" in store.shell.refusal("runs", "show", "nowhere", code=2)
    assert "filter" in store.shell.refusal("runs", "list", "metrics.x >", code=2)
