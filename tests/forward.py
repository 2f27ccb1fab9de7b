"""A whole record sent at once, as the sender does it chunk by chunk."""

from pathlib import Path

from encsearch.tracking.outbox.forward import EventStore, Outbox


def send_all(job_folder: Path, store: EventStore) -> int:
    """How many events were sent until nothing was left."""
    return sum(iter(Outbox(job_folder, store).send_chunk, 0))
