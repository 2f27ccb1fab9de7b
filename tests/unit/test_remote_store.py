"""A store that lies elsewhere is used like a local one; file:// stands for object storage."""

import shutil
from pathlib import Path

import pytest

from encsearch.data.audit import check_store
from encsearch.data.manifest import StoreError
from encsearch.data.scenes import generate_scenes
from encsearch.data.store import Store


@pytest.fixture
def address(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    generate_scenes(tmp_path / "there", num_train=4, num_val=2, num_test=2)
    return f"file://{tmp_path / 'there'}"


def test_the_same_samples(address: str, tmp_path: Path) -> None:
    remote, local = Store(address), Store(tmp_path / "there")
    assert remote.fingerprint == local.fingerprint
    assert [
        (s.image == t.image).all() for s, t in zip(remote.split("train"), local.split("train"), strict=True)
    ]
    assert remote.stats("val") == local.stats("val")
    assert check_store(address).problems == ()


def test_only_what_is_used_is_fetched_and_only_once(address: str, tmp_path: Path) -> None:
    store = Store(address)
    store.split("train")
    assert sorted(file.name for file in store.path.glob("*.parquet")) == ["train-00000.parquet"]
    shutil.rmtree(tmp_path / "there")
    with pytest.raises(StoreError, match="no store there, it has no manifest"):
        Store(address)
    assert len(store.split("train")) == 4


def test_data_that_was_replaced_is_fetched_again(address: str, tmp_path: Path) -> None:
    before = Store(address).split("train")[0]
    shutil.rmtree(tmp_path / "there")
    generate_scenes(tmp_path / "there", num_train=4, num_val=2, num_test=2, seed=1)
    after = Store(address).split("train")[0]
    assert (before.image != after.image).any()


def test_a_shard_that_is_not_the_manifests(address: str, tmp_path: Path) -> None:
    store = Store(address)
    shard = tmp_path / "there" / "train-00000.parquet"
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(data)
    with pytest.raises(StoreError, match=r"train-00000\.parquet: not the shard of the manifest"):
        store.split("train")
    assert list(store.path.glob("*.parquet")) == []


def test_what_was_damaged_here_is_fetched_again(address: str) -> None:
    store = Store(address)
    truth = store.split("train")[0]
    for file in (*store.path.glob("train-*.parquet"), *store.path.glob(".cache/*")):
        data = bytearray(file.read_bytes())
        data[1000] ^= 1
        file.write_bytes(data)
    for cached in store.path.glob(".cache/*"):
        cached.unlink()
    assert (Store(address).split("train")[0].image == truth.image).all()
    (shard,) = store.path.glob("train-*.parquet")
    data = bytearray(shard.read_bytes())
    data[1000] ^= 1
    shard.write_bytes(data)
    assert check_store(address).problems == ()


@pytest.mark.parametrize("address", ["foo://bucket/x", "file:///nowhere/at/all", "s3://"])
def test_an_address_that_leads_nowhere_is_one_line(address: str) -> None:
    with pytest.raises(StoreError, match=r"^(foo://bucket/x|file:///nowhere|s3://)") as caught:
        Store(address)
    assert "\n" not in str(caught.value)
