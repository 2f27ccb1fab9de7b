"""What `benchmarks/fuzz.py` and `damage.py` found: damage is one line, never other pixels or a traceback."""

import json
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scipy.io import savemat

from encsearch.cli.main import main
from encsearch.data.codec import decode_raw_mask, encode_png
from encsearch.data.datasets import DatasetInfo, EncodedSample
from encsearch.data.importers import write as writing
from encsearch.data.importers.folder import plan_folder
from encsearch.data.importers.labels import LabelTable, class_table, read_table
from encsearch.data.importers.pairs import PairSettings
from encsearch.data.importers.parquet import plan_parquet
from encsearch.data.importers.plan import MatlabMask, Pair, RunLengthMask, read_row
from encsearch.data.importers.tree import MISSING, File, Tree, read_lines, regular_file
from encsearch.data.importers.write import ImportSettings, write_plan
from encsearch.data.manifest import StoreError, read_manifest
from encsearch.data.rows import StoreRow
from encsearch.data.store import Store, write_store
from encsearch.errors import TrainingError, UserError
from encsearch.reports import Point, Report, append, distinct_reports, read_summary
from encsearch.tracking.outbox.events import read_events
from encsearch.tracking.outbox.forward import read_sent
from encsearch.train.checkpoint_files import read_content
from encsearch.workflow.sweep.folder import reopen
from tests.unit.test_importers import chunk, chunks, labels, picture, png

