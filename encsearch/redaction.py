"""Remove secrets from text for people, logs and files.

It recognises how secrets are written, not which ones exist: a secret without a name before it and without a
known form is not found. So it is best never to put secrets into a text at all.
"""

import re

MASK = "***"

# Up to the last @ of the authority. A colon without a port after it marks a password, which may then hold
# characters that do not belong in an authority: people forget to quote a slash. A URI that was taken for a
# path has only one slash left; models:/NAME@ALIAS has no colon there.
_PASSWORD = r"[^\s/?#:@\"<>]{0,256}:(?!\d{1,5}(?:[/?#\s]|$))[^\s\"<>]{0,512}@"
_USER = re.compile(rf"(\w:/)(?:/[^\s/?#\"<>]{{0,512}}@|/?{_PASSWORD})")

_NAME = (
    r"(?:passw(?:or)?d|passphrase|pwd|[_-]pass|secret|token|credentials?"
    r"|(?:api|access|secret|private|signing|encryption)[_-]?key(?:[_-]?id)?)"
)
_QUERY = re.compile(rf"([?&][^=&\s]{{0,64}}{_NAME}[^=&\s]{{0,64}}=)[^&\s]*", re.IGNORECASE)
# One word, or several joined by |: anything else between a colon and the next "=" is a value, or prose.
_TYPE = r"[\w.]{1,64}(?:\[[\w.,\[\]| ]{1,64}\])?"
_TYPES = rf"{_TYPE}(?: ?\| ?{_TYPE}){{0,4}}"
# name=value, "name": "value", name: type = "value", environ["name"] = "value", get("name", "value").
# A number after the name belongs to it, a letter does not: "5 tokens" is no secret.
_IS = (
    r"\d{0,3}(?:\\?[\"'])?\]?[ \t]*"
    rf"(?::[ \t]*{_TYPES}[ \t]+=[ \t]*|:?=>?[ \t]*|:[ \t]*|(?<=[\"']),[ \t]*(?=[\"']))"
)
# In quotes of any kind, which may be escaped, or up to a blank; skips values that are already masked.
_QUOTE = r"(?P<quote>\\?(?:\"\"\"|'''|[\"']))"
_QUOTED = rf"[bfru]{{0,2}}{_QUOTE}(?:(?!(?P=quote))(?:\\.|[^\\]))*(?P=quote)"
_VALUE = rf"(?!{re.escape(MASK)})(?:{_QUOTED}|[\"']?[^\s&\"']+)"
_PAIR = re.compile(rf"(?P<name>{_NAME}(?>{_IS})){_VALUE}", re.IGNORECASE)
_OPTION = re.compile(rf"(?P<name>--[\w-]{{0,64}}{_NAME} +){_VALUE}", re.IGNORECASE)

_HEADER = re.compile(
    r"(authorization\\?[\"']?[ \t]*[:=][ \t]*\\?[\"']?(?:[a-z]+[ \t]+)?)[^\s\"',\\]+", re.IGNORECASE
)
_BEARER = re.compile(r"(\b(?:bearer|basic)[ \t]+)(?=\S*[\d=])[\w.~+/=-]{8,}", re.IGNORECASE)
# Keys of GitHub, GitLab, Hugging Face, AWS and Slack, signed web tokens, private keys.
_KEY = re.compile(
    r"\b(?:gh[opsur]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}|hf_[A-Za-z0-9]{30,}|A[KS]IA[0-9A-Z]{16}\b"
    r"|xox[abprs]-[\w-]{10,}|eyJ[\w-]{5,}\.[\w-]{5,}\.[\w-]{5,})"
    r"|-----BEGIN [A-Z ]{0,32}PRIVATE KEY-----(?:(?!-----END)[\s\S])*(?:-----END [A-Z ]{0,32}-----)?"
)


def without_secrets(text: str) -> str:
    """`text` without the users and passwords of URIs; values named or shaped like secrets are masked."""
    text = _USER.sub(r"\1/", text)
    text = _QUERY.sub(rf"\1{MASK}", text)
    text = _HEADER.sub(rf"\1{MASK}", text)
    text = _PAIR.sub(rf"\g<name>{MASK}", text)
    text = _OPTION.sub(rf"\g<name>{MASK}", text)
    text = _BEARER.sub(rf"\1{MASK}", text)
    return _KEY.sub(MASK, text)
