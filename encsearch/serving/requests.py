"""A request for a prediction, judged without any web framework: the image in it, or why it is refused."""

import json
from dataclasses import dataclass

from encsearch.data.codec import image_size
from encsearch.errors import UserError
from encsearch.serving.pictures import COLUMN, base64_bytes
from encsearch.text import format_count

IMAGE_TYPES = ("image/png", "image/jpeg")
JSON_TYPE = "application/json"


class RequestRefusedError(Exception):
    """A request that is not answered: the HTTP status and one line that says why."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """What one request may bring: bytes of its body, pixels of its image."""

    max_bytes: int
    max_pixels: int


def media_type(content_type: str | None) -> str:
    """The body's type, by its header. Raises RequestRefusedError 415."""
    found = (content_type or "").partition(";")[0].strip().lower()
    if found not in (*IMAGE_TYPES, JSON_TYPE):
        raise RequestRefusedError(
            415, f"Content-Type is {found or 'missing'}; send image/png, image/jpeg or {JSON_TYPE}"
        )
    return found


def check_length(content_length: str | None, limits: Limits) -> None:
    """Judge the announced length before a byte of the body is read. Raises RequestRefusedError 400 or 413.

    A body that announces none is counted by `check_received` while it arrives.
    """
    if content_length is None:
        return
    if not content_length.isdecimal():
        raise RequestRefusedError(
            400, f"Content-Length is {content_length[:20]!r}, which is no number of bytes"
        )
    check_received(int(content_length), limits)


def check_received(num_bytes: int, limits: Limits) -> None:
    """Raises RequestRefusedError 413."""
    if num_bytes > limits.max_bytes:
        given, allowed = format_count(num_bytes, "byte"), format_count(limits.max_bytes)
        raise RequestRefusedError(413, f"the body has {given} or more, but {allowed} are allowed")


def image_file(media: str, body: bytes, limits: Limits) -> bytes:
    """The image file in a body, whose header was read and whose pixels were not.

    Raises RequestRefusedError 400 for what holds no image, 422 for too many pixels.
    """
    try:
        data = _from_json(body) if media == JSON_TYPE else body
        height, width = image_size(data, "the image")
    except UserError as error:
        raise RequestRefusedError(400, str(error)) from None
    if height * width > limits.max_pixels:
        allowed = format_count(limits.max_pixels)
        raise RequestRefusedError(
            422, f"the image has {width}x{height} pixels, but {allowed} are allowed; send it smaller"
        )
    return data


def wants_png(accept: str | None) -> bool:
    """Whether the label map itself is asked for instead of JSON."""
    return "image/png" in {part.partition(";")[0].strip().lower() for part in (accept or "").split(",")}


def _from_json(body: bytes) -> bytes:
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        raise UserError('the body: not JSON; send {"image": "..."} with the file as base64') from None
    text = values.get(COLUMN) if isinstance(values, dict) else None
    if not isinstance(text, str):
        raise UserError('the body: no text under "image"; send {"image": "..."} with the file as base64')
    return base64_bytes(text, "the image")
