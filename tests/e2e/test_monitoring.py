"""A job as Prometheus sees it: a real one scrapes a real Ray, and answers what the Grafana dashboard asks."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import urlencode
from urllib.request import urlopen

import psutil
import pytest

from encsearch.reports import REPORTS_FILE, distinct_reports
from encsearch.runner.monitor import FIGURES, figures_of
from tests.e2e.head import Head, free_ports, running_head
from tests.e2e.shell import COMMAND_TIMEOUT_S, Shell, read_until

pytestmark = pytest.mark.own_ray

MONITORING = Path(__file__).parents[2] / "cluster" / "monitoring"
START_TIMEOUT_S = 60
# Of Ray and of Prometheus, in place of 10 s.
EVERY_S = 1
OFTEN = {"RAY_metrics_report_interval_ms": str(1000 * EVERY_S)}
EPOCHS = 4


@dataclass(frozen=True)
class Prometheus:
    url: str

    def ask(self, path: str, **values: Any) -> Any:
        with urlopen(f"{self.url}/api/v1/{path}?{urlencode(values)}", timeout=10) as answer:
            return json.load(answer)["data"]

    def series(self, expression: str, start: float) -> list[tuple[dict[str, str], list[float]]]:
        """What a panel shows from `start` on: the labels of each line, and its values."""
        found = self.ask("query_range", query=expression, start=start, end=time.time(), step=EVERY_S)
        return [(line["metric"], [float(value) for _, value in line["values"]]) for line in found["result"]]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    if not shutil.which("prometheus"):
        pytest.skip("no Prometheus is installed (Debian's package prometheus)")
    with running_head(tmp_path_factory.mktemp("head"), num_cpus=3, variables=OFTEN) as head:
        yield head


@pytest.fixture
def prometheus(head: Head, tmp_path: Path) -> Iterator[Prometheus]:
    """It has the repository's settings, with the head's folder and shorter intervals."""
    settings = (MONITORING / "prometheus.yml").read_text()
    subprocess.run(["promtool", "check", "config", MONITORING / "prometheus.yml"], check=True)
    path = tmp_path / "prometheus.yml"
    path.write_text(
        re.sub(r"interval: \d+s", f"interval: {EVERY_S}s", settings).replace("/tmp/ray", str(head.temp))
    )
    with _running_prometheus(path) as server:
        yield server


def test_prometheus_and_the_dashboard_show_a_training_and_its_recovery(
    shell: Shell, head: Head, prometheus: Prometheus
) -> None:
    start = time.time()
    seen = Shell(shell.folder, {**head.variables, **OFTEN})
    training = seen.start(
        "encsearch",
        "train",
        "toy.yaml",
        "--name",
        "seen",
        f"train.epochs={EPOCHS}",
        "train.steps_per_epoch=60",
    )
    said = read_until(training, "stderr", lambda line: "toy epoch 1/" in line)
    _kill_a_worker(head)
    _, rest = training.communicate(timeout=COMMAND_TIMEOUT_S)

    assert training.returncode == 0, said + rest
    assert f"Ray's dashboard: {head.dashboard}" in said
    last = distinct_reports(shell.folder / "runs" / "seen" / "checkpoints" / REPORTS_FILE)[-1]
    expected = {**figures_of(last), "encsearch_recoveries": 1, "encsearch_unsent_records": 0}
    assert expected.keys() == FIGURES.keys()
    assert expected["encsearch_images_per_second"] > 0
    assert 0 <= expected["encsearch_data_wait_ratio"] <= 1
    for name, value in expected.items():
        ((labels, values),) = prometheus.series(f"ray_{name}", start)
        assert values[-1] == pytest.approx(value), name
        assert labels["encsearch_job"] == "seen"
        assert labels.get("encsearch_run", "seen") == "seen"
    for expression in _expressions():
        ((labels, values),) = prometheus.series(expression.replace("$job", "seen"), start)
        assert labels["encsearch_job"] == "seen"
        assert values[-1] in map(pytest.approx, expected.values())
    found = re.fullmatch(r"label_values\((\w+), (\w+)\)", _variable("job"))
    assert found
    assert prometheus.ask(f"label/{found[2]}/values", **{"match[]": found[1]}) == ["seen"]


def _expressions() -> list[str]:
    dashboard = json.loads((MONITORING / "grafana.json").read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def _variable(name: str) -> str:
    variables = json.loads((MONITORING / "grafana.json").read_text())["templating"]["list"]
    (query,) = (variable["query"]["query"] for variable in variables if variable["name"] == name)
    return str(query)


def _kill_a_worker(head: Head) -> None:
    workers = [
        process
        for process in psutil.Process(head.pid).children(recursive=True)
        if "RayTrainWorker" in process.name() + " ".join(process.cmdline())
    ]
    os.kill(workers[-1].pid, signal.SIGKILL)


@contextmanager
def _running_prometheus(settings: Path) -> Iterator[Prometheus]:
    """One that answers, with its data beside `settings`."""
    address = f"127.0.0.1:{free_ports(1)[0]}"
    log = settings.with_suffix(".log")
    command = ["prometheus", f"--config.file={settings}", f"--web.listen-address={address}"]
    with open(log, "w") as output:
        process = subprocess.Popen(
            [*command, f"--storage.tsdb.path={settings.parent / 'data'}"], stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _is_ready(f"http://{address}"):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield Prometheus(f"http://{address}")
    finally:
        process.terminate()
        process.wait()


def _is_ready(url: str) -> bool:
    try:
        with urlopen(f"{url}/-/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False
