"""Notices to people: a job has finished or failed, a budget is spent, a model has a new champion.

The environment says where to: ENCSEARCH_NOTIFY_URL is one of apprise's addresses (mailto://, slack://, json://
and many more). It holds a password, so no recipe, message or record has it.
"""

import os
import re
import time
from threading import Thread
from typing import Any

from encsearch.errors import UserError, one_line
from encsearch.redaction import without_secrets
from encsearch.tracking.outbox.forward import warn

URL_VARIABLE = "ENCSEARCH_NOTIFY_URL"
# apprise gives an HTTP service 4 s to answer, a mail server 15.
TRIES, RETRY_S = 3, 3.0


def check_address() -> None:
    """Raises UserError for an address that is not one, and where the extra `notify` is not installed."""
    if url := os.environ.get(URL_VARIABLE):
        _service(url)


def send_notice(title: str, body: str, tries: int = TRIES) -> None:
    """Send to the environment's address, if it has one. A failure is a warning."""
    url = os.environ.get(URL_VARIABLE)
    if not url:
        return
    import apprise

    service = _service(url)
    for attempt in range(tries):
        time.sleep(RETRY_S if attempt else 0)
        with apprise.LogCapture(level=apprise.logging.WARNING, fmt="%(message)s") as log:
            if service.notify(title=title, body=without_secrets(body)):
                return
            reason = one_line(log.getvalue().splitlines()[0]) if log.getvalue() else "no reason was given"
    warn(f"the notice {title!r} could not be sent ({without_secrets(reason)}); {URL_VARIABLE} says where to")


def send_beside(title: str, body: str) -> Thread:
    """Send from a thread that does not hold up the end of the process unless it is joined."""
    thread = Thread(target=send_notice, args=(title, body), daemon=True)
    thread.start()
    return thread


def _service(url: str) -> Any:
    try:
        import apprise
    except ImportError:
        raise UserError(
            f"{URL_VARIABLE} is set, but apprise is not installed; pip install 'encsearch[notify]'"
        ) from None
    # Else its warnings, which name parts of the address, go to stderr.
    apprise.logger.propagate = False
    service = apprise.Apprise()
    if not service.add(url):
        # Only what cannot be a part of a secret.
        known = re.match(r"([a-z][a-z0-9]{0,15})://", url)
        scheme = known[1] if known else "no scheme"
        raise UserError(
            f"{URL_VARIABLE}: no address that apprise can use ({scheme}); it begins with mailto://, "
            "slack://, json:// or another service's scheme, and all that the service needs comes behind it"
        )
    return service
