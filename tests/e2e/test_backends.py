"""The team's server of cluster/mlflow, without its containers: MLflow with users on PostgreSQL and S3."""

import base64
import json
import subprocess
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import pytest
from PIL import Image

from encsearch.tracking.mlflow import innermost
from tests.e2e.servers import DEFINITION, TrackingServer, server_command, server_variables
from tests.e2e.shell import BIN, COMMAND_TIMEOUT_S, Shell, clean_environment

PASSWORD, WRONG = "trainer's-own-1", "mistaken-Zx-17"
SEARCH = "/api/2.0/mlflow/experiments/search"


@pytest.fixture(scope="module")
def server(tracking_server: TrackingServer) -> TrackingServer:
    return tracking_server


@pytest.fixture(scope="module")
def trainer(shell: Shell, server: TrackingServer) -> Shell:
    """The command line of a user who is not the admin, and who has no key to PostgreSQL or S3."""
    return Shell(shell.folder, server.sign_up("trainer", PASSWORD))


@pytest.fixture(scope="module")
def trained(trainer: Shell) -> dict[str, Any]:
    done = trainer.encsearch("train", "toy.yaml", "--in-process", "--json", "--out", "served")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def test_a_training_lies_in_postgresql_and_its_artifacts_in_s3(
    server: TrackingServer, trainer: Shell, trained: dict[str, Any]
) -> None:
    (run,) = [row for row in server.rows()["runs"] if trained["run_id"] in row]
    assert "FINISHED" in run
    best = [row for row in server.rows()["latest_metrics"] if "best/mIoU" in row]
    assert best
    assert all(trained["run_id"] in row for row in best)
    prefix = f"artifacts/{trained['experiment_id']}/{trained['run_id']}/artifacts"
    stored = {key.removeprefix(f"{prefix}/"): content for key, content in server.objects().items()}
    weights = trainer.folder / trained["folder"] / "artifacts" / "bundle" / "model.safetensors"
    assert {"config.yaml", "bundle/model.safetensors"} <= set(stored)
    assert stored["bundle/model.safetensors"] == weights.read_bytes()


def test_the_champion_is_promoted_scored_and_used_from_the_server(
    server: TrackingServer, trainer: Shell, trained: dict[str, Any]
) -> None:
    promoted = json.loads(trainer.encsearch("promote", trained["folder"], "--json").stdout)
    assert (promoted["uri"], promoted["version"]) == ("models:/toy@champion", "1")
    scored = json.loads(trainer.encsearch("eval", promoted["uri"], "--json").stdout)
    assert scored["mean_iou"] == pytest.approx(trained["value"], abs=1e-6)

    Image.effect_noise((70, 40), 60).convert("RGB").save(trainer.folder / "noise.png")
    trainer.encsearch("predict", promoted["uri"], "noise.png", "--out", "labels")
    with Image.open(trainer.folder / "labels" / "noise.png") as labels:
        assert np.asarray(labels).shape == (40, 70)
    # No client is sent to S3, which it may not reach.
    assert "presigned" not in server.log.read_text()


@pytest.mark.parametrize("place", ["variable", "uri"])
def test_a_wrong_password_is_one_line_that_does_not_show_it(
    shell: Shell, server: TrackingServer, trainer: Shell, place: str
) -> None:
    variables = {
        "variable": server.as_user("trainer", WRONG),
        "uri": {"MLFLOW_TRACKING_URI": server.uri.replace("://", f"://trainer:{WRONG}@")},
    }
    before = _jobs(shell)
    line = Shell(shell.folder, variables[place]).refusal("train", "toy.yaml", "--in-process", code=3)
    assert server.uri in line
    assert "401" in line
    assert "check MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in line
    assert WRONG not in line
    assert _jobs(shell) == before


def _jobs(shell: Shell) -> set[Path]:
    """What a command has left, but for the cache of the data, which it reads before it asks for the store."""
    return {path for path in shell.folder.rglob("*") if ".cache" not in path.parts}


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, 401),
        ({"Authorization": "Basic YWRtaW46cGFzc3dvcmQxMjM0"}, 401),  # admin:password1234, once the default
        ({"Host": "evil.example"}, 403),
        ({"Origin": "https://evil.example"}, 403),
    ],
)
def test_strangers_and_foreign_pages_are_turned_away(
    server: TrackingServer, headers: dict[str, str], code: int
) -> None:
    headers = {"Content-Type": "application/json", **headers}
    with pytest.raises(HTTPError) as refused:
        urlopen(Request(server.uri + SEARCH, data=b'{"max_results": 1}', headers=headers))
    with refused.value as answer:
        assert answer.code == code
    assert urlopen(Request(f"{server.uri}/health", headers={"Host": "10.0.0.7"})).status == 200


def test_what_a_user_makes_others_may_read_and_not_change(
    server: TrackingServer, trained: dict[str, Any]
) -> None:
    user = server.sign_up("reader", PASSWORD)
    login = f"{user['MLFLOW_TRACKING_USERNAME']}:{user['MLFLOW_TRACKING_PASSWORD']}"
    headers = {
        "Authorization": f"Basic {base64.b64encode(login.encode()).decode()}",
        "Content-Type": "application/json",
    }
    runs = f"{server.uri}/api/2.0/mlflow/runs"
    assert urlopen(Request(f"{runs}/get?run_id={trained['run_id']}", headers=headers)).status == 200
    tag = json.dumps({"run_id": trained["run_id"], "key": "verdict", "value": "mine"}).encode()
    with pytest.raises(HTTPError) as refused:
        urlopen(Request(f"{runs}/set-tag", data=tag, headers=headers))
    with refused.value as answer:
        assert answer.code == 403


@pytest.mark.parametrize("missing", ["MLFLOW_AUTH_ADMIN_PASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY"])
def test_it_does_not_start_without_its_secrets(server: TrackingServer, tmp_path: Path, missing: str) -> None:
    """Of the users' tables a new copy, since an admin that exists needs no password to begin with."""
    secrets = dict.fromkeys(
        (
            "POSTGRES_PASSWORD",
            "S3_SECRET_KEY",
            "MLFLOW_AUTH_ADMIN_PASSWORD",
            "MLFLOW_FLASK_SERVER_SECRET_KEY",
            "MLFLOW_SERVER_ALLOWED_HOSTS",
            "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS",
        ),
        "given-Zx-17",
    )
    with pytest.raises(KeyError, match=missing):
        server_variables(secrets | {missing: ""})

    users = (DEFINITION / "basic_auth.ini").read_text()
    (tmp_path / "basic_auth.ini").write_text(
        users.replace("postgresql+psycopg:///mlflow", "sqlite:///users.db")
    )
    variables = server_variables(secrets) | server.postgresql.variables | server.s3
    variables |= {"MLFLOW_AUTH_CONFIG_PATH": "basic_auth.ini", missing: ""}
    program, *arguments = server_command()
    done = subprocess.run(
        [str(BIN / program), *arguments, "--host", "127.0.0.1", "--port", "1"],
        cwd=tmp_path,
        env={**clean_environment(), **variables},
        capture_output=True,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
    )
    assert done.returncode != 0
    assert missing in done.stdout + done.stderr


def test_of_a_databases_error_the_cause_is_told() -> None:
    told = (
        "(raised as a result of Query-invoked autoflush; consider no_autoflush) (sqlite3.OperationalError) "
        "database or disk is full [SQL: INSERT INTO metrics (a) VALUES (?)] [parameters: (1, )]"
    )
    assert innermost(Exception(told)) == "database or disk is full"
