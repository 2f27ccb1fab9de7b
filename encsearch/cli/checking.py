"""What `encsearch check` and `encsearch sweep --dry-run` say."""

from dataclasses import asdict
from pathlib import Path

from encsearch.cli.console import emit
from encsearch.config import Config


def show_check(
    config: Config, out: Path, *, measure: bool, trials_at_once: int | None, as_json: bool
) -> None:
    """Check the recipe and print what was found; see `workflow.check`."""
    from encsearch.workflow.check import check, lines

    checked = check(config, out, measure=measure, trials_at_once=trials_at_once)
    search = asdict(checked.search) if checked.search else None
    emit({**asdict(checked.preflight), "search": search}, as_json, "\n".join(lines(config, checked)))
