"""Secrets leave a text however they are written in it; what only looks like one stays."""

import ast
import json
import os
import time
from base64 import b64encode
from collections.abc import Iterator
from html import escape
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest

import encsearch
from encsearch.redaction import without_secrets, without_user

S = "hunter2-Zx"
BASIC = b64encode(f"me:{S}".encode()).decode()
FORMS = {
    "URI, user and password": f"http://me:{S}@tracker:5000/x",
    "URI, token alone": f"https://{S}@host/org/repo.git",
    "URI, characters unquoted": f"postgresql+psycopg://me:p@ss/{S}#@db/mlflow failed",
    "URI, quoted": f"mysql://me:{S}%2F@db:3306",
    "URI, no user": f"redis://:{S}@cache:6379/0",
    "URI, IPv6": f"http://me:{S}@[::1]:5000/x",
    "URI, one slash": f"s3:/KEY:{S}@bucket/key: no such store",
    "URI, no scheme": f"proxy //me:{S}@proxy:3128 refused",
    "URI in JSON": f'{{"uri":"http://me:{S}@x"}}',
    "URI in JSON, slashes escaped": f'{{"uri":"http:\\/\\/me:{S}@x"}}',
    "URI, jdbc": f"jdbc:postgresql://me:{S}@db/x",
    "URI, quoted whole": f"next=http%3A%2F%2Fme%3A{S}%40tracker",
    "query, password": f"mysql://db/x?password={S}&ssl=1 failed",
    "query, token": f"http://tracker?a=b&access_TOKEN={S}",
    "query, signature of S3": f"http://x/?X-Amz-Signature={S}&b",
    "query, signature of Azure": f"https://a.blob.core.windows.net/x?sv=1&sig={S}&se=2",
    "query, key": f"https://maps.example/api?key={S}",
    "query, semicolon": f"jdbc:sqlserver://db;user=me;password={S};x=1",
    "query, fragment": f"http://x/cb#access_token={S}",
    "query, quoted": f"/login%3Fpassword%3D{S}%26x",
    "header, bearer": f"Authorization: Bearer {S}",
    "header, basic": f"Authorization: Basic {BASIC}",
    "header, token": f"Authorization: token {S}",
    "header, bare": f"authorization: {S}",
    "header, digest": f'Authorization: Digest username="me", response="{S}"',
    "header, signature of AWS": f"Authorization: AWS4-HMAC-SHA256 Credential=AKIAX/2020, Signature={S}",
    "header, proxy": f"Proxy-Authorization: Basic {BASIC}",
    "header, X-Api-Key": f"X-Api-Key: {S}",
    "header, X-Auth-Token": f"x-auth-token: {S}",
    "header, PRIVATE-TOKEN": f"PRIVATE-TOKEN: {S}",
    "header, cookie": f"Cookie: session={S}; lang=en",
    "header, set-cookie": f"Set-Cookie: sid={S}; HttpOnly",
    "header, dict": f"{{'Authorization': 'Basic {BASIC}'}}",
    "header, dict of bytes": f"{{b'authorization': b'Bearer {S}'}}",
    "header, tuple": f"[('Authorization', 'Bearer {S}')]",
    "header, tuple of bytes": f"[(b'x-api-key', b'{S}')]",
    "header, curl": f"curl -H 'Authorization: Bearer {S}' http://x",
    "bearer in prose": f"sent bearer {S}",
    "basic in prose": f"with basic {BASIC}",
    "environment, line": f"MLFLOW_TRACKING_PASSWORD={S}",
    "environment, export": f"export AWS_SECRET_ACCESS_KEY='{S} with blanks'",
    "environment, declare": f'declare -x RAY_AUTH_TOKEN="{S}"',
    "environment, repr": f"environ({{'HOME': '/x', 'WANDB_API_KEY': '{S}'}})",
    "environment, NUL": f"A=1\0DB_PASSWORD={S}\0B=2",
    "environment, docker -e": f"docker run -e DB_PASSWORD={S} x",
    "environment, PowerShell": f"$env:DB_PASSWORD = '{S}'",
    "environment, bytes": f"environb[b'DB_PASSWORD'] = b'{S}'",
    "environment, key alone": f"SIGNING_KEY={S}",
    "environment, PGPASSWORD": f"PGPASSWORD={S} psql",
    "environment, PASS": f"DB_PASS={S}",
    "environment, notices": f"ENCSEARCH_NOTIFY_URL=slack://{S}/b/c",
    "JSON": f'{{"user": "me", "password": "{S}, and more"}}',
    "JSON in JSON": f'{{"text": "{{\\"token\\": \\"{S}\\"}}"}}',
    "JSON, twice escaped": json.dumps(json.dumps(json.dumps({"token": S}))),
    "JSON, name and value": f'{{"name": "DB_PASSWORD", "value": "{S}"}}',
    "JSON, camel case": f"{{'accessToken': '{S}'}}",
    "JSON, list": f'{{"tokens": ["{S}", "x"]}}',
    "JSON, object": f'{{"password": {{"value": "{S}"}}}}',
    "JSON, lines": f'{{\n  "password":\n    "{S}"\n}}',
    "YAML": f"password: {S}",
    "YAML, quoted": f"password: '{S} b'",
    "YAML, block": f"password: |\n  {S}\nuser: me",
    "YAML, folded": f"token: >-\n    {S}\n",
    "YAML, name and value": f"- name: DB_PASSWORD\n  value: {S}\n",
    "YAML, tag": f"password: !!str {S}",
    "TOML": f'db.password = "{S}"',
    "INI": f"password = {S}",
    "netrc": f"machine tracker login me password {S}",
    "properties": f"spring.datasource.password={S}",
    "XML, element": f"<password>{S}</password>",
    "XML, attribute": f'<add name="x" password="{S}" />',
    "SQL, identified by": f"CREATE USER me IDENTIFIED BY '{S}'",
    "SQL, password": f"ALTER ROLE me PASSWORD '{S}'",
    "connection string, words": f"host=db user=me password={S} dbname=x",
    "connection string, Azure": f"AccountName=a;AccountKey={S}==;EndpointSuffix=x",
    "connection string, Pwd": f"Server=db;Uid=me;Pwd={S};",
    "option, blank": f"psql --password {S} db",
    "option, is": f"psql --password='{S}' db",
    "option, user": f"curl -u me:{S} http://x",
    "option, --user": f"curl --user me:{S} http://x",
    "option, list": f"['psql', '--password', '{S}']",
    "option, env": f"--env DB_PASSWORD={S}",
    "option, sshpass": f"sshpass -p {S} ssh host",
    "Python, typed": f"+    password: str | None = '{S}'",
    "Python, raw": f"password = r'{S}'",
    "Python, triple": f'api_key = f"""\n{S}\n"""',
    "Python, item": f'os.environ["RAY_AUTH_TOKEN"] = "{S}"',
    "Python, default": f'os.environ.get("DB_PASSWORD", "{S}")',
    "Python, call": f'password = get("NAME", "{S}")',
    "Python, call, quoted": f'connect(password=quote("{S}"))',
    "Python, tuple": f'[("password", "{S}")]',
    "Python, setattr": f'setattr(me, "password", "{S}")',
    "Python, comparison": f'if password == "{S}":',
    "Python, parentheses": f'password = (\n    "{S}"\n)',
    "Python, dataclass": f"Login(user='me', password='{S}')",
    "Python, pydantic": f"input_value={{'password': '{S}'}}, input_type=dict",
    "Ruby": f"'db_pass' => '{S}'",
    "Go": f"client_secret := {S}",
    "cut short": f'password = "{S}',
    "prose, is": f"the password is {S}",
    "prose, quoted": f"invalid token '{S}'",
    "prose, quoted twice": f'the password "{S}" was refused',
    "prose, colon": f"invalid password: {S}",
    "private key": f"-----BEGIN RSA PRIVATE KEY-----\n{S}\n-----END RSA PRIVATE KEY-----",
    "private key, cut": f"-----BEGIN OPENSSH PRIVATE KEY-----\n{S}",
    "private key, PGP": f"-----BEGIN PGP PRIVATE KEY BLOCK-----\n\n{S}\n-----END PGP PRIVATE KEY BLOCK-----",
    "private key, one line": f"-----BEGIN PRIVATE KEY-----\\n{S}\\n-----END PRIVATE KEY-----\\n",
}
A = "a1B2" * 9
TOKENS = {
    "GitHub": "ghp_" + A,
    "GitHub, fine-grained": "github_pat_" + A,
    "GitLab": "glpat-" + "a1-B2" * 5,
    "Hugging Face": "hf_" + A,
    "AWS": "AKIA" + "A1B2" * 4,
    "Slack": "xoxb-1234567890-" + A,
    "web token": "eyJhbGciOiJI.eyJzdWIiOiIx.c2lnbmF0dXJl",
    "OpenAI": "sk-proj-" + A,
    "Anthropic": "sk-ant-api03-" + A,
    "Stripe": "sk_live_" + A,
    "Google": "AIza" + A[:35],
    "Google OAuth": "ya29." + A,
    "npm": "npm_" + A,
    "PyPI": "pypi-AgEIcHlwaS5vcmc" + A,
    "DigitalOcean": "dop_v1_" + "a1b2" * 16,
    "Databricks": "dapi" + "a1b2" * 8,
    "SendGrid": "SG." + A[:22] + "." + A,
    "Slack, webhook": "https://hooks.slack.com/services/T1A2B3C4D/B1A2B3C4D/" + A,
    "Discord, webhook": "https://discord.com/api/webhooks/123456789012345678/" + A,
    "Telegram": "123456789:AA" + A[:33],
    "age": "AGE-SECRET-KEY-1" + "QPZRY9X8" * 7,
}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """One without secrets; pytest writes the name of a test into a variable."""
    for name in os.environ:
        monkeypatch.delenv(name)


