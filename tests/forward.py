"""A whole record sent at once, as the sender does it chunk by chunk."""

from functools import partial
from pathlib import Path

from encsearch.tracking.outbox.forward import EventStore, send_chunk


def send_all(job_folder: Path, store: EventStore) -> int:
    """How many events were sent until nothing was left."""
    return sum(iter(partial(send_chunk, job_folder, store), 0))
