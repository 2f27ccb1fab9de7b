"""The figures that Prometheus gets: from a report, in the dashboard, on the pages; and none without Ray."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from encsearch.reports import Report
from encsearch.runner.monitor import FIGURES, figures_of

ROOT = Path(__file__).parents[2]
METRICS = {"mIoU": 0.25, "throughput/images_per_s": 40.0, "time/data": 0.5, "time/train": 2.0}

# A driver without Ray, as of `encsearch train --in-process`, in a shell that has a cluster's address.
WITHOUT_RAY = """
import os, sys, threading
os.environ["RAY_ADDRESS"] = "127.0.0.1:1"
from encsearch.reports import Report
from encsearch.runner import monitor
monitor.publish_report("job", "run", Report(1, 1, 1.0, {}))
monitor.count_recovery("job")
monitor.publish_unsent("job", lambda: 1 / 0)()
monitor.say_dashboard(exit)
assert "ray" not in sys.modules and threading.active_count() == 1
"""


def test_an_epoch_has_its_score_its_rate_and_the_part_of_it_that_waited() -> None:
    figures = figures_of(Report(3, 60, 2.5, METRICS))
    assert figures == {
        "encsearch_epoch": 3,
        "encsearch_miou": 0.25,
        "encsearch_images_per_second": 40.0,
        "encsearch_data_wait_ratio": 0.25,
    }
    assert figures.keys() < FIGURES.keys()


def test_a_process_without_ray_publishes_nothing_and_does_not_import_it() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_RAY], check=True)


@pytest.mark.parametrize("file", ["cluster/monitoring/grafana.json", "docs/recorded.md"])
def test_every_figure_is_shown_and_explained(file: str) -> None:
    named = set(re.findall(r"\bray_(encsearch_[a-z]+(?:_[a-z]+)*)", (ROOT / file).read_text()))
    assert named == set(FIGURES)


def test_the_dashboard_has_a_panel_for_each_figure() -> None:
    panels = json.loads((ROOT / "cluster/monitoring/grafana.json").read_text())["panels"]
    asked = " ".join(target["expr"] for panel in panels for target in panel["targets"])
    assert sorted(re.findall(r"ray_(\w+)\{", asked)) == sorted(FIGURES)