CLASSES = ("sky", "road", "car")
ROW = b"\0" + bytes(8)  # of an 8 x 6 grey picture: no filter, black


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Eight good pairs and the class names."""
    root = tmp_path / "source"
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    (root / "classes.txt").write_text("sky\nroad\ncar\n")
    for number in range(8):
        picture(seed=number).save(root / "images" / f"{number}.png")
        labels(seed=number).save(root / "masks" / f"{number}.png")
    return root


class TestPng:
    """Chunks whose checksums are right, so that only the pixels themselves can tell."""

    @pytest.mark.parametrize(
        ("data", "message"),
        [
            (chunks(0, chunk(b"IDAT", zlib.compress(ROW * 6)[:-4] + b"1234")), "incorrect data check"),
            (chunks(0, chunk(b"IDAT", zlib.compress(ROW * 6)[:-4])), "the end of its pixels is missing"),
            (chunks(0, chunk(b"IDAT", zlib.compress(ROW * 7))), "it holds more pixels than its header says"),
            (chunks(3, chunk(b"IDAT", zlib.compress(ROW * 6))), "its palette is missing"),
        ],
    )
    def test_refused(self, data: bytes, message: str) -> None:
        with pytest.raises(UserError, match=rf"^here: damaged PNG \(.*{message}"):
            decode_raw_mask(data, "here", colours=False)


def test_a_palette_bmp_that_is_cut_is_one_line() -> None:
    file = BytesIO()
    mask = labels()
    mask.putpalette([0] * 768)
    mask.save(file, "BMP")
    with pytest.raises(UserError, match=r"^here: damaged BMP"):
        decode_raw_mask(file.getvalue()[:-20], "here", colours=False)


class TestTables:
    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("a.json", "[" * 100_000, "not JSON"),
            ("a.json", '{"road": 1, "road": 2}', "'road' is there twice; keep one"),
            ("a.json", '[{"value": 1, "id": 2, "name": "a"}]', "entry 0: 'value' is there twice"),
            ("a.json", '[{"colour": 5, "name": "a"}]', "entry 0: colour 5 is neither #rrggbb nor"),
            ("a.json", f'{{"a": {"9" * 4000}}}', "is not a whole number of"),
            ("a.json", '{"a": 1.0}', "value '?1.0'? is not a whole number of 0..65535"),
            ("a.csv", "value,name,name\n1,a,b\n", "'name' is there twice"),
            ("a.csv", "value,name\n1_0,a\n", "value '1_0' is not a whole number"),
            ("a.csv", "value,name\n\u0663,a\n", "is not a whole number"),
            ("a.csv", "name,r,g,b\na,-1,0,0\n", "a colour's part -1 is not in 0..255"),
            ("a.csv", f"value,name\n{'1' * 5000},a\n", "is not a whole number"),
        ],
    )
    def test_refused(self, name: str, text: str, message: str, tmp_path: Path) -> None:
        (tmp_path / name).write_text(text, encoding="utf-8")
        with pytest.raises(UserError, match=message) as caught:
            read_table(tmp_path / name, by_colour=False)
        assert len(str(caught.value)) < 500

    def test_a_name_is_not_split_at_a_control_character(self, tmp_path: Path) -> None:
        (tmp_path / "classes.txt").write_bytes(b"sky\x0cblue\r\nroad\rcar\n")
        assert read_lines(regular_file(tmp_path / "classes.txt")) == ["sky\x0cblue", "road", "car"]

    @pytest.mark.parametrize("line", ["/", ".", "..", "../../etc/passwd"])
    def test_a_list_with_a_line_that_is_no_name(self, line: str, source: Path, tmp_path: Path) -> None:
        (tmp_path / "train.txt").write_text(f"{line}\n")
        with pytest.raises(UserError, match="is not the name of a pair"):
            plan_folder(source, PairSettings(split_lists={"train": tmp_path / "train.txt"}))

    def test_a_listed_name_that_two_folders_have(self, source: Path, tmp_path: Path) -> None:
        for kind in ("images", "masks"):
            (source / kind / "city").mkdir()
            shutil.copy(source / kind / "0.png", source / kind / "city" / "1.png")
            shutil.copy(source / kind / "0.png", source / kind / "city" / "9.png")
            (source / kind / "town").mkdir()
            shutil.copy(source / kind / "0.png", source / kind / "town" / "9.png")
        listed = tmp_path / "train.txt"
        settings = PairSettings(split_lists={"train": listed})
        listed.write_text("1\ncity/9\n")  # an id comes before a name in a folder
        assert [entry.id for entry in plan_folder(source, settings).splits["train"]] == ["1", "city/9"]
        listed.write_text("9.png\n")
        with pytest.raises(
            UserError,
            match=r"9\.png can be images/city/9\.png and images/town/9\.png; write the name with its",
        ):
            plan_folder(source, settings)

    def test_a_split_that_would_be_written_elsewhere(self, source: Path, tmp_path: Path) -> None:
        (tmp_path / "list.txt").write_text("0\n1\n")
        planned = plan_folder(source, PairSettings(split_lists={"../../train": tmp_path / "list.txt"}))
        with pytest.raises(UserError, match=r"split '\.\./\.\./train': a split's name has only letters"):
            write_plan(planned, tmp_path / "store")

    def test_a_group_that_is_optional_in_its_expression(self, source: Path) -> None:
        with pytest.raises(UserError, match="not found in the name 0; every name needs a group"):
            plan_folder(source, PairSettings(group="(x)?"))


class TestArchives:
    @pytest.fixture
    def tar(self, source: Path, tmp_path: Path) -> Path:
        """Pairs side by side, so that a part of it has whole pairs."""
        with tarfile.open(tmp_path / "all.tar", "w", format=tarfile.GNU_FORMAT) as out:
            out.add(source / "classes.txt", "classes.txt")
            for number in range(8):
                for kind in ("images", "masks"):
                    out.add(source / kind / f"{number}.png", f"{kind}/{number}.png")
        return tmp_path / "all.tar"

    def plan(self, archive: Path) -> int:
        return plan_folder(archive, PairSettings(val_fraction=0.4)).num_samples

    def test_a_damaged_header_does_not_end_a_tar(self, tar: Path) -> None:
        assert self.plan(tar) == 8
        data = bytearray(tar.read_bytes())
        data[data.index(b"images/5.png") + 3] ^= 1
        tar.write_bytes(data)
        with pytest.raises(UserError, match=r"all\.tar: not a whole archive \(damaged or cut after [\d,]+"):
            self.plan(tar)

    def test_a_tar_that_is_cut_between_two_members(self, tar: Path) -> None:
        data = tar.read_bytes()
        tar.write_bytes(data[: data.index(b"images/5.png")])
        with pytest.raises(UserError, match="damaged or cut after"):
            self.plan(tar)

    def test_a_size_below_zero(self, tar: Path) -> None:
        data = bytearray(tar.read_bytes())
        start = data.index(b"images/5.png")
        data[start + 124 : start + 136] = b"\xff" * 11 + b"\0"
        data[start + 148 : start + 156] = b" " * 8
        data[start + 148 : start + 156] = b"%06o\0 " % sum(data[start : start + 512])
        tar.write_bytes(data)
        with pytest.raises(UserError, match="not a whole archive"):
            self.plan(tar)

    def test_a_second_name_of_a_file_in_a_tar_is_a_file(self, source: Path, tmp_path: Path) -> None:
        os.unlink(source / "images" / "7.png")
        os.link(source / "images" / "6.png", source / "images" / "7.png")
        with tarfile.open(tmp_path / "all.tar", "w") as out:
            out.add(source, ".")
        assert self.plan(tmp_path / "all.tar") == 8

    def test_links_in_a_tar_are_named(self, source: Path, tmp_path: Path) -> None:
        (source / "images" / "7.png").unlink()
        (source / "images" / "7.png").symlink_to("6.png")
        with tarfile.open(tmp_path / "all.tar", "w") as out:
            out.add(source, ".")
        with pytest.raises(UserError, match=r"images/7\.png: not a regular file of its archive"):
            self.plan(tmp_path / "all.tar")

    @pytest.mark.parametrize("name", ["all.zip", "all.tar", "all.tgz"])
    @pytest.mark.parametrize("kind", ["FIFO", "device"])
    def test_what_is_no_file_is_not_opened(self, name: str, kind: str, tmp_path: Path) -> None:
        """A FIFO has no end, and of /dev/zero as a zip all memory was read."""
        if kind == "FIFO":
            os.mkfifo(tmp_path / name)
        else:
            (tmp_path / name).symlink_to("/dev/zero")
        with pytest.raises(UserError, match="not a regular file"):
            Tree([tmp_path / name], tmp_path / "scratch")

    def test_a_broken_link_in_place_of_an_archive(self, tmp_path: Path) -> None:
        (tmp_path / "all.tar").symlink_to("nowhere")
        with pytest.raises(UserError, match=r"all\.tar: no such file"):
            Tree([tmp_path], None, ("*.tar",))

    def test_a_name_that_a_zip_has_twice(self, tmp_path: Path) -> None:
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as out:
            out.writestr("a", b"1")
            with pytest.warns(UserWarning, match="Duplicate"):
                out.writestr("a", b"2")
        with pytest.raises(UserError, match=r"a\.zip: not a whole archive \(a is in it twice\)"):
            Tree([tmp_path / "a.zip"], None)

    @pytest.mark.parametrize("kind", ["zip", "tar"])
    def test_an_archive_that_was_replaced_is_read_anew(self, kind: str, source: Path, tmp_path: Path) -> None:
        for number, seed in enumerate((0, 9)):
            labels(seed=seed).save(source / "masks" / "0.png")
            archive = Path(shutil.make_archive(str(tmp_path / "all"), kind, source))
            os.utime(archive, ns=(number, number))
            name = next(name for name in Tree([archive], None).files if name.endswith("masks/0.png"))
            data = Tree([archive], None).files[name].read()
            np.testing.assert_array_equal(
                np.asarray(Image.open(BytesIO(data))), np.asarray(labels(seed=seed))
            )

    def test_a_member_that_claims_too_much(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"a\.zip:x: .* over 2"):
            File(tmp_path / "a.zip", 2**40, 0, "x").read()


class TestPlaces:
    def test_a_file_that_a_list_promises_is_not_looked_for_elsewhere(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "a.png").write_bytes(b"another file of this name")
        monkeypatch.chdir(tmp_path)
        for name in ("a.png", "a\0.png"):
            with pytest.raises(UserError, match="not in the source"):
                File(Path(name), MISSING, 0).read()

    @pytest.mark.parametrize("target", ["/", ".."])
    def test_a_link_to_a_folder_above_the_source_is_not_followed(self, target: str, source: Path) -> None:
        (source / "images" / "again").symlink_to(source.parent if target == ".." else target)
        tree = Tree([source], None)
        assert len(tree.files) == 17
        assert tree.odd == {"images/again": "a link that leads back to a folder above it"}

    def test_a_message_is_one_line_whatever_a_file_is_called(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as ended:
            main(["data", "import", "folder", str(tmp_path / "a\nb"), str(tmp_path / "store")])
        assert ended.value.code == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


class TestMatrices:
    def read(self, folder: Path, value: Any) -> np.ndarray:
        savemat(folder / "a.mat", {"LabelMap": value}, do_compression=True)
        return MatlabMask(regular_file(folder / "a.mat"), ("LabelMap",)).read().codes

    def test_whole_numbers_only(self, tmp_path: Path) -> None:
        np.testing.assert_array_equal(self.read(tmp_path, np.array([[1.0, 2.0]])), [[1, 2]])
        for value in ([[1.5, 2]], [[np.nan, 1]], [[1e12, 1]]):
            with pytest.raises(UserError, match="is not a matrix of height x width whole numbers"):
                self.read(tmp_path, np.array(value))

    def test_damage_below_the_compression(self, tmp_path: Path) -> None:
        self.read(tmp_path, np.zeros((40, 40)))
        file = tmp_path / "a.mat"
        whole = file.read_bytes()
        for place in range(128, len(whole), 3):
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 0x11]) + whole[place + 1 :])
            with pytest.raises(UserError, match=r"a\.mat: no matrix LabelMap in it"):
                MatlabMask(regular_file(file), ("LabelMap",)).read()

    def test_values_that_no_table_has(self) -> None:
        for value in (-1, 70_000, 2**31 - 1):
            with pytest.raises(UserError, match=rf"^here: mask value {value} is not in 0\.\.65535"):
                class_table(CLASSES).translate(np.array([[value]], np.int32), "here")

    @pytest.mark.parametrize(
        "segments",
        [[[1, {"size": [10**6, 10**6], "counts": ""}]], [[10**30, {"size": [2, 2], "counts": ""}]], [3]],
    )
    def test_run_lengths_that_cannot_be(self, segments: Any, tmp_path: Path) -> None:
        (tmp_path / "a").write_text(json.dumps(segments))
        with pytest.raises(UserError, match="not segments in COCO's run-length encoding"):
            RunLengthMask(regular_file(tmp_path / "a"), "here").read()


class TestParquet:
    def plan(self, folder: Path, ids: list[str]) -> int:
        rows = [
            {"id": name, "image": png(picture(seed=number)), "label": png(labels(seed=number))}
            for number, name in enumerate(ids)
        ]
        pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")
        planned = plan_parquet(folder, PairSettings(classes=CLASSES))
        return write_plan(planned, folder.parent / "store").splits["train"].num_samples

    def test_names_that_cannot_be_shown(self, source: Path) -> None:
        assert self.plan(source, ["a", "b"]) == 2
        shutil.rmtree(source.parent / "store")
        for name in ("a\nb", "", "\x07"):
            with pytest.raises(UserError, match="is empty or cannot be printed"):
                self.plan(source, ["a", name])

    def test_names_that_are_not_utf8(self, source: Path) -> None:
        self.plan(source, ["sample-a", "sample-b"])
        file = source / "train.parquet"
        file.write_bytes(file.read_bytes().replace(b"sample-a", b"sample-\xff"))
        with pytest.raises(UserError, match=r"train\.parquet: not a whole Parquet file"):
            plan_parquet(source, PairSettings(classes=CLASSES))


class TestStore:
    @pytest.fixture
    def store(self, tmp_path: Path) -> Path:
        samples = [
            EncodedSample(
                str(number), png(picture(seed=number)), encode_png(np.asarray(labels(seed=number))), ""
            )
            for number in range(4)
        ]
        info = DatasetInfo("toy", CLASSES, ((0, 0, 9), (9, 9, 9), (9, 0, 0)))
        write_store(tmp_path / "store", info, {"train": samples[:2], "val": samples[2:]})
        return tmp_path / "store"

    def edit(self, store: Path, change: Callable[[dict[str, Any]], object]) -> None:
        values = json.loads((store / "manifest.json").read_text())
        change(values)
        (store / "manifest.json").write_text(json.dumps(values))

    @pytest.mark.parametrize(
        "change",
        [
            lambda values: values["splits"]["val"].update(num_samples=3),
            lambda values: values["splits"]["val"].update(num_samples="2"),
            lambda values: values["splits"]["val"].update(shards=[]),
            lambda values: values["splits"]["val"]["shards"][0].update(bytes="x"),
            lambda values: values["splits"]["val"]["shards"][0].update(num_samples=True),
            lambda values: values["splits"]["val"]["shards"][0].update(bytes=-5),
            lambda values: values["splits"]["val"]["shards"][0].update(file="\ud800"),
            lambda values: values["splits"].update({"\ud800": values["splits"]["val"]}),
        ],
    )
    def test_counts_in_the_manifest(self, change: Callable[[dict[str, Any]], object], store: Path) -> None:
        self.edit(store, change)
        with pytest.raises(StoreError, match=r"manifest\.json: damaged, not a manifest"):
            read_manifest(store)

    def test_a_manifest_that_is_nested_too_deep_or_no_file(self, store: Path) -> None:
        (store / "manifest.json").write_text("[" * 100_000)
        with pytest.raises(StoreError, match=r"manifest\.json: damaged, not a manifest"):
            read_manifest(store)
        (store / "manifest.json").unlink()
        os.mkfifo(store / "manifest.json")
        with pytest.raises(StoreError, match=r"manifest\.json: not a regular file"):
            read_manifest(store)

    def test_the_copy_of_another_shard(self, store: Path) -> None:
        """Every row of it is sound, and of the same number."""
        copies = []
        for split in ("train", "val"):
            Store(store).split(split)
            (shard,) = read_manifest(store).splits[split].shards
            copies.append(store / ".cache" / f"{shard.sha256}.arrow")
        shutil.copy(copies[0], copies[1])
        with pytest.raises(StoreError, match=r"damaged, not the rows of val-00000\.parquet; delete it"):
            Store(store).split("val")
        copies[1].unlink()
        os.mkfifo(copies[1])
        assert [Store(store).split("val")[index].id for index in range(2)] == ["2", "3"]

    def test_a_copy_of_an_earlier_version_is_made_again(self, store: Path) -> None:
        Store(store).split("val")
        (copy,) = (store / ".cache").iterdir()
        with pa.OSFile(str(copy)) as file:
            table = pa.ipc.open_file(file).read_all().replace_schema_metadata(None)
        with pa.OSFile(str(copy), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
            writer.write_table(table)
        assert len(Store(store).split("val")) == 2
        with pa.OSFile(str(copy)) as file:
            assert b"shard" in pa.ipc.open_file(file).schema.metadata


class TestNothingIsLeft:
    def test_a_disk_that_is_full_when_a_shard_is_noted(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(path: Path, text: str) -> None:
            raise TrainingError(f"{path}: cannot be written (No space left on device)")

        monkeypatch.setattr(writing, "write_whole", full)
        with pytest.raises(TrainingError, match="No space left"):
            write_plan(plan_folder(source, PairSettings(val_fraction=0.4)), tmp_path / "store")
        assert [file.name for file in tmp_path.iterdir()] == ["source"]

    def test_parts_of_files_of_an_import_that_was_killed(
        self, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The copy of a shard whose source has changed, and one that was half written."""
        monkeypatch.setattr(writing, "_SMALLEST_SHARD", 1)

        def interrupt(entry: Pair, table: LabelTable) -> StoreRow:
            if entry.id == "7":
                raise KeyboardInterrupt
            return read_row(entry, table)

        with monkeypatch.context() as patch:
            patch.setattr(writing, "read_row", interrupt)
            with pytest.raises(KeyboardInterrupt):
                write_plan(plan_folder(source, PairSettings(val_fraction=0.4)), tmp_path / "store")
        (tmp_path / ".store.import" / ".cache" / ".x.arrow.0.tmp").write_bytes(b"half")
        picture(seed=77).save(source / "images" / "0.png")
        manifest = write_plan(plan_folder(source, PairSettings(val_fraction=0.4)), tmp_path / "store")
        shards = {f"{one.sha256}.arrow" for split in manifest.splits.values() for one in split.shards}
        assert {file.name for file in (tmp_path / "store" / ".cache").iterdir()} == shards


