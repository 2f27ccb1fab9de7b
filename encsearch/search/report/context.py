"""What the winner's context module does, from the files that its training left."""

import base64
from dataclasses import dataclass
from pathlib import Path

from encsearch.diagnostics.records import (
    ASSIGNMENT_FILE,
    CODEWORDS_FILE,
    JSON_FILE,
    LIMITS,
    SCALING_FILE,
    PresenceFigures,
    findings,
    from_json,
)
from encsearch.errors import UserError

TITLES = {
    CODEWORDS_FILE: "Codewords",
    ASSIGNMENT_FILE: "Where the codewords take part",
    SCALING_FILE: "Scaling factors by class",
}


@dataclass(frozen=True)
class ContextSection:
    """`pictures` are (title, data URI)."""

    num_images: int
    findings: tuple[str, ...]
    limits: str
    pictures: tuple[tuple[str, str], ...]
    presence: tuple[PresenceFigures, ...]


def context_section(folder: Path) -> ContextSection:
    """Of the files that `write_diagnostics` left. Raises UserError if one cannot be read."""
    try:
        diagnostics = from_json((folder / JSON_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{folder / JSON_FILE}: the winner's diagnostics cannot be read ({reason})") from None
    return ContextSection(
        diagnostics.num_images,
        findings(diagnostics),
        LIMITS,
        # Which pictures there are depends on the model.
        tuple(
            (title, picture_uri(folder / name)) for name, title in TITLES.items() if (folder / name).exists()
        ),
        diagnostics.presence,
    )


def picture_uri(picture: Path) -> str:
    """A PNG file as a data URI. Raises UserError if it cannot be read."""
    try:
        return png_uri(picture.read_bytes())
    except OSError as error:
        raise UserError(f"{picture}: the report's picture cannot be read ({error.strerror})") from None


def png_uri(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()
