"""MLflow's stored views, read."""

import base64
import json
import zlib
from typing import Any

from encsearch.tracking.browse.views import MARK


def unpacked(text: str) -> dict[str, Any]:
    """The inverse of `pack_state`."""
    values: dict[str, Any] = json.loads(zlib.decompress(base64.b64decode(text.removeprefix(MARK))))
    return values
