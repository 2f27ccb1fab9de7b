"""Real servers on free ports of loopback: PostgreSQL, S3, and the team's MLflow server of cluster/mlflow."""

import json
import os
import pwd
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import quote
from urllib.request import urlopen

import boto3
import psutil
import psycopg
import pytest
import yaml

from tests.e2e.head import free_ports
from tests.e2e.shell import BIN, clean_environment

DEFINITION = Path(__file__).parents[2] / "cluster" / "mlflow"
SERVER_FOLDERS = "/usr/lib/postgresql/*/bin"
# As a password may be.
PASSWORD = "p@ss/w:rd"
LOG_FILE = "server.log"
START_TIMEOUT_S = 240
STOP_TIMEOUT_S = 10


@dataclass(frozen=True)
class Postgresql:
    """`url` has a user and a password in it, `shown` has not."""

    port: int
    user: str
    password: str

    @property
    def shown(self) -> str:
        return f"postgresql+psycopg://127.0.0.1:{self.port}/postgres"

    @property
    def url(self) -> str:
        return self.shown.replace("://", f"://{self.user}:{quote(self.password, safe='')}@")

    @property
    def conninfo(self) -> str:
        """As psycopg takes it."""
        return self.url.replace("+psycopg", "")

    @property
    def variables(self) -> Mapping[str, str]:
        """What libpq reads."""
        return {
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.port),
            "PGUSER": self.user,
            "PGPASSWORD": self.password,
        }


@contextmanager
def running_postgresql() -> Iterator[Postgresql]:
    """With databases "postgres" and "mlflow", both empty; the test is skipped where none is installed."""
    programs = [shutil.which("initdb"), *sorted(map(str, Path("/").glob(f"{SERVER_FOLDERS[1:]}/initdb")))]
    initdb = next((Path(program) for program in programs if program), None)
    if initdb is None:
        pytest.skip("no PostgreSQL server is installed (initdb)")
    # It refuses to be run by root.
    user = "nobody" if os.geteuid() == 0 else None
    (port,) = free_ports(1)
    with tempfile.TemporaryDirectory(prefix="postgresql-") as folder:
        secret = Path(folder) / "password"
        secret.write_text(PASSWORD)
        if user:
            for path in (Path(folder), secret):
                os.chown(path, pwd.getpwnam(user).pw_uid, -1)

        def run(program: str, *arguments: str) -> None:
            command = [str(initdb.with_name(program)), "--pgdata", f"{folder}/data", *arguments]
            subprocess.run(command, user=user, cwd=folder, check=True, stdout=subprocess.DEVNULL)

        run("initdb", "--auth=scram-sha-256", "--username=tester", f"--pwfile={secret}", "--no-sync")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
        run("pg_ctl", "start", "--wait", "--options", options, "--log", f"{folder}/log")
        try:
            server = Postgresql(port, "tester", PASSWORD)
            with psycopg.connect(server.conninfo, autocommit=True) as connection:
                connection.execute("CREATE DATABASE mlflow")
            yield server
        finally:
            run("pg_ctl", "stop", "--wait", "--mode", "immediate")


@contextmanager
def running_s3() -> Iterator[Mapping[str, str]]:
    """An S3 without content and without access control; yields the variables by which clients find it."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield {
            "MLFLOW_S3_ENDPOINT_URL": f"http://{host}:{port}",
            "AWS_ACCESS_KEY_ID": "mlflow",
            "AWS_SECRET_ACCESS_KEY": "planted-aws-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
    finally:
        server.stop()


@dataclass(frozen=True)
class TrackingServer:
    """The team's server; `postgresql` and `s3` are where it keeps what it is sent."""

    uri: str
    admin_password: str
    postgresql: Postgresql
    s3: Mapping[str, str]
    log: Path

    def sign_up(self, user: str, password: str) -> Mapping[str, str]:
        """Make a user as cluster/README.md says; returns the variables of a client that is this user."""
        from mlflow.server.auth.client import AuthServiceClient

        with environment(self.as_user("admin", self.admin_password)):
            AuthServiceClient(self.uri).create_user(user, password)
        return self.as_user(user, password)

    def rows(self) -> dict[str, list[str]]:
        """Every row of the database as text, by table."""
        with psycopg.connect(self.postgresql.conninfo, dbname="mlflow") as connection:
            tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
            return {
                table: [row for (row,) in connection.execute(f'SELECT t::text FROM "{table}" t')]
                for (table,) in tables.fetchall()
            }

    def objects(self) -> dict[str, bytes]:
        """Every object of the artifacts' bucket, by key."""
        bucket = boto3.resource("s3", **_boto3_arguments(self.s3)).Bucket("mlflow")
        return {found.key: found.get()["Body"].read() for found in bucket.objects.all()}

    def as_user(self, user: str, password: str) -> Mapping[str, str]:
        return {
            "MLFLOW_TRACKING_URI": self.uri,
            "MLFLOW_TRACKING_USERNAME": user,
            "MLFLOW_TRACKING_PASSWORD": password,
        }


