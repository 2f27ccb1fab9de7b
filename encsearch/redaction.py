"""Secrets cut out of what people and logs are shown."""

import re

SECRET_WORDS = "passw|pwd|token|secret|api_?key"


def without_secrets(text: str) -> str:
    """`text` with user and password cut out of every URI in it, and secrets in a query masked."""
    text = re.sub(r"://[^/\s]*@", "://", text)
    return re.sub(rf"([?&][^=&\s]*(?:{SECRET_WORDS})[^=&\s]*=)[^&\s]*", r"\1***", text, flags=re.IGNORECASE)
