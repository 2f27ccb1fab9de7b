"""Numbers, shares, times and lists have one form each, and nothing but encsearch.text gives it."""

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import encsearch
from encsearch.errors import last_line
from encsearch.text import (
    capitalize,
    format_bytes,
    format_clock,
    format_cost,
    format_count,
    format_duration,
    format_estimate,
    format_given,
    format_interval,
    format_list,
    format_metric,
    format_number,
    format_param,
    format_params,
    format_percent,
    format_points,
    format_price,
    format_score,
    format_share,
    format_time,
    printable,
    short_names,
)

FORMS: dict[Callable[..., Any], dict[str, Any]] = {
    format_number: {
        "0": 0,
        "0.01235": 0.0123456,
        "12.34": 12.341,
        "999.6": 999.6,
        "1,000": 999.96,
        "1,234,567": 1234567,
        "-1,235": -1234.6,
        "1e-07": 1e-7,
        "nan": float("nan"),
    },
    format_param: {"0.01235": 0.0123456, "0.02": 0.02, "2": 2.0, "1024": 1024, "poly": "poly", "True": True},
    format_given: {"2": 2.0, "0.123456789": 0.123456789},
    format_score: {"81.42 %": 0.81421, "0.00 %": 0, "100.00 %": 1.0, "-": None},
    format_percent: {"81.42": 0.81421, "-0.50": -0.005, "0.00": -0.00001, "-": None},
    format_share: {
        "0 %": 0,
        "0.31 %": 0.0031,
        "6.25 %": 0.0625,
        "12.3 %": 0.1234,
        "100 %": 1.0,
        "1234 %": 12.34,
    },
    format_duration: {
        "0 s": 0,
        "0.31 s": 0.312,
        "-": float("inf"),
        "45 s": 45.2,
        "99 s": 99.4,
        "2 min": 100,
        "1 h": 3570,
        "1 h 32 min": 5520,
        "23 h 59 min": 86_340,
        "1 d": 86_399,
        "2 d 3 h": 183_600,
    },
    format_clock: {"00:00": 0, "03:07": 187.9, "75:00": 4500},
    format_time: {"-": None},
    format_bytes: {
        "1 byte": 1,
        "512 bytes": 512,
        "24.3 MiB": 24.3 * 2**20,
        "317 MiB": 317 * 2**20,
        "0.977 GiB": 1000 * 2**20,
        "12 GiB": 12 * 2**30,
        "12,345 GiB": 12345 * 2**30,
    },
    capitalize: {"Trial 3 of EncNet": "trial 3 of EncNet"},
}


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [(function, value, text) for function, forms in FORMS.items() for text, value in forms.items()],
)
def test_a_value_has_one_form(function: Callable[[Any], str], value: Any, text: str) -> None:
    assert function(value) == text


def test_counts_agree_with_their_nouns() -> None:
    counts = [format_count(0, "trial"), format_count(1, "trial"), format_count(1234, "trial")]
    assert counts == ["0 trials", "1 trial", "1,234 trials"]
    assert (format_count(1, "class"), format_count(3, "class")) == ("1 class", "3 classes")
    assert (format_count(1234), format_count(0.5, "GPU"), format_count(None)) == ("1,234", "0.5 GPUs", "-")


def test_what_lies_between_scores_is_in_points_with_a_sign_where_asked() -> None:
    assert (format_points(0.0052), format_points(0.0052, signed=True)) == ("0.52 points", "+0.52 points")
    assert (format_percent(0.0052, signed=True), format_share(0.12, signed=True)) == ("+0.52", "+12 %")
    assert format_interval((0.809, 0.8194)) == "[80.90, 81.94]"
    assert format_estimate(0.8142, (0.809, 0.8194)) == "81.42 [80.90, 81.94]"
    assert format_estimate(-0.01, (-0.02, 0.001), signed=True) == "-1.00 [-2.00, +0.10]"
    assert format_estimate(0.8142, None) == "81.42"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        *((name, "50.00 %") for name in ("mIoU", "best/mIoU/things", "IoU/car", "size/small/recall")),
        ("+ SE-loss, 40 epochs", "50.00 %"),
        *((name, "0.5") for name in ("train/loss", "seconds", "system/cpu_utilization_percentage")),
    ],
)
def test_a_metric_is_in_percent_if_it_is_a_score(name: str, text: str) -> None:
    assert format_metric(name, 0.5) == text
    assert format_metric(name, None) == "-"