@contextmanager
def running_tracking_server(folder: Path, postgresql: Postgresql) -> Iterator[TrackingServer]:
    """The server that cluster/mlflow defines, without its containers; it works and logs in `folder`.

    It takes the database "mlflow" of `postgresql`.
    """
    (port,) = free_ports(1)
    uri = f"http://127.0.0.1:{port}"
    with running_s3() as s3:
        secrets = {
            "POSTGRES_PASSWORD": postgresql.password,
            "S3_SECRET_KEY": s3["AWS_SECRET_ACCESS_KEY"],
            "MLFLOW_AUTH_ADMIN_PASSWORD": "planted-admin-password",
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "planted-csrf-key",
            "MLFLOW_SERVER_ALLOWED_HOSTS": f"127.0.0.1:{port}",
            "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": uri,
        }
        variables = server_variables(secrets) | postgresql.variables | s3
        python = [sys.executable, str(DEFINITION / "create_bucket.py")]
        subprocess.run(python, env={**clean_environment(), **variables}, check=True)
        with running_server(
            [*server_command(), "--host", "127.0.0.1", "--port", str(port)], variables, folder
        ):
            password = secrets["MLFLOW_AUTH_ADMIN_PASSWORD"]
            yield TrackingServer(uri, password, postgresql, s3, folder / LOG_FILE)


@contextmanager
def running_server(command: list[str], variables: Mapping[str, str], folder: Path) -> Iterator[None]:
    """An MLflow server that answers; all its processes have ended afterwards."""
    host, port = (command[len(command) - command[::-1].index(flag)] for flag in ("--host", "--port"))
    log = folder / LOG_FILE
    with open(log, "w") as output:
        process = subprocess.Popen(
            [str(BIN / command[0]), *command[1:]],
            cwd=folder,
            env={**clean_environment(), **variables},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _answers(f"http://{host}:{port}/health"):
            assert process.poll() is None, f"ended with {process.returncode}:\n{log.read_text()}"
            assert time.monotonic() < deadline, f"no answer in {START_TIMEOUT_S} s:\n{log.read_text()}"
            time.sleep(0.2)
        yield
    finally:
        started = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        process.terminate()
        _, left = psutil.wait_procs(started, timeout=STOP_TIMEOUT_S)
        for child in left:
            child.kill()
        process.wait()


def server_command() -> list[str]:
    """The command of the image, which is the server's in every form."""
    found = re.search(r"^CMD (\[.*?\])", _dockerfile(), re.MULTILINE | re.DOTALL)
    assert found
    command: list[str] = json.loads(found[1])
    return command


def server_variables(secrets: Mapping[str, str]) -> dict[str, str]:
    """The environment of the server by Dockerfile and compose.yaml, with the values of an env file.

    Raises KeyError for a required variable that is missing, or empty, as compose refuses it.
    """
    found = re.search(r"^ENV (.*)$", _dockerfile(), re.MULTILINE)
    assert found
    of_image = dict(pair.split("=", 1) for pair in shlex.split(found[1]))
    of_image["MLFLOW_AUTH_CONFIG_PATH"] = str(DEFINITION / Path(of_image["MLFLOW_AUTH_CONFIG_PATH"]).name)
    compose: dict[str, Any] = yaml.safe_load((DEFINITION / "compose.yaml").read_text())
    of_site: dict[str, str] = compose["services"]["mlflow"]["environment"]
    return of_image | {name: _filled(text, secrets) for name, text in of_site.items()}


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """These variables in this process too, for libraries that read nothing else."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        yield


def _boto3_arguments(variables: Mapping[str, str]) -> dict[str, str]:
    return {
        "endpoint_url": variables["MLFLOW_S3_ENDPOINT_URL"],
        "aws_access_key_id": variables["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": variables["AWS_SECRET_ACCESS_KEY"],
        "region_name": variables["AWS_DEFAULT_REGION"],
    }


def _dockerfile() -> str:
    return (DEFINITION / "Dockerfile").read_text().replace("\\\n", "")


def _filled(text: str, values: Mapping[str, str]) -> str:
    """Compose's ${NAME:?message}: the only form that the definition uses."""

    def value(reference: re.Match[str]) -> str:
        if not values.get(reference[1]):
            raise KeyError(reference[1])
        return values[reference[1]]

    return re.sub(r"\$\{(\w+):\?[^}]*\}", value, text)


def _answers(url: str) -> bool:
    try:
        with urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (URLError, OSError):
        return False
