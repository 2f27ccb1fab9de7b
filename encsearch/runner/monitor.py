"""A job's figures among Ray's metrics, for Prometheus and Grafana (cluster/README.md, "Seen from outside").

The driver publishes them, on a cluster alone: nobody watches a Ray that the command started, and without Ray,
which is not imported here, there is nothing. A figure that cannot be published is left out, and no job ends
for it.
"""

import logging
import os
import sys
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

from encsearch.reports import Report

# "job" is a label of Prometheus' own, which would rename this one.
JOB, RUN = "encsearch_job", "encsearch_run"
FIGURES: Mapping[str, str] = MappingProxyType(
    {
        "encsearch_epoch": "the last reported epoch",
        "encsearch_miou": "mIoU on the validation images after that epoch, in [0, 1]",
        "encsearch_images_per_second": "training images of all workers by the seconds of training",
        "encsearch_data_wait_ratio": "part of the seconds of training in which workers waited for images",
        # A gauge, since Ray's counters appear with their first event, and a calm job would have none.
        "encsearch_recoveries": "how often lost workers or trials of the job have started again",
        "encsearch_unsent_records": "events of the job's record that MLflow does not have yet",
    }
)
# Ray 2.60 collects a process' figures as often.
INTERVAL_S = 10.0

# By job, over all that this process runs on Ray for it.
_recoveries: Counter[str] = Counter()


def publish_report(job: str, run: str, report: Report) -> None:
    """Publish the figures of a training's newest epoch."""
    _publish(lambda: figures_of(report), {JOB: job, RUN: run})


def count_recovery(job: str, started_again: int = 1) -> None:
    """Publish one more recovery, or that there was none so far."""
    _recoveries[job] += started_again
    _publish(lambda: {"encsearch_recoveries": _recoveries[job]}, {JOB: job})


def publish_unsent(job: str, count: Callable[[], int]) -> Callable[[], None]:
    """Publish what `count` returns every INTERVAL_S, in a thread, until the returned function is called."""
    stop = threading.Event()

    def keep_publishing() -> None:
        while True:
            _publish(lambda: {"encsearch_unsent_records": count()}, {JOB: job})
            if stop.wait(INTERVAL_S):
                return

    if _is_on_cluster():
        threading.Thread(target=keep_publishing, name="unsent", daemon=True).start()
    return stop.set


def say_dashboard(say: Callable[[str], None]) -> None:
    """Say where a cluster's dashboard is, if it has one."""
    # Ray 2.60 tells it publicly only to who connects, which may be done already; a client of Ray has no node.
    node = sys.modules["ray"]._private.worker._global_node if _is_on_cluster() else None
    if node and node.webui_url:
        say(f"Ray's dashboard: http://{node.webui_url}")


def figures_of(report: Report) -> dict[str, float]:
    """The figures of an epoch by their names in FIGURES, as far as the report has them."""
    metrics = report.metrics
    figures = {
        "encsearch_epoch": report.epoch,
        "encsearch_miou": metrics.get("mIoU"),
        "encsearch_images_per_second": metrics.get("throughput/images_per_s"),
    }
    if metrics.get("time/train") and "time/data" in metrics:
        figures["encsearch_data_wait_ratio"] = metrics["time/data"] / metrics["time/train"]
    return {name: figure for name, figure in figures.items() if figure is not None}


def _is_on_cluster() -> bool:
    return "RAY_ADDRESS" in os.environ and "ray" in sys.modules and bool(sys.modules["ray"].is_initialized())


def _publish(figures: Callable[[], Mapping[str, float]], tags: dict[str, str]) -> None:
    if not _is_on_cluster():
        return
    try:
        for name, value in figures().items():
            _gauge(name, *tags).set(value, tags)
    except Exception as error:  # Ray's of several kinds, or of a damaged file, of which others speak
        logging.getLogger(__name__).debug("a figure is not published: %s", error)


@cache
def _gauge(name: str, *tags: str) -> Any:
    from ray.util.metrics import Gauge

    return Gauge(name, FIGURES[name], tags)
