"""Remove secrets from text for people, logs and files.

By value: what this process's environment calls a secret is masked wherever it stands, also quoted for a URL,
escaped for JSON, or as the base64 of basic authentication. By form: what is written like a secret is masked
too, since other machines have secrets of their own. What is neither is not found, so it is best never to put
secrets into a text at all.
"""

import json
import os
import re
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Iterator, Mapping
from functools import lru_cache
from html import escape
from urllib.parse import quote, quote_plus, unquote, urlsplit

MASK = "***"

# --- by form ---

# Up to the last @ of the authority. A colon without a port after it marks a password, which may then hold
# characters that do not belong in an authority: people forget to quote a slash. A URI that was taken for a
# path has only one slash left; models:/NAME@ALIAS has no colon there.
_PASSWORD = r"(?P<user>[^\s/?#:@\"<>]{0,256}):(?!\d{1,5}(?:[/?#\s]|$))(?P<password>[^\s\"<>]{0,512})@"
_SLASH = r"(?:/|\\/)"
_USER = (
    rf"(\w:{_SLASH}|(?<![\w:/]){_SLASH}(?={_SLASH}))(?:{_SLASH}?{_PASSWORD}|{_SLASH}[^\s/?#\"<>]{{0,512}}@)"
)

_NAME = (
    r"(?:passw(?:or)?d|passphrase|pwd|[_-]pass|secret|token|credentials?"
    r"|(?:api|access|account|secret|private|signing|encryption)[_-]?key(?:[_-]?id)?)"
)
_IN_QUERY = rf"(?:[^=&;\s]{{0,64}}{_NAME}[^=&;\s]{{0,64}}|key|auth|sig|[\w-]{{0,64}}signature)"
# One word, or several joined by |: anything else between a colon and the next "=" is a value, or prose.
_TYPE = r"[\w.]{1,64}(?:\[[\w.,\[\]| ]{1,64}\])?"
_TYPES = rf"{_TYPE}(?: ?\| ?{_TYPE}){{0,4}}"
# In quotes of any kind, which may be escaped several times, as a call or in brackets, or up to a blank; skips
# values that are already masked.
_BEFORE = r"(?:!{1,2}\w{0,32}[ \t]{1,4})?[bfru]{0,2}"
_QUOTE = r"(?P<quote>\\{0,16}(?:\"\"\"|'''|[\"']))"
_QUOTED = rf"{_QUOTE}(?:(?!(?P=quote))(?:\\.|[^\\]))*(?P=quote)"
_CALL = r"[\w.]{0,64}\((?:[^()]|\([^()]{0,256}\)){1,512}\)"
_VALUE = rf"(?!{re.escape(MASK)}){_BEFORE}(?:{_QUOTED}|{_CALL}|[\"']?[^\s&\"']+)"
# name=value, "name": "value", name: type = "value", environ["name"] = "value", get("name", "value").
# A number after the name belongs to it, a letter does not: "5 tokens" is no secret.
_END = r"\d{0,3}(?:\\{0,16}[\"'])?"
_IS = (
    rf"{_END}\]?[ \t]*(?::[ \t]*{_TYPES}[ \t]+=[ \t]*|:=[ \t]*|={{1,3}}>?[ \t]*"
    r"|(?<=[\"']):\s{0,256}(?=[\"'])|:(?!(?-i: [a-z]{1,4}) )[ \t]*"
    r"|(?<=[\"']),[ \t]*(?=[bfru]{0,2}\\{0,16}[\"']))"
)
_INSIDE = rf"{_END}s?{_END}[ \t]*[:=][ \t]*[\[{{](?=[^\]}}]{{0,512}}[\"'])"
_WORD = r"(?=[^\s\d\"']{0,256}\d)[^\s\"',;]{6,}"
_BASE64 = r"[\w.~+/=-]"

