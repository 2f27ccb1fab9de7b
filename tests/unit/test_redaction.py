"""Secrets leave a text however they are written in it; what only looks like one stays."""

import ast
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import encsearch
from encsearch.redaction import without_secrets

S = "hunter2-Zx"
TOKENS = {
    "GitHub": "ghp_" + "a1B2" * 9,
    "GitHub, fine-grained": "github_pat_" + "a1B2" * 9,
    "GitLab": "glpat-" + "a1-B2" * 5,
    "Hugging Face": "hf_" + "a1B2" * 9,
    "AWS": "AKIA" + "A1B2" * 4,
    "web token": "eyJhbGciOiJI.eyJzdWIiOiIx.c2lnbmF0dXJl",
}


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


@pytest.mark.parametrize(
    "text",
    [
        f"MLFLOW_TRACKING_PASSWORD={S}",
        f"export AWS_SECRET_ACCESS_KEY='{S} with blanks'",
        f"host=db user=me password={S} dbname=x",
        f"password: {S}",
        f'+password = "{S}"',
        f"+    password: str = '{S}'",
        f"+    password: str | None = '{S}'",
        f'api_key = f"""\n{S}\n"""',
        f"client_secret := {S}",
        f"'db_pass' => '{S}'",
        f'{{"user": "me", "password": "{S}, and more"}}',
        f'{{"text": "{{\\"token\\": \\"{S}\\"}}"}}',
        f"{{'accessToken': '{S}'}}",
        f'password="a\\"{S}"',
        f"password: dict[str, str] | None = '{S}'",
        f'os.environ["RAY_AUTH_TOKEN"] = "{S}"',
        f'os.environ.get("DB_PASSWORD", "{S}")',
        f"password2={S}",
        f'password = "{S}',
        f"psql --password {S} db",
        f"psql --password='{S}' db",
        f"Authorization: Bearer {S}",
        f"{{'Authorization': 'Basic {S}'}}",
        f"sent bearer {S}",
        f"-----BEGIN RSA PRIVATE KEY-----\n{S}\n-----END RSA PRIVATE KEY-----",
        f"-----BEGIN PRIVATE KEY-----\n{S}",
    ],
)
def test_what_is_named_as_a_secret_is_masked(text: str) -> None:
    shown = without_secrets(text)
    assert S not in shown
    assert "***" in shown
    assert without_secrets(shown) == shown


@pytest.mark.parametrize("maker", TOKENS)
def test_well_known_tokens_are_masked_wherever_they_stand(maker: str) -> None:
    assert without_secrets(f"fatal: {TOKENS[maker]}, sorry") == "fatal: ***, sorry"


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


def test_no_message_of_ours_is_taken_for_a_secret() -> None:
    told = {text for path in Path(encsearch.__file__).parent.rglob("*.py") for text in _messages(path)}
    assert len(told) > 100
    assert [text for text in told if without_secrets(text) != text] == []


def _messages(path: Path) -> Iterator[str]:
    """What errors, warnings and lines for people are made of, an x for every value."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not ast.unparse(node.func).endswith(("Error", "say", "warn")):
            continue
        for text in node.args:
            if isinstance(text, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "x" for part in text.values)
            elif isinstance(text, ast.Constant) and isinstance(text.value, str):
                yield text.value


def test_long_texts_take_no_longer_than_their_length() -> None:
    """A quadratic pattern would need hours for a file of this size."""
    parts = ("a", "http://", "http://a:b", "password", '"password": "', "?token", "--", "eyJaaaaaa.")
    parts += ("password: a|", "password: a[a")
    for part in parts:
        text = part * (50_000 // len(part))
        begun = time.process_time()
        without_secrets(text)
        assert time.process_time() - begun < 20, part
