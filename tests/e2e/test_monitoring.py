"""A job as Prometheus sees it: a real one scrapes a real Ray, and answers what the Grafana dashboard asks."""

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
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
TIMEOUT_S = 60
# Of Ray and of Prometheus, in place of 10 s.
EVERY_S = 1
OFTEN = {"RAY_metrics_report_interval_ms": str(1000 * EVERY_S)}
EPOCHS = 4
UNSENT = "encsearch_unsent_records"


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


def test_prometheus_and_the_dashboard_show_a_training_its_recovery_and_its_unsent_records(
    shell: Shell, head: Head, prometheus: Prometheus
) -> None:
    start = time.time()
    overrides = (f"train.epochs={EPOCHS}", "train.steps_per_epoch=60")
    training = Shell(shell.folder, {**head.variables, **OFTEN}).start(
        "encsearch", "train", "toy.yaml", "--name", "seen", *overrides
    )
    said = read_until(training, "stderr", lambda line: "toy epoch 1/" in line)
    sender = _find(training.pid, "encsearch.tracking.outbox.sender")
    sender.suspend()
    _find(head.pid, "RayTrainWorker").kill()
    _wait(lambda: any(max(values) for _, values in prometheus.series(f"ray_{UNSENT}", start)))
    sender.resume()
    _, rest = training.communicate(timeout=COMMAND_TIMEOUT_S)

    assert training.returncode == 0, said + rest
    assert f"Ray's dashboard: {head.dashboard}\n" in said
    last = distinct_reports(shell.folder / "runs" / "seen" / "checkpoints" / REPORTS_FILE)[-1]
    expected = {**figures_of(last), "encsearch_recoveries": 1}
    assert expected["encsearch_epoch"] == EPOCHS
    assert expected["encsearch_images_per_second"] > 0
    assert 0 <= expected["encsearch_data_wait_ratio"] <= 1
    assert expected.keys() | {UNSENT} == FIGURES.keys()
    for expression in _expressions():
        (name,) = re.findall(r"ray_(\w+)\{", expression)
        ((labels, values),) = prometheus.series(expression.replace("$job", "seen"), start)
        of_run = {"encsearch_run": "seen"} if name in figures_of(last) else {}
        assert labels == {"encsearch_job": "seen", **of_run}
        if name == UNSENT:
            assert min(values) == 0, "before the job had written anything"
        else:
            assert values[-1] == pytest.approx(expected[name]), name
    found = re.fullmatch(r"label_values\((\w+), (\w+)\)", _variable("job"))
    assert found
    assert prometheus.ask(f"label/{found[2]}/values", **{"match[]": found[1]}) == ["seen"]


def _expressions() -> list[str]:
    """One for each figure, as a unit test says."""
    dashboard = json.loads((MONITORING / "grafana.json").read_text())
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def _variable(name: str) -> str:
    variables = json.loads((MONITORING / "grafana.json").read_text())["templating"]["list"]
    (query,) = (variable["query"]["query"] for variable in variables if variable["name"] == name)
    return str(query)


def _find(ancestor: int, name: str) -> psutil.Process:
    """A process below `ancestor` with the name, or with it in its command."""
    below = psutil.Process(ancestor).children(recursive=True)
    return next(found for found in below if name in " ".join((found.name(), *found.cmdline())))


def _wait(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.2)


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
        _wait(lambda: process.poll() is not None or _is_ready(f"http://{address}"))
        assert process.poll() is None, log.read_text()
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