# Each is replaced by its first group, and all but the first by a mask behind it.
_FORMS = [
    re.compile(form, re.IGNORECASE)
    for form in (
        r"(%3A%2F%2F)[^\s%]{1,256}%3A[^\s@]{1,512}?%40",
        rf"((?:[?&#;]|%3F|%26){_IN_QUERY}(?:=|%3D))(?:(?!%26)[^&;\s])+",
        r"(\\{0,16}[\"']?authorization\\{0,16}[\"']?[ \t]*[:=][ \t]*(?:digest|aws4-[\w-]+)[ \t]+)[^\r\n]+",
        r"(\bcookie\\{0,16}[\"']?[ \t]*:[ \t]*\\{0,16}[\"']?)[^\r\n\"']+",
        r"(authorization\\{0,16}[\"']?[ \t]*[:=,][ \t]*b?\\{0,16}[\"']?(?:[a-z]+[ \t]+)?)[^\s\"',\\]+",
        # A block of YAML: the lines below that are indented.
        rf"({_NAME}[\"']?:[ \t]*[|>][+-]?(?=\n))(?:\n[+-]?[ \t]+[^\n]+)+",
        # {"name": "DB_PASSWORD", "value": "..."}, as Kubernetes has it; also over two lines.
        rf"(name[\"']?[ \t]*[:=][ \t]*[\"']?[\w.-]{{0,64}}{_NAME}[\w.-]{{0,64}}[\"']?[,\s]\s{{0,64}}"
        rf"[\"']?value[\"']?[ \t]*[:=][ \t]*){_VALUE}",
        rf"({_NAME}(?>{_INSIDE}))[^\]}}]+",
        rf"({_NAME}(?>{_IS})){_VALUE}",
        rf"(--[\w-]{{0,64}}{_NAME} +){_VALUE}",
        rf"((?:notify|webhook)[_-]?url=){_VALUE}",
        rf"((?<![\w-])(?:-u|--user|--proxy-user)[ =]+[\"']?[^\s:\"']{{1,256}}:)(?!\d+\b){_VALUE}",
        rf"(\bsshpass +-p *){_VALUE}",
        rf"(\blogin\s{{1,8}}\S{{1,256}}\s{{1,8}}password\s{{1,8}}){_VALUE}",
        rf"(<[\w:.-]{{0,64}}{_NAME}[\w.-]{{0,64}}[^<>]{{0,256}}>)[^<>]{{1,4096}}(?=</)",
        rf"((?:{_NAME}|identified by)[ \t]+)(?!{re.escape(MASK)})([\"'])[^\s\"']{{6,}}\2",
        rf"({_NAME}[ \t]+(?:is|was)[ \t]+){_WORD}",
        rf"(\b(?:bearer|basic)[ \t]+)(?=\S*[\d=]){_BASE64}{{8,}}",
        r"(hooks\.slack\.com/services/|discord(?:app)?\.com/api/webhooks/)[\w/-]+",
    )
]
# Keys of GitHub, GitLab, Hugging Face, AWS, Slack, signed web tokens, OpenAI, Anthropic, Stripe, Google, npm,
# PyPI, DigitalOcean, Databricks, SendGrid, Telegram and age; private keys.
_KEY = re.compile(
    r"\b(?:gh[opsur]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}|hf_[A-Za-z0-9]{30,}|A[KS]IA[0-9A-Z]{16}\b"
    r"|xox[abprs]-[\w-]{10,}|eyJ[\w-]{5,}\.[\w-]{5,}\.[\w-]{5,}|sk-(?:[a-z]\w{0,16}-){0,3}[A-Za-z0-9]{20}[\w-]*"
    r"|[rs]k_(?:live|test)_\w{16,}|AIza[\w-]{35}|ya29\.[\w-]{20,}|npm_[A-Za-z0-9]{30,}|pypi-[\w-]{32,}"
    r"|do[opr]_v1_[0-9a-f]{64}|dapi[0-9a-f]{32}|SG\.[\w-]{20,}\.[\w-]{20,}|\d{8,10}:AA[\w-]{30,}"
    r"|AGE-SECRET-KEY-1[0-9A-Z]{50,})"
    r"|-----BEGIN [A-Z ]{0,32}PRIVATE KEY(?: BLOCK)?-----(?:(?!-----END)[\s\S])*"
    r"(?:-----END [A-Z ]{0,32}-----)?"
)
_CREDENTIALS = re.compile(_USER)

# --- by value ---

# Variables that hold a secret, and ends of names of those that only say where one is or how it is used.
_SECRET_NAME = re.compile(
    r"token|passw|passphrase|secret|credential|apikey|(?:^|_)(?:pass|pwd|pw|key|auth|dsn|sas|cookie)(?:_|$)",
    re.IGNORECASE,
)
_NO_SECRET_NAME = re.compile(
    r"^(?:OLD)?PWD$|_(?:path|file|dir|folder|mode|sock|type|ur[il]|host|name|user|size|length|region|ttl)$",
    re.IGNORECASE,
)
_ADDRESS_NAME = re.compile(r"notify_url$|webhook", re.IGNORECASE)
_SHORTEST = 6
_SHORTEST_NUMBER = 8
# Words that a text needs, whoever takes one of them for a password.
_COMMON = {"basic", "bearer", "champion", "credentials", "default", "disabled", "enabled", "encsearch"}
_COMMON |= {"localhost", "mlflow", "password", "required", "secret", "string", "tokens", "unknown"}


