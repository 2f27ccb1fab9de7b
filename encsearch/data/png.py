"""What PIL does not verify of a PNG (PNG specification, third edition, chapters 5, 7 and 11).

It looks at no checksum of the chunks that hold pixels, and fills missing rows with zeros in small pictures:
a flipped bit or a cut file would change labels without a word.
"""

import zlib
from collections.abc import Iterator

from encsearch.errors import UserError
from encsearch.text import format_count

START = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
_PALETTE = 3
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""First column and row, and the steps between them, of the seven passes of an interlaced picture."""


def check_chunks(data: bytes, where: str) -> None:
    """Raise UserError for a PNG with a damaged chunk, one in the wrong place, or no end; other files pass."""
    if not data.startswith(START):
        return
    seen: set[bytes] = set()
    previous = b""
    for name, _ in _chunks(data, where):
        first = not seen
        late = name in {b"IDAT", b"PLTE"} and b"IDAT" in seen and previous != name
        if (name == b"IHDR") != first or late:
            raise UserError(f"{where}: damaged PNG ({name!r} is in the wrong place); save it again")
        seen.add(name)
        previous = name
    if b"PLTE" not in seen and data[25] == _PALETTE:
        raise UserError(f"{where}: damaged PNG (its palette is missing); replace the file")


def check_pixels(data: bytes, where: str) -> None:
    """Raise UserError for a PNG, whose chunks are sound, without all of its pixels; other files pass."""
    if not data.startswith(START):
        return
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    bits, colour_type, interlaced = data[24], data[25], data[28]
    if colour_type not in _CHANNELS or bits not in {1, 2, 4, 8, 16} or interlaced not in {0, 1}:
        raise UserError(f"{where}: damaged PNG (its header is of no kind of PNG); replace the file")
    parts = _PASSES if interlaced else ((0, 0, 1, 1),)
    wanted = 0
    for left, top, step_x, step_y in parts:
        columns, rows = max(0, -(-(width - left) // step_x)), max(0, -(-(height - top) // step_y))
        if columns:
            wanted += rows * (1 + (columns * bits * _CHANNELS[colour_type] + 7) // 8)
    packed = b"".join(body for name, body in _chunks(data, where) if name == b"IDAT")
    stream = zlib.decompressobj()
    try:
        found = len(stream.decompress(packed, wanted))
        # The rest is the checksum of all pixels, Adler-32, which PIL does not look at either.
        more = len(stream.decompress(stream.unconsumed_tail, 1))
    except zlib.error as error:
        raise UserError(f"{where}: damaged PNG ({error}); replace the file") from None
    if found < wanted:
        raise UserError(
            f"{where}: damaged PNG (it holds {format_count(found)} of {format_count(wanted, 'byte')} of "
            "pixels); replace the file"
        )
    if more or not stream.eof:
        fault = "it holds more pixels than its header says" if more else "the end of its pixels is missing"
        raise UserError(f"{where}: damaged PNG ({fault}); replace the file")


def _chunks(data: bytes, where: str) -> Iterator[tuple[bytes, memoryview]]:
    """Name and content of each chunk to the end. Raises UserError for a wrong checksum and for a cut."""
    position, name = len(START), b""
    while name != b"IEND":
        length, name = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        end = position + 12 + length
        if end > len(data):
            raise UserError(
                f"{where}: damaged PNG (cut off at {format_count(len(data), 'byte')}); replace it"
            )
        body = memoryview(data)[position + 8 : end - 4]
        if zlib.crc32(body, zlib.crc32(name)) != int.from_bytes(data[end - 4 : end], "big"):
            raise UserError(f"{where}: damaged PNG (the checksum of {name!r} is wrong); replace the file")
        yield name, body
        position = end
