"""A store in S3 trains and is checked from there; its shards are fetched once, and errors are one line."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest

from encsearch.data.scenes import generate_scenes
from tests.e2e.head import free_ports
from tests.e2e.servers import running_s3
from tests.e2e.shell import Shell, refusal_in

BRIEF = ("train.epochs=1", "train.steps_per_epoch=2", "train.global_batch_size=4")
PATIENCE_S = 30  # pyarrow tries a server that does not answer for some 6 s


@dataclass(frozen=True)
class Remote:
    """A user whose environment names an S3, in which `bucket` has the store `scenes`, without its cache."""

    shell: Shell
    bucket: Any
    address: str

    def train(self, code: int = 0, store: str | None = None) -> str:
        recipe = (f"data.store={store or self.address}", *BRIEF)
        return self.shell.run("train", "toy.yaml", *recipe, "--in-process", code=code).stderr

    def refusal(self, store: str | None = None) -> str:
        return refusal_in(self.train(code=3, store=store))

    def remove_shards(self) -> None:
        for found in self.bucket.objects.all():
            if found.key.endswith(".parquet"):
                found.delete()


@pytest.fixture
def remote(shell: Shell, tmp_path: Path) -> Iterator[Remote]:
    generate_scenes(tmp_path / "scenes", num_train=8, num_val=2, num_test=2)
    with running_s3() as s3:
        endpoint = s3["MLFLOW_S3_ENDPOINT_URL"]
        bucket = boto3.resource(
            "s3",
            endpoint_url=endpoint,
            aws_access_key_id=s3["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=s3["AWS_SECRET_ACCESS_KEY"],
            region_name=s3["AWS_DEFAULT_REGION"],
        ).create_bucket(Bucket="data")
        for file in (tmp_path / "scenes").glob("*.*"):
            if file.is_file():
                bucket.upload_file(str(file), f"sets/{file.name}")
        variables = {**s3, "AWS_ENDPOINT_URL": endpoint, "XDG_CACHE_HOME": str(tmp_path / "cache")}
        yield Remote(Shell(shell.folder, variables), bucket, "s3://data/sets")


def test_a_store_in_s3_is_fetched_once_and_trained_on(remote: Remote, tmp_path: Path) -> None:
    assert "epoch 1" in remote.train()
    fetched = sorted(file.name for file in (tmp_path / "cache").rglob("*.parquet"))
    assert fetched == ["train-00000.parquet", "val-00000.parquet"]  # nothing reads test

    remote.remove_shards()
    remote.train()


def test_a_store_in_s3_is_checked(remote: Remote) -> None:
    done = remote.shell.run("data", "check", remote.address)
    assert f"{remote.address}: train 8, val 2, test 2" in done.stdout
    remote.shell.run("data", "stats", remote.address)


def test_a_bucket_that_does_not_exist(remote: Remote) -> None:
    started = time.monotonic()
    for store in ("s3://none/sets", "s3://data/none"):
        assert remote.refusal(store).startswith(f"error: {store}: ")
    assert time.monotonic() - started < 2 * PATIENCE_S


def test_a_server_that_does_not_answer(remote: Remote) -> None:
    (port,) = free_ports(1)
    variables = {**remote.shell.variables, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}
    dead = Remote(Shell(remote.shell.folder, variables), None, remote.address)
    started = time.monotonic()
    assert dead.refusal().startswith(f"error: {remote.address}: cannot be read (")
    assert time.monotonic() - started < PATIENCE_S