def without_secrets(text: str) -> str:
    """`text` without users and passwords of URIs; what is known, named or shaped as a secret is masked."""
    if known := _known_pattern(tuple(os.environ.items())):
        text = known.sub(MASK, text)
    return _mask_forms(text)


def without_user(uri: str) -> str:
    """A URI without what looks like a secret in it, the same in every environment: an address to compare."""
    return _mask_forms(uri)


def _mask_forms(text: str) -> str:
    text = _CREDENTIALS.sub(_bare_slashes, text)
    for form in _FORMS:
        text = form.sub(rf"\1{MASK}", text)
    return _KEY.sub(MASK, text)


def _bare_slashes(match: re.Match[str]) -> str:
    slashes = match[1]
    return slashes + (r"\/" if slashes.endswith("\\/") else "/")


@lru_cache(maxsize=4)
def _known_pattern(variables: tuple[tuple[str, str], ...]) -> re.Pattern[str] | None:
    """Match the secrets of an environment in all forms, the longest first; None without any."""
    environ = dict(variables)
    written = {form for secret in set(_secrets(environ)) if _is_rare(secret) for form in _written(secret)}
    parts = [
        rf"\b{re.escape(form)}\b" if form.isalpha() else re.escape(form)
        for form in sorted(written, key=lambda form: (-len(form), form))
    ]
    return re.compile("|".join(parts)) if parts else None


def _secrets(environ: Mapping[str, str]) -> Iterator[str]:
    """Yield the values of variables by their names, with their users, and what the URIs among them hold."""
    for name, value in environ.items():
        if _SECRET_NAME.search(name) and not _NO_SECRET_NAME.search(name) and not _is_file(value):
            yield value
            for user in _users(name, environ):
                yield b64encode(f"{user}:{value}".encode()).decode()
        for uri in re.findall(r"[\w+.-]+://\S+", value):
            yield from _secrets_of_uri(uri)
        if _ADDRESS_NAME.search(name):
            _, _, rest = value.partition("://")
            yield from (value, rest)
            yield from (part for part in re.split(r"[/:@?&=\s]", rest) if _is_random(part))


def _users(name: str, environ: Mapping[str, str]) -> Iterator[str]:
    """Yield the users that belong to a password, as MLFLOW_TRACKING_USERNAME to MLFLOW_TRACKING_PASSWORD."""
    for ending in ("USERNAME", "USER"):
        if user := environ.get(f"{name.rpartition('_')[0]}_{ending}"):
            yield user


def _secrets_of_uri(uri: str) -> Iterator[str]:
    if found := re.search(rf"//(?:{_PASSWORD}|(?P<alone>[^\s/?#:@]{{16,}})@)", uri):
        user, password = unquote(found["user"] or ""), found["password"] or ""
        yield from (password, unquote(password), found["alone"] or "")
        yield b64encode(f"{user}:{unquote(password)}".encode()).decode()
    try:
        query = urlsplit(uri).query
    except ValueError:
        return
    for part in re.split("[&;]", query):
        key, _, value = part.partition("=")
        if _SECRET_NAME.search(key):
            yield from (value, unquote(value))


def _written(secret: str) -> set[str]:
    """The ways in which a secret is written: as it is, on one line, in URLs, JSON, HTML and base64."""
    urls = {quote(secret, safe=""), quote(secret), quote_plus(secret)}
    urls |= {re.sub("%..", lambda match: match[0].lower(), url) for url in urls}
    json_form = json.dumps(secret)[1:-1]
    forms = {secret, " ".join(secret.split()), *urls, json_form, json.dumps(json_form)[1:-1], escape(secret)}
    forms |= {repr(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]}
    data = secret.encode(errors="surrogateescape")
    forms |= {encode(data).decode().rstrip("=") for encode in (b64encode, urlsafe_b64encode)}
    return forms


def _is_rare(secret: str) -> bool:
    """Whether a secret can be masked wherever it stands, without masking what is none."""
    if secret.isdigit():
        return len(secret) >= _SHORTEST_NUMBER
    return len(secret.strip()) >= _SHORTEST and secret.lower() not in _COMMON


def _is_random(part: str) -> bool:
    """Whether a part of an address for notices is a key in it, rather than a host or a word."""
    is_mixed = re.search(r"\d", part) and re.search("[A-Z]", part) and "." not in part
    return len(part) >= 20 or bool(len(part) >= 8 and is_mixed)


def _is_file(value: str) -> bool:
    return value.startswith(("/", "~", ".")) and os.path.exists(os.path.expanduser(value))
