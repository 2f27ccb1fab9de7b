"""Secrets that a job is given, or finds in the checkout, are in nothing that it writes, stores or says."""

import json
import subprocess

import pytest

from tests.e2e.servers import TrackingServer
from tests.e2e.shell import Shell

# Each is unlike any other text, so that finding it tells which way it leaked.
URI_PASSWORD = "planted-in-uri-Zx17"
PLANTED = {
    "MLFLOW_TRACKING_TOKEN": "planted-mlflow-token-Zx17",
    "AWS_SECRET_ACCESS_KEY": "planted-aws-Zx17",
    "RAY_AUTH_TOKEN": "planted-ray-token-Zx17",
    "ENCSEARCH_NOTIFY_URL": "json://me:planted-in-notify-Zx17@127.0.0.1:9/hook",
    "ENCSEARCH_STORAGE": "postgresql+psycopg://me:planted-in-storage-Zx17@127.0.0.1:1/studies",
}
GIT_TOKEN = "planted-git-token-Zx17"
CHANGE = "planted-in-diff-Zx17"
MARK = "Zx17"


@pytest.fixture(scope="module")
def checkout(
    shell: Shell, tracking_server: TrackingServer, tmp_path_factory: pytest.TempPathFactory
) -> Shell:
    """A checkout with a token in its remote's address and a password in a change that is not committed."""
    folder = tmp_path_factory.mktemp("checkout")

    def git(*arguments: str) -> None:
        subprocess.run(
            ["git", "-c", "user.name=t", "-c", "user.email=t@t", *arguments], cwd=folder, check=True
        )

    (folder / ".gitignore").write_text("scenes\nruns\nkept\n")
    (folder / "toy.yaml").write_text((shell.folder / "toy.yaml").read_text())
    (folder / "settings.py").write_text("password = None\n")
    (folder / "scenes").symlink_to(shell.folder / "scenes")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "first")
    git("remote", "add", "origin", f"https://me:{GIT_TOKEN}@example.com/me/repo.git")
    (folder / "settings.py").write_text(f'password = "{CHANGE}"\n')
    tracking_server.sign_up("bearer", URI_PASSWORD)
    uri = tracking_server.uri.replace("://", f"://bearer:{URI_PASSWORD}@")
    return Shell(folder, {**PLANTED, "MLFLOW_TRACKING_URI": uri, "MLFLOW_EXPERIMENT_NAME": "secrets"})


def test_no_secret_is_in_what_a_training_and_a_promotion_leave(
    checkout: Shell, tracking_server: TrackingServer
) -> None:
    """By processes of their own, which is where the variables with the secrets come from."""
    trained = checkout.run("train", "toy.yaml", "--in-process", "--json")
    folder = checkout.folder / json.loads(trained.stdout)["folder"]
    said = [
        trained,
        checkout.run("promote", str(folder), "promote.model_name=guarded"),
        checkout.run("ui", str(folder), "--print"),
    ]

    left = {f"{done.args[0]} says": done.stdout + done.stderr for done in said}
    left |= {str(path): path.read_bytes().decode("latin1") for path in folder.rglob("*") if path.is_file()}
    left |= {f"table {name}": "\n".join(rows) for name, rows in tracking_server.rows().items()}
    left |= {f"object {key}": content.decode("latin1") for key, content in tracking_server.objects().items()}
    assert [place for place, text in left.items() if MARK in text] == []
    # There was something to find it in.
    assert any(place.endswith("events.jsonl") for place in left)
    assert any(place.endswith("git.diff") and "password = ***" in text for place, text in left.items())


@pytest.mark.parametrize(
    ("arguments", "variables", "code"),
    [
        (("train", "toy.yaml", "--in-process"), {"MLFLOW_TRACKING_URI": f"http://me:{MARK}@127.0.0.1:1"}, 3),
        (("train", "toy.yaml", "--in-process", f"data.store=s3://KEY:{MARK}@bucket/data"), {}, 3),
        (("sweep", "toy.yaml"), {}, 3),
        (("eval", f"s3://KEY:{MARK}@bucket/model"), {}, 2),
    ],
    ids=["no server", "data in S3", "no database", "model in S3"],
)
def test_no_refusal_shows_a_secret(
    checkout: Shell, arguments: tuple[str, ...], variables: dict[str, str], code: int
) -> None:
    line = Shell(checkout.folder, {**checkout.variables, **variables}).refusal(*arguments, code=code)
    assert MARK not in line