@pytest.mark.parametrize("form", FORMS)
def test_a_secret_is_found_by_its_form(form: str) -> None:
    shown = without_secrets(FORMS[form])
    assert S not in shown
    assert BASIC not in shown
    assert without_secrets(shown) == shown


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"http://me:{S}@tracker:5000/x", "http://tracker:5000/x"),
        (f"https://{S}@host/org/repo.git", "https://host/org/repo.git"),
        (f"postgresql+psycopg://me:p@ss{S}@db/mlflow failed", "postgresql+psycopg://db/mlflow failed"),
        (f"postgresql://me:pa/ss?{S}#@db/mlflow", "postgresql://db/mlflow"),
        (f"mysql://me:{S}%2F@db:3306", "mysql://db:3306"),
        (f"s3://AKIAX:ab/{S}+c@bucket/key", "s3://bucket/key"),
        (f"s3:/KEY:{S}@bucket/key: no such store", "s3://bucket/key: no such store"),
        (f"redis://:{S}@cache:6379/0", "redis://cache:6379/0"),
        (f"[http://a:{S}@x/] and (http://b:{S}@y)", "[http://x/] and (http://y)"),
        (f'{{"uri":"http://me:{S}@x","mail":"a@b"}}', '{"uri":"http://x","mail":"a@b"}'),
        (f"mysql://db/x?password={S}&ssl=1 failed", "mysql://db/x?password=***&ssl=1 failed"),
        (f"http://tracker?a=b&access_TOKEN={S}", "http://tracker?a=b&access_TOKEN=***"),
        (f"http://x/?X-Amz-Security-Token={S}&b", "http://x/?X-Amz-Security-Token=***&b"),
    ],
)
def test_secrets_are_cut_out_of_uris(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


@pytest.mark.parametrize("maker", TOKENS)
def test_well_known_tokens_are_masked_wherever_they_stand(maker: str) -> None:
    shown = without_secrets(f"fatal: {TOKENS[maker]}, sorry")
    assert TOKENS[maker][-16:] not in shown
    assert shown.startswith("fatal: ")
    assert shown.endswith("***, sorry")


PASSWORD = 'correct/horse "Zx" & 17%'
PEM = "-----BEGIN X-----\nMIIEvQ\nZx17\n-----END X-----"
# variables: ways in which a secret of theirs is written, with no name before it and no form of its own
KNOWN: dict[str, tuple[dict[str, str], list[str]]] = {
    "a password": (
        {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": PASSWORD},
        [
            PASSWORD,
            quote(PASSWORD),
            quote(PASSWORD, safe=""),
            quote(PASSWORD, safe="").replace("%2F", "%2f"),
            quote_plus(PASSWORD),
            json.dumps(PASSWORD),
            json.dumps(json.dumps(PASSWORD)),
            repr(PASSWORD),
            escape(PASSWORD),
            b64encode(PASSWORD.encode()).decode(),
            b64encode(f"me:{PASSWORD}".encode()).decode(),
            f"/tmp/{PASSWORD}.log",
        ],
    ),
    "a token": ({"RAY_AUTH_TOKEN": S}, [S, f"login as {S} failed", f"x{S}y", f"['{S}']"]),
    "a key of S3": ({"AWS_SECRET_ACCESS_KEY": "/aB3" + "x9+/" * 9}, ["/aB3" + "x9+/" * 9]),
    "a password of letters": ({"DB_PASS": "swordfish"}, ["swordfish", "the swordfish."]),
    "a key of several lines": ({"DEPLOY_KEY": PEM}, [PEM, json.dumps(PEM), " ".join(PEM.split())]),
    "a URI": (
        {"MLFLOW_TRACKING_URI": "http://me:p%40ss-Zx17@tracker:5000"},
        ["p%40ss-Zx17", "p@ss-Zx17", b64encode(b"me:p@ss-Zx17").decode()],
    ),
    "a URI, unquoted": ({"ENCSEARCH_STORAGE": "postgresql://me:p/@ss-Zx17@db/x"}, ["p/@ss-Zx17"]),
    "a URI, query": ({"DATABASE": "mysql://db/x?password=Zx17Zx17&a=b"}, ["Zx17Zx17"]),
    "a URI, token": ({"REMOTE": "https://Zx17Zx17Zx17Zx17@host/x"}, ["Zx17Zx17Zx17Zx17"]),
    "an address of notices": (
        {"ENCSEARCH_NOTIFY_URL": "slack://T1JJ3T3L2/A1BRTD4JD/TIiajkdnlazkcOXrIdevi7FQ"},
        ["T1JJ3T3L2", "A1BRTD4JD", "TIiajkdnlazkcOXrIdevi7FQ", "//T1JJ3T3L2/A1BRTD4JD/x"],
    ),
}


@pytest.mark.parametrize(
    ("variables", "written"),
    [(variables, text) for variables, texts in KNOWN.values() for text in texts],
    ids=[f"{name}, {number}" for name, (_, texts) in KNOWN.items() for number in range(len(texts))],
)
def test_a_known_secret_is_found_by_its_value(
    variables: dict[str, str], written: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    shown = without_secrets(f"it said {written} and went on")
    assert "***" in shown
    assert "Zx" not in shown
    assert written not in shown
    assert shown.startswith("it said ")
    assert shown.endswith(" and went on")


def test_what_is_short_or_common_or_no_secret_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "key.json"
    file.touch()
    for name, value in {
        "MLFLOW_TRACKING_PASSWORD": "mlflow",
        "RAY_AUTH_MODE": "token-mode",
        "RAY_AUTH_TOKEN": "token",
        "USE_TOKEN": "True",
        "API_KEY": "123456",
        "DB_PASSWORD": "train",
        "GOOGLE_APPLICATION_CREDENTIALS": str(file),
        "RAY_AUTH_TOKEN_PATH": "/home/me/token-file",
        "PWD": "/home/me/project",
        "MONKEY": "bananas",
        "SITE_PASSWORD": "hedgehog",
        "MLFLOW_TRACKING_URI": "http://tracker:5000/runs/a@b",
    }.items():
        monkeypatch.setenv(name, value)
    text = (
        f"train on mlflow with token-mode, True, token and 123456; {file}, /home/me/token-file, "
        "/home/me/project, bananas; hedgehogs; http://tracker:5000/runs/a@b"
    )
    assert without_secrets(text) == text


def test_an_address_to_compare_does_not_depend_on_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "tracker")
    assert without_secrets("http://tracker:5000") == "http://***:5000"
    assert without_user("http://me:tracker@tracker:5000") == "http://tracker:5000"


@pytest.mark.parametrize(
    "text",
    [
        "GET https://tracker/a@b failed",
        "http://tracker:5000/runs/a@b",
        "models:/encnet-camvid@champion",
        "git@host:org/repo.git",
        "/data/user@host/scenes",
        "tokens: 5",
        "num_tokens=4096",
        "RAY_AUTH_MODE=token",
        "this cluster needs a token; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to its file",
        "set MLFLOW_TRACKING_PASSWORD to your own",
        "RAY_AUTH_TOKEN_PATH=~/.ray/token",
        "password authentication failed for user",
        "Basic authentication is needed",
        "is it up? no",
        "model.num_codewords: 32, loss.se_weight: 0.2",
        "sqlite:////home/me/mlflow.db",
        "key=value, keys: 3",
        "eyJ is how such a token begins",
        "the address is a secret: no record has it",
        "the token is too long",
        "image: repo/name@sha256:abc, user: 1000",
        "docker run --user 1000:1000 x",
        "rank-sk-learn, task-manager, dapi",
    ],
)
def test_harmless_text_stays(text: str) -> None:
    assert without_secrets(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("password: hunter2 of user=me", "password: *** of user=me"),
        ("token: aHVudGVyMg==", "token: ***"),
        ("password: str = hunter2", "password: str = ***"),
    ],
)
def test_a_value_behind_a_colon_is_not_taken_for_a_type(text: str, shown: str) -> None:
    assert without_secrets(text) == shown


def test_the_advice_behind_a_colon_stays() -> None:
    """A word that follows the name of a secret and a colon may be one; the setting that follows is none."""
    shown = without_secrets("the cluster asks for a token: set RAY_AUTH_MODE=token and try again")
    assert shown.endswith(" RAY_AUTH_MODE=token and try again")


def test_nothing_that_we_say_is_taken_for_a_secret() -> None:
    """All text in the package: messages with an x for every value, help, docstrings, headings."""
    package = Path(encsearch.__file__).parent
    told = {text for path in package.rglob("*.py") if path.name != "redaction.py" for text in _texts(path)}
    advice = [text for text in told if any(word in text.lower() for word in ("token", "password", "secret"))]
    assert len(advice) > 30
    assert [text for text in told if without_secrets(text) != text] == []


def _texts(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.JoinedStr):
            yield "".join(part.value if isinstance(part, ast.Constant) else "x" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_long_texts_take_no_longer_than_their_length() -> None:
    """A quadratic pattern would need hours for a file of this size."""
    parts = ("a", "http://", "http://a:b", "password", '"password": "', "?token", "--", "eyJaaaaaa.")
    parts += ("password: a|", "password: a[a", "password: [", "password(", "password = a(b", "token: |\n ")
    parts += ("login a ", "<token ", "name: token ", "cookie: ", "%3A%2F%2F", "token is ", "sk-a-", "-u a:")
    parts += ("\\", "//")
    for part in parts:
        text = part * (50_000 // len(part))
        begun = time.process_time()
        without_secrets(text)
        assert time.process_time() - begun < 20, part