def test_the_sheet_of_a_store_needs_no_archive(tmp_path: Path, source: Path) -> None:
    """What a compressed tar was unpacked to is deleted when it is drawn, and other processes had read it."""
    for number in range(8, 300):
        for kind in ("images", "masks"):
            shutil.copy(source / kind / "0.png", source / kind / f"{number}.png")
    with tarfile.open(tmp_path / "all.tgz", "w:gz") as out:
        out.add(source, ".")
    with pytest.raises(SystemExit) as ended:
        main(
            [
                "data",
                "import",
                "folder",
                str(tmp_path / "all.tgz"),
                str(tmp_path / "store"),
                "--processes",
                "2",
            ]
        )
    assert ended.value.code == 0
    assert Image.open(tmp_path / "store" / "sheet.png").format == "PNG"


def test_skipped_samples_leave_a_sheet_of_the_others(tmp_path: Path, source: Path) -> None:
    for number in range(1, 8):
        (source / "images" / f"{number}.png").write_bytes(b"")
    planned = plan_folder(source, PairSettings(val_fraction=0.4), on_bad="skip")
    splits = {"train": [entry for entries in planned.splits.values() for entry in entries]}
    write_plan(
        type(planned)(**{**vars(planned), "splits": splits}),
        tmp_path / "store",
        ImportSettings("skip", bad_limit=1),
    )
    assert len(Store(tmp_path / "store").split("train")) == 1


