"""What `encsearch check` and `encsearch sweep --dry-run` say."""

from dataclasses import asdict
from typing import TYPE_CHECKING

from encsearch.cli.console import emit
from encsearch.config import Config

if TYPE_CHECKING:
    from encsearch.workflow.check import Checked


def show(config: Config, checked: "Checked", as_json: bool) -> None:
    """Print what was found; see `workflow.check`."""
    from encsearch.workflow.check import lines

    search = asdict(checked.search) if checked.search else None
    emit({**asdict(checked.preflight), "search": search}, as_json, "\n".join(lines(config, checked)))
