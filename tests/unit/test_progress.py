"""What is said on stderr while a command works, on a terminal and anywhere else."""

import io
import re
import time

import pytest
from rich.console import Console
from rich.live import Live

from encsearch.cli.progress import LiveProgress, progress
from encsearch.config import Config
from encsearch.reports import Report
from encsearch.search.trials import TrialEvent
from encsearch.workflow.progress import LineProgress


def test_a_long_phase_is_said_and_a_short_one_is_not(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LineProgress, "PHASE_S", 0.2)
    with progress("looking"):
        pass
    with progress("waiting") as shown:
        time.sleep(0.6)
        shown.phase("going on")
        shown.say("an event")
        time.sleep(0.6)

    assert [line[8:] for line in capsys.readouterr().err.splitlines()] == ["waiting", "an event"]


def test_a_terminal_shows_what_goes_on_until_the_next_event(toy_config: Config) -> None:
    shown, screen = LiveProgress(), io.StringIO()
    report = Report(epoch=1, step=3, seconds=1.0, metrics={"mIoU": 0.5, "train/loss": 1.0})
    with Live(console=Console(file=screen), get_renderable=shown.render, auto_refresh=False) as live:
        shown.show_on(live)
        shown.phase("starting Ray")
        assert "starting Ray ... 00:00" in drawn(shown)
        shown.step(3, 6, toy_config)
        assert "starting Ray" not in drawn(shown)
        assert "toy trains: step 3 of 6" in drawn(shown)
        shown.step(4, 6, toy_config)
        assert re.search(r"step 4 of 6; .* s to go", drawn(shown))
        shown.trial(TrialEvent(7, {"optim.lr": 0.1}, "RUNNING", 1, 0.5, None), toy_config)
        assert all(text in drawn(shown) for text in ("optim.lr=0.1", "1/2", "50.00", "mIoU %"))
        shown.epoch("toy", report, toy_config)

    assert "toy epoch 1/2: mIoU 50.00 %" in screen.getvalue(), "it stays"


def drawn(shown: LiveProgress) -> str:
    screen = io.StringIO()
    Console(file=screen, width=120).print(shown.render())
    return screen.getvalue()