DAMAGES: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "null": lambda path: path.write_text("null\n"),
    "[]": lambda path: path.write_text("[]\n"),
    "{}": lambda path: path.write_text("{}\n"),
    "NaN": lambda path: path.write_text("NaN\n"),
    "nested deep": lambda path: path.write_text("[" * 100_000 + "\n"),
    "not UTF-8": lambda path: path.write_bytes(b'{"a": "\xff\xfe"}\n'),
    "an unknown key": lambda path: path.write_text('{"unknown": 1}\n'),
    "a line of another": lambda path: path.write_text('{"name": "x", "epoch": 1, "kind": "x"}\n'),
    "a folder": lambda path: path.mkdir(),
    "a FIFO": lambda path: os.mkfifo(path),
    "a link to itself": lambda path: path.symlink_to(path.name),
}
READERS: dict[str, Callable[[Path], object]] = {
    "run.json": lambda path: read_summary(path.parent),
    "study.json": lambda path: reopen(path.parent),
    "reports.jsonl": distinct_reports,
    "sent.json": lambda path: read_sent(path.parent.parent),
    "events.jsonl": lambda path: list(read_events(path)),
    "checkpoint.json": lambda path: read_content(path.parent),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", READERS)
def test_a_damaged_file_of_a_job_is_one_line(name: str, damage: str, tmp_path: Path) -> None:
    """`benchmarks/damage.py` does this to real jobs and commands, in more ways."""
    path = tmp_path / "job" / "record" / name
    path.parent.mkdir(parents=True)
    DAMAGES[damage](path)
    if (name, damage) in {("reports.jsonl", "empty"), ("events.jsonl", "empty")}:
        assert READERS[name](path) == []
        return
    with pytest.raises(UserError) as refused:
        READERS[name](path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < len(str(path)) + 300


def test_a_value_of_the_wrong_type_is_named(tmp_path: Path) -> None:
    report = Report(1, 10, 1.5, {"mIoU": 0.5}).to_dict() | {"metrics": {"mIoU": "high"}}
    (tmp_path / "reports.jsonl").write_text(json.dumps(report) + "\n")
    with pytest.raises(UserError, match=r"reports\.jsonl: damaged \(metrics\.mIoU: .*number"):
        distinct_reports(tmp_path / "reports.jsonl")


def test_a_report_comes_back_as_it_was(tmp_path: Path) -> None:
    whole = Report(
        epoch=1,
        step=10,
        seconds=1.5,
        metrics={"mIoU": 0.5, "train/loss": float("inf")},
        class_iou={"road": 0.25},
        confusion=((1, 2), (3, 4)),
        points=(Point(3, 1000, {"step/loss": 0.5}),),
        label_maps={"a": "iVBO"},
        texts={"profile.txt": "text"},
    )
    append(tmp_path / "reports.jsonl", whole)
    assert distinct_reports(tmp_path / "reports.jsonl") == [whole]