def test_device_time_changes_its_unit() -> None:
    costs = [format_cost(seconds, "GPU") for seconds in (90, 3600, 4500)]
    assert costs == ["90 GPU-seconds", "1 GPU-hour", "1.25 GPU-hours"]


def test_values_are_written_as_the_command_line_takes_them() -> None:
    assert format_params({"model.num_codewords": 8, "optim.lr": 0.0123456}) == (
        "model.num_codewords=8, optim.lr=0.01235"
    )


def test_lists_end_with_a_word() -> None:
    lists = [format_list(["a"]), format_list(["a", "b"], "or"), format_list(["a", "b", "c"])]
    assert lists == ["a", "a or b", "a, b and c"]


def test_names_are_short_where_that_is_clear() -> None:
    assert short_names(["optim.lr", "a.kind", "b.kind"]) == {
        "optim.lr": "lr",
        "a.kind": "a.kind",
        "b.kind": "b.kind",
    }


PACKAGE = Path(encsearch.__file__).parent
# Of what programs read: the name of a row, and a tag that `encsearch models` reads back.
MACHINE_READ = {"search/ablation/plan.py": ["alpha:g"], "workflow/promote.py": ["draft.figures['mIoU']:.6g"]}


def test_no_other_file_formats_a_number() -> None:
    found = {
        str(path.relative_to(PACKAGE)): formatted
        for path in sorted(PACKAGE.rglob("*.py"))
        if path != PACKAGE / "text.py" and (formatted := list(_formatted(path)))
    }
    assert found == MACHINE_READ
    assert ".format(" not in (PACKAGE / "report" / "report.html").read_text()


def _formatted(path: Path) -> Iterator[str]:
    """What a file formats with decimals, an exponent, a sign or thousands; not 0012, as in names of files."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FormattedValue) and node.format_spec is not None:
            spec = ast.unparse(node.format_spec).removeprefix("f").strip("'\"")
            if re.search(r"[.,%+efg]", spec):
                yield f"{ast.unparse(node.value)}:{spec}"
        elif isinstance(node, ast.Constant) and re.search(r"\{:[^}]*[,%efg]\}", str(node.value)):
            yield str(node.value)


def test_a_price_has_two_digits_and_nothing_is_said_without_one() -> None:
    assert format_price(1204.5) == ", 1,204.50 in money"
    assert format_price(0.119, " a point") == ", 0.12 in money a point"
    assert format_price(None) == ""


def test_what_commands_a_terminal_is_shown_as_an_escape() -> None:
    assert printable("a\x1b[31mb\x07\u202ec\udcff") == r"a\x1b[31mb\x07\u202ec\udcff"
    assert printable("straße, 東京\n\tnext") == "straße, 東京\n\tnext"


@pytest.mark.parametrize("gap", ["\n", " "])  # Ray 2.60 for a task of a trial, and for an actor
def test_the_memory_monitors_last_line_is_not_the_reason(gap: str) -> None:
    said = (
        f"2 worker(s) were killed due to the node running low on memory.{gap}"
        "Memory on the node (IP: 10.0.0.1) was 22.40GB used / 23.45GB limit (0.955)\n"
        "Refer to the documentation on how to address the out of memory issue: ..."
    )
    assert last_line(said) == (
        "the node ran low on memory, and Ray ended a process: "
        "Memory on the node (IP: 10.0.0.1) was 22.40GB used / 23.45GB limit (0.955)"
    )
    assert last_line("Traceback\nValueError: wrong") == "ValueError: wrong"
