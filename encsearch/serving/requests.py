"""Check a request for a prediction, without any web framework: return its image, or refuse it."""

import json
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import File, FormParser, parse_options_header

from encsearch.errors import UserError
from encsearch.serving.pictures import COLUMN, base64_bytes, count_pixels
from encsearch.text import format_count

IMAGE_TYPES = ("image/png", "image/jpeg")
JSON_TYPE = "application/json"
FORM_TYPE = "multipart/form-data"
MAX_PARTS = 100  # of a form; parsing them takes time


class RequestRefusedError(Exception):
    """A refused request: the HTTP status and one line with the reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class Limits:
    """The limits of one request: bytes of its body, pixels of its image, and seconds.

    `timeout_s` is the time for the body to come, and again for the answer to a body that has come.
    """

    max_bytes: int
    max_pixels: int
    timeout_s: float


@dataclass(frozen=True)
class ImageFile:
    """An image file that fits the limits, and its number of pixels by its header."""

    data: bytes
    num_pixels: int


def media_type(content_type: str | None) -> str:
    """Return the type of the body, from its header. Raises RequestRefusedError 415."""
    found = (content_type or "").partition(";")[0].strip().lower()
    if found not in (*IMAGE_TYPES, JSON_TYPE, FORM_TYPE):
        raise RequestRefusedError(
            415,
            f"Content-Type is {found or 'missing'}; send image/png, image/jpeg, {FORM_TYPE} or {JSON_TYPE}",
        )
    return found


def check_length(content_length: str | None, limits: Limits) -> None:
    """Check the announced length before a byte of the body is read. Raises RequestRefusedError 400 or 413.

    `check_received` counts a body without an announced length while it arrives.
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


def image_file(content_type: str | None, body: bytes, limits: Limits) -> ImageFile:
    """Return the image file in a body of this Content-Type; reads its header but not its pixels.

    Raises RequestRefusedError 400 for a body without an image, 422 for too many pixels.
    """
    try:
        match media_type(content_type):
            case "application/json":
                data = _from_json(body)
            case "multipart/form-data":
                data = _from_form(content_type or "", body)
            case _:
                data = body
        num_pixels = count_pixels(data, "the image")
    except UserError as error:
        raise RequestRefusedError(400, str(error)) from None
    if num_pixels > limits.max_pixels:
        given, allowed = format_count(num_pixels, "pixel"), format_count(limits.max_pixels)
        raise RequestRefusedError(422, f"the image has {given}, but {allowed} are allowed; send it smaller")
    return ImageFile(data, num_pixels)


def check_origin(fetch_site: str | None) -> None:
    """Refuse what a page of another site makes a visitor's browser send. Raises RequestRefusedError 403."""
    if fetch_site == "cross-site":
        raise RequestRefusedError(
            403, "sent by a page of another site; send it from this server's page or a program"
        )


def wants_png(accept: str | None) -> bool:
    """Whether the client asks for the label map itself instead of JSON."""
    return "image/png" in {part.partition(";")[0].strip().lower() for part in (accept or "").split(",")}


def _from_form(content_type: str, body: bytes) -> bytes:
    """The file under "image", as `curl -F image=@FILE` and a browser's form send it."""
    found: list[bytes] = []

    def keep(file: File) -> None:
        if file.field_name == COLUMN.encode():
            file.file_object.seek(0)
            found.append(file.file_object.read())

    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if not boundary or body.count(b"\r\n--" + boundary) > MAX_PARTS:
        raise UserError(f"the body: not a form of at most {MAX_PARTS} parts; send `curl -F image=@FILE`")
    try:
        # In memory: the body is there already.
        parser = FormParser(
            FORM_TYPE, None, keep, boundary=boundary, config={"MAX_MEMORY_FILE_SIZE": len(body)}
        )
        parser.write(body)
        parser.finalize()
    except FormParserError:
        raise UserError("the body: not a form; send it with `curl -F image=@FILE`") from None
    if len(found) != 1:
        raise UserError(f'the body: {len(found)} files under "image"; send one by `curl -F image=@FILE`')
    return found[0]


def _from_json(body: bytes) -> bytes:
    try:
        values = json.loads(body)
    except (ValueError, RecursionError):
        raise UserError('the body: not JSON; send {"image": "..."} with the file as base64') from None
    text = values.get(COLUMN) if isinstance(values, dict) else None
    if not isinstance(text, str):
        raise UserError('the body: no text under "image"; send {"image": "..."} with the file as base64')
    return base64_bytes(text, "the image")
