"""What damaged and odd files do to `encsearch data import`, `check` and `stats`, and to reading a store.

    python -m benchmarks.fuzz --cases 1000 --seed 0
    python -m benchmarks.fuzz --seed 0 --case 17             # one case again; its files stay and are named

A case takes a small sound input (a folder of PNG, JPEG, TIFF, BMP and WebP files, an archive of it, tables of
labels, a Parquet file as Hugging Face writes it, VOC with SBD, PASCAL-Context, a store), damages it in one
way, and runs the command that reads it. Both follow from the seed and the number of the case alone. What came
out is compared, sample by sample and pixel by pixel, with what the sound input gives.

refused     exit code 2, and one line "error: ..." at the end
same        exit code 0 and the same samples
left out    exit code 0, fewer samples, and a line that says so (`--on-bad skip`, files of no known name)
own right   other samples, but the changed input is sound: a PNG with new checksums, another class name
no checksum other samples from a format that cannot tell: JPEG, TIFF, BMP, WebP, text, .mat, Parquet of others
WRONG       other samples though the format has a checksum or the form forbids the change
TRACEBACK   anything else on the terminal or any other exit code
LEFT        a store, or what it is built in, is there after a failure
DEATH       a signal ended the process
HANG        no answer in a time limit

Cases run in processes that take one after the other, so that one also sees what the cases before have left in
the process; a process that died or hangs is replaced.
"""

import argparse
import contextlib
import gzip
import io
import json
import os
import resource
import select
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

OUT = Path("benchmarks/results/fuzz.json")
WORKERS, BATCH, LIMIT_S = 2, 100, 30.0
MEMORY_BYTES = 8 * 2**30  # of address space, so that a case cannot take the machine's
PAIRS, WIDTH, HEIGHT = 8, 40, 30
CLASSES = ("sky", "road", "car")
GOOD = ("refused", "same", "left out", "own right", "no checksum")
BAD = ("WRONG", "TRACEBACK", "LEFT", "DEATH", "HANG")
SURE, UNSURE, SOUND = "WRONG", "no checksum", "own right"  # what other pixels are called

Samples = dict[str, tuple[bytes, bytes]]  # id -> pixels of image and mask


def main() -> None:
    arguments = parse()
    if arguments.worker:
        serve(arguments.seed)
        return
    if arguments.case is not None:
        repeat(arguments.seed, arguments.case)
        return
    started = time.monotonic()
    batches = [
        range(first, min(first + BATCH, arguments.cases)) for first in range(0, arguments.cases, BATCH)
    ]
    with ThreadPoolExecutor(WORKERS) as pool:
        run = [
            one for found in pool.map(lambda part: run_batch(arguments.seed, part), batches) for one in found
        ]
    counts: dict[str, Counter[str]] = {}
    for one in run:
        counts.setdefault(one["input"], Counter())[one["outcome"]] += 1
        if one["outcome"] in BAD:
            case = f"--seed {arguments.seed} --case {one['case']}"
            print(
                f"{one['outcome']}: {case}: {one['input']}, {one['change']}: {one['said']}", file=sys.stderr
            )
    columns = [*GOOD, *BAD]
    lines = [f"| input | cases | {' | '.join(columns)} |", "|---" * (len(columns) + 2) + "|"]
    for name in sorted(counts):
        cells = [str(counts[name][column]) for column in columns]
        lines.append(f"| {name} | {counts[name].total()} | {' | '.join(cells)} |")
    total = sum(counts.values(), Counter[str]())
    lines.append(f"| all | {total.total()} | {' | '.join(str(total[column]) for column in columns)} |")
    print("\n".join(lines))
    facts = {
        "seed": arguments.seed,
        "cases": len(run),
        "seconds": time.monotonic() - started,
        "counts": counts,
        "changes": {
            change: Counter(one["outcome"] for one in run if one["change"] == change)
            for change in sorted({one["change"] for one in run})
        },
        "findings": [one for one in run if one["outcome"] in BAD],
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(facts, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="run only this one, here, and keep its files")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=OUT)
    return parser.parse_args()


# --- processes ---


def run_batch(seed: int, cases: range) -> list[dict[str, Any]]:
    """Every case of a batch in one process, or in several if one dies."""
    found: list[dict[str, Any]] = []
    process = start(seed)
    for case in cases:
        answer = ask(process, case)
        if not isinstance(answer, dict):
            process.kill()
            code = process.wait()
            outcome = "HANG" if answer == "HANG" else "DEATH"
            said = f"no answer in {LIMIT_S:.0f} s" if answer == "HANG" else f"ended with {code}"
            plan = choose(seed, case)
            answer = {"case": case, "input": plan[0], "change": plan[1], "outcome": outcome, "said": said}
            process = start(seed)
        found.append(answer)
    process.stdin.close()  # type: ignore[union-attr]
    process.wait()
    return found


def start(seed: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "benchmarks.fuzz", "--worker", "--seed", str(seed)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)


def ask(process: subprocess.Popen[bytes], case: int) -> dict[str, Any] | str:
    assert process.stdin is not None
    assert process.stdout is not None
    deadline, text = time.monotonic() + LIMIT_S, b""
    try:
        process.stdin.write(f"{case}\n".encode())
    except BrokenPipeError:
        return "DEATH"
    while not text.endswith(b"\n"):
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return "HANG"
        block = os.read(process.stdout.fileno(), 2**16)
        if not block:
            return "DEATH"
        text += block
    answer: dict[str, Any] = json.loads(text)
    return answer


def serve(seed: int) -> None:
    """Answer each number on stdin by a line of JSON on what was stdout."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    with tempfile.TemporaryDirectory(prefix="encsearch-fuzz-") as folder:
        inputs = Inputs(Path(folder) / "inputs")
        for line in sys.stdin:
            place = Path(folder) / "case"
            try:
                outcome = run_case(seed, int(line), inputs, place)
            finally:
                shutil.rmtree(place, ignore_errors=True)
            answers.write(json.dumps(outcome) + "\n")


def repeat(seed: int, case: int) -> None:
    place = Path(tempfile.mkdtemp(prefix="encsearch-fuzz-"))
    outcome = run_case(seed, case, Inputs(place / "inputs"), place / "case")
    print((place / "case" / "log").read_text(errors="replace"))
    print(json.dumps(outcome, indent=1))
    print(f"files: {place / 'case'}")


def choose(seed: int, case: int) -> tuple[str, str, np.random.Generator]:
    """Which input a case damages, and how."""
    rng = np.random.default_rng((seed, case))
    often = [name for name, made in KINDS.items() for _ in range(made.weight)]
    kind = often[rng.integers(len(often))]
    changes = KINDS[kind].changes
    return kind, list(changes)[rng.integers(len(changes))], rng


def run_case(seed: int, case: int, inputs: "Inputs", place: Path) -> dict[str, Any]:
    kind, change, rng = choose(seed, case)
    place.mkdir(parents=True)
    made = KINDS[kind]
    damaged = Case(place / "input", rng, dict(made.options))
    inputs.copy(kind, damaged.root)
    call = made.changes[change](damaged)
    skip = made.command == "import" and rng.random() < 0.25
    outcome, said = judge(made, damaged, call, place, inputs, kind, skip)
    return {
        "case": case,
        "input": kind,
        "change": change,
        "outcome": outcome,
        "said": said.replace(str(place), "")[:300],
    }


# --- running and judging ---


def judge(
    made: "Kind", case: "Case", call: str, place: Path, inputs: "Inputs", kind: str, skip: bool
) -> tuple[str, str]:
    truth, usual = inputs.samples(kind), inputs.usual(kind)
    store = place / "store" if made.command == "import" else case.root
    commands: list[list[str]] = []
    if made.command == "import":
        source = str(case.root / case.source if case.source else case.root)
        options = ["--on-bad", "skip", "--bad-limit", "1"] if skip else []
        words = [made.importer, source, str(store), "--processes", "1", *options]
        commands.append(
            [
                "data",
                "import",
                *words,
                *(w.replace("ROOT", str(case.root)) for w in case.options.get("words", ())),
            ]
        )
    else:
        commands += [["data", "check", str(store)], ["data", "stats", str(store), "--json"]]
    text = ""
    for number, command in enumerate(commands):
        code, text = run_command(command, place / "log")
        if (fault := find_fault(code, text)) is not None:
            return "TRACEBACK", fault
        if code:
            if made.command == "import" and (store.exists() or (place / ".store.import").exists()):
                return "LEFT", text.splitlines()[-1]
            if number == 0 and made.command == "store":
                outcome = read_anyway(store, truth, call)
                return outcome or ("refused", text.splitlines()[-1])
            return "refused", text.splitlines()[-1]
        if number == 1 and (other := other_stats(text, truth)):
            return call, other
    try:
        found = read_samples(store)
    except Exception as error:
        fault = refusal(error)
        return ("refused", str(error)) if fault is None else ("TRACEBACK", fault)
    return compare(found, truth, call, text, usual, case)


def read_anyway(store: Path, truth: Samples, call: str) -> tuple[str, str] | None:
    """What a training reads of a store that `data check` has refused."""
    try:
        found = read_samples(store)
    except Exception as error:
        fault = refusal(error)
        return None if fault is None else ("TRACEBACK", fault)
    other = [name for name, pixels in found.items() if truth.get(name) != pixels]
    return (call, f"read anyway: {other[0]} differs") if other else None


def refusal(error: Exception) -> str | None:
    from encsearch.errors import UserError

    if isinstance(error, UserError) and "\n" not in str(error):
        return None
    return "".join(traceback.format_exception(error)[-2:])


def compare(
    found: Samples, truth: Samples, call: str, text: str, usual: set[str], case: "Case"
) -> tuple[str, str]:
    other = [name for name, pixels in found.items() if name in truth and truth[name] != pixels]
    if other:
        return call, f"{other[0]} differs"
    strangers, missing = found.keys() - truth.keys(), truth.keys() - found.keys()
    if strangers:
        return (call if call != SURE or not case.renames else SOUND), f"{sorted(strangers)[0]} is new"
    if missing:
        lines = set(text.splitlines()) - usual
        named = any(word in line for line in lines for word in ("left out:", "skipped:", "cannot be used"))
        return ("left out" if named else call), f"{sorted(missing)[0]} is missing"
    return "same", ""


def run_command(arguments: list[str], log: Path) -> tuple[int, str]:
    """Exit code and all that was printed, by Python and by libraries."""
    from encsearch.cli.main import main as encsearch

    kept = [os.dup(number) for number in (1, 2)]
    out, err = sys.stdout, sys.stderr
    with log.open("w+", buffering=1, errors="backslashreplace") as file:
        try:
            for number in (1, 2):
                os.dup2(file.fileno(), number)
            sys.stdout = sys.stderr = file
            try:
                encsearch(arguments)
                code = 0
            except SystemExit as ended:
                code = int(ended.code or 0)
            except BaseException:
                traceback.print_exc()
                code = 1
        finally:
            sys.stdout, sys.stderr = out, err
            for number, descriptor in zip((1, 2), kept, strict=True):
                os.dup2(descriptor, number)
                os.close(descriptor)
    return code, log.read_text(errors="replace")


def find_fault(code: int, text: str) -> str | None:
    lines = text.splitlines() or [""]
    if "Traceback" in text or code not in {0, 2}:
        return " / ".join(lines[-3:])
    if "Warning: " in text:
        return next(line for line in lines if "Warning: " in line)
    if code == 2 and not (lines[-1].startswith("error: ") and text.count("error: ") == 1):
        return "not one line: " + " / ".join(lines[-3:])
    return None


def read_samples(store: Path) -> Samples:
    from encsearch.data.store import Store

    opened = Store(store)
    found = {}
    for name in opened.manifest.splits:
        split = opened.split(name)
        for index in range(len(split)):
            sample = split[index]
            found[sample.id] = (sample.image.tobytes(), sample.mask.tobytes())
    return found


def other_stats(text: str, truth: Samples) -> str:
    """Whether the counts of `data stats` are those of the samples."""
    facts = json.loads(text[text.index("{") :])
    pixels = Counter[int]()
    for _, mask in truth.values():
        pixels.update(np.frombuffer(mask, np.uint8).tolist())
    for index, name in enumerate(CLASSES):
        found = sum(split["classes"][index]["pixels"] for split in facts["splits"].values())
        if found != pixels[index]:
            return f"stats: {found} pixels of {name}, not {pixels[index]}"
    return ""


# --- inputs ---


def picture(number: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


def labels(number: int, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    rng = np.random.default_rng(1000 + number)
    coarse = Image.fromarray(rng.integers(0, 3, (6, 8), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.NEAREST)


def encoded(image: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


class Inputs:
    """The sound inputs, made once, with the samples that each gives."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._samples: dict[str, Samples] = {}
        self._usual: dict[str, set[str]] = {}

    def copy(self, kind: str, to: Path) -> None:
        shutil.copytree(self._make(kind), to, symlinks=True)

    def samples(self, kind: str) -> Samples:
        return self._samples[kind]

    def usual(self, kind: str) -> set[str]:
        """The lines that are said of the sound input."""
        return self._usual.get(kind, set())

    def _make(self, kind: str) -> Path:
        root = self._folder / kind.replace(" ", "-")
        if root.exists():
            return root
        root.mkdir(parents=True)
        made = KINDS[kind]
        made.write(root)
        store = root
        if made.command == "import":
            case = Case(root, np.random.default_rng(0), dict(made.options))
            store = self._folder / f"{root.name}-store"
            words = [word.replace("ROOT", str(root)) for word in made.options.get("words", ())]
            source = str(root / case.source if case.source else root)
            command = ["data", "import", made.importer, source, str(store), "--processes", "1", *words]
            code, text = run_command(command, self._folder / "log")
            assert code == 0, f"{kind}: {text}"
            self._usual[kind] = set(text.splitlines())
        self._samples[kind] = read_samples(store)
        return root


@dataclass
class Case:
    """A copied input that a change may damage. `renames` says that new names are not wrong."""

    root: Path
    rng: np.random.Generator
    options: dict[str, Any] = field(default_factory=dict)
    renames: bool = False

    @property
    def source(self) -> str:
        return str(self.options.get("source", ""))

    def pick(self, *patterns: str) -> Path:
        files = sorted(file for pattern in patterns for file in self.root.glob(pattern) if file.is_file())
        return files[self.rng.integers(len(files))]

    def chance(self, share: float) -> bool:
        return bool(self.rng.random() < share)

    def upto(self, high: int) -> int:
        return int(self.rng.integers(max(1, high)))


def write_pairs(root: Path, image_form: str, mask_form: str, **options: Any) -> None:
    for folder in ("images", "masks"):
        (root / folder).mkdir()
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    for number in range(PAIRS):
        image = encoded(picture(number), image_form, **options)
        (root / "images" / f"{number}.{image_form.lower()}").write_bytes(image)
        mask = labels(number).convert("RGB") if mask_form == "WEBP" else labels(number)
        given: dict[str, Any] = {"lossless": True} if mask_form == "WEBP" else {}
        (root / "masks" / f"{number}.{mask_form.lower()}").write_bytes(encoded(mask, mask_form, **given))


def write_archive(suffix: str) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        write_pairs(root, "PNG", "PNG")
        names = sorted(str(file.relative_to(root)) for file in root.rglob("*") if file.is_file())
        archive = root / f"all.{suffix}"
        if suffix == "zip":
            with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as out:
                for name in names:
                    out.write(root / name, name)
        else:
            with tarfile.open(archive, "w:gz" if suffix == "tgz" else "w", format=tarfile.GNU_FORMAT) as tar:
                # Pairs side by side: a cut then loses whole pairs.
                for name in sorted(names, key=lambda name: Path(name).stem):
                    tar.add(root / name, name)
        shutil.rmtree(root / "images")
        shutil.rmtree(root / "masks")
        (root / "classes.txt").unlink()

    return write


def write_labelled(suffix: str, *, colours: bool) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        write_pairs(root, "PNG", "PNG")
        table = np.array([(200, 0, 0), (0, 200, 0), (0, 0, 200)], np.uint8)
        if colours:
            for number in range(PAIRS):
                Image.fromarray(table[np.asarray(labels(number))]).save(root / "masks" / f"{number}.png")
        if suffix == "csv" and colours:
            rows = [
                "name,red,green,blue",
                *(f"{n},{r},{g},{b}" for n, (r, g, b) in zip(CLASSES, table, strict=True)),
            ]
            (root / "table.csv").write_text("\n".join(rows) + "\n")
        elif suffix == "csv":
            (root / "table.csv").write_text("value,name,train_id\n0,sky,0\n1,road,1\n2,car,2\n255,none,\n")
        elif colours:
            (root / "table.json").write_text(json.dumps(dict(zip(CLASSES, table.tolist(), strict=True))))
        else:
            rows = [{"value": n, "name": name, "train_id": n} for n, name in enumerate(CLASSES)]
            (root / "table.json").write_text(json.dumps(rows))
        half = PAIRS // 2
        (root / "train.txt").write_text("".join(f"{n}\n" for n in range(half)))
        (root / "val.txt").write_text("".join(f"{n}\n" for n in range(half, PAIRS)))

    return write


def write_hugging_face(root: Path) -> None:
    rows = [
        {
            "id": f"sample-{number}",
            "image": {"bytes": encoded(picture(number), "PNG"), "path": f"{number}.png"},
            "label": {"bytes": encoded(labels(number), "PNG"), "path": None},
        }
        for number in range(PAIRS)
    ]
    half = PAIRS // 2
    for split, part in (("train", rows[:half]), ("validation", rows[half:])):
        pq.write_table(pa.Table.from_pylist(part), root / f"{split}-00000-of-00001.parquet", row_group_size=2)


def write_voc(root: Path) -> None:
    from scipy.io import savemat

    voc, sbd = root / "VOCdevkit" / "VOC2012", root / "benchmark_RELEASE" / "dataset"
    for folder in (
        voc / "JPEGImages",
        voc / "SegmentationClass",
        voc / "ImageSets/Segmentation",
        sbd / "cls",
    ):
        folder.mkdir(parents=True)
    half = PAIRS // 2
    lists = {"train": range(2), "val": range(2, half)}
    for split, numbers in lists.items():
        (voc / "ImageSets/Segmentation" / f"{split}.txt").write_text("".join(f"v{n}\n" for n in numbers))
    for number in range(PAIRS):
        (voc / "JPEGImages" / f"v{number}.jpg").write_bytes(encoded(picture(number), "JPEG", quality=95))
    for number in range(half):
        mask = labels(number)
        mask.putpalette(list(range(256)) * 3)
        (voc / "SegmentationClass" / f"v{number}.png").write_bytes(encoded(mask, "PNG"))
    (sbd / "train.txt").write_text("".join(f"v{n}\n" for n in range(half, PAIRS)))
    (sbd / "val.txt").write_text("v0\n")
    for number in range(half, PAIRS):
        truth = {"Segmentation": np.asarray(labels(number)), "Boundaries": 0}
        savemat(sbd / "cls" / f"v{number}.mat", {"GTcls": truth}, do_compression=number % 2 == 0)
    savemat(sbd / "cls" / "v0.mat", {"GTcls": {"Segmentation": np.asarray(labels(0))}})


def write_context(root: Path) -> None:
    from pycocotools.mask import encode

    voc = root / "VOCdevkit" / "VOC2010" / "JPEGImages"
    voc.mkdir(parents=True)
    content: dict[str, list[Any]] = {"images": [], "annos_segmentation": []}
    for number in range(PAIRS):
        (voc / f"{number}.jpg").write_bytes(encoded(picture(number), "JPEG", quality=95))
        phase = "train" if number < PAIRS // 2 else "val"
        content["images"].append({"image_id": number, "file_name": f"{number}.jpg", "phase": phase})
        mask = np.asarray(labels(number))
        for value, category in ((1, 2), (2, 9)):
            packed = encode(np.asfortranarray(mask == value))
            segment = {"size": packed["size"], "counts": packed["counts"].decode()}
            one = {"image_id": number, "category_id": category, "segmentation": segment}
            content["annos_segmentation"].append(one)
    (root / "trainval_merged.json").write_text(json.dumps(content))


def write_store(root: Path) -> None:
    from encsearch.data.datasets import DatasetInfo, EncodedSample
    from encsearch.data.store import Store, write_store

    def samples(numbers: range) -> Iterator[EncodedSample]:
        for number in numbers:
            image = encoded(picture(number), "JPEG" if number % 2 else "PNG")
            yield EncodedSample(f"s{number}", image, encoded(labels(number), "PNG"), "")

    info = DatasetInfo("fuzz", CLASSES, ((200, 0, 0), (0, 200, 0), (0, 0, 200)))
    half = PAIRS // 2
    shutil.rmtree(root)
    write_store(
        root, info, {"train": samples(range(half)), "val": samples(range(half, PAIRS))}, shard_bytes=4000
    )
    for split in ("train", "val"):
        Store(root).split(split)


# --- changes ---


def bytes_of(data: bytes, rng: np.random.Generator) -> bytes:
    """Some bits, a run of bytes, a cut, or a stretch that is gone, twice there, or elsewhere."""
    out, size = bytearray(data), len(data)
    how, at = int(rng.integers(8)), int(rng.integers(max(size, 1)))
    length = int(min(size - at, rng.integers(1, max(2, size // 4))))
    if how <= 1:
        for place in rng.integers(0, size, int(rng.integers(1, 9))):
            out[place] ^= 1 << int(rng.integers(8))
    elif how == 2:
        out[at : at + length] = rng.bytes(length)
    elif how == 3:
        out[at : at + length] = bytes([int(rng.choice([0, 255]))]) * length
    elif how == 4:
        del out[at:]
    elif how == 5:
        del out[at : at + length]
    elif how == 6:
        out[at:at] = out[at : at + length]
    else:
        other = int(rng.integers(size))
        one, two = out[at : at + 16], out[other : other + 16]
        out[at : at + 16], out[other : other + 16] = two, one
    return bytes(out)


def damage(*patterns: str, call: str = SURE) -> Callable[[Case], str]:
    def change(case: Case) -> str:
        file = case.pick(*patterns)
        before = file.read_bytes()
        after = bytes_of(before, case.rng)
        file.write_bytes(after)
        # A PNG whose signature is hit is taken for another kind of file, or for none.
        return call

    return change


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    position, found = 8, []
    while position < len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        found.append((data[position + 4 : position + 8], data[position + 8 : position + 8 + length]))
        position += 12 + length
    return found


def as_png(parts: list[tuple[bytes, bytes]]) -> bytes:
    data = b"\x89PNG\r\n\x1a\n"
    for name, body in parts:
        data += len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")
    return data


def png_structure(case: Case) -> str:
    """Chunks with right checksums, but gone, twice there, elsewhere, or with other content."""
    file = case.pick("images/*.png", "masks/*.png")
    parts = png_chunks(file.read_bytes())
    if case.chance(0.5):  # several chunks of pixels
        at = next(number for number, (name, _) in enumerate(parts) if name == b"IDAT")
        body = parts[at][1]
        middle = len(body) // 2
        parts[at : at + 1] = [(b"IDAT", body[:middle]), (b"IDAT", body[middle:])]
    how, at = case.upto(5), case.upto(len(parts))
    call = SURE
    if how == 0:
        del parts[at]
    elif how == 1:
        parts.insert(at, parts[at])
    elif how == 2:
        other = case.upto(len(parts))
        parts[at], parts[other] = parts[other], parts[at]
    elif how == 3:  # a new header: width, height, bits, kind of colours, interlacing
        header = bytearray(parts[0][1])
        place = int(case.rng.choice([2, 3, 6, 7, 8, 9, 12]))
        header[place] = int(case.rng.choice([0, 1, 2, 3, 4, 6, 8, 16, 31, 41, 255]))
        parts[0] = (b"IHDR", bytes(header))
        if header[8] <= 8 and bytes(header[:8]) == png_chunks(file.read_bytes())[0][1][:8]:
            call = SOUND  # the same bytes as palette indices, for instance
    else:
        name, body = parts[at]
        parts[at] = (name, bytes_of(body, case.rng) if body else b"x")
        # The pixels have a checksum of their own, the Adler-32 of zlib.
        call = SURE if name == b"IDAT" else SOUND
    file.write_bytes(as_png(parts))
    return call


def jpeg_segments(case: Case) -> str:
    file = case.pick("images/*.jpeg")
    data = file.read_bytes()
    position, segments = 2, [data[:2]]
    while position + 4 <= len(data) and data[position + 1] != 0xDA:
        length = 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        segments.append(data[position : position + length])
        position += length
    segments.append(data[position:])
    how, at, other = case.upto(4), case.upto(len(segments)), case.upto(len(segments))
    if how == 0:
        del segments[at]
    elif how == 1:
        segments.insert(at, segments[at])
    elif how == 2:
        segments[at], segments[other] = segments[other], segments[at]
    else:
        segments[at] = segments[at][:2] + bytes_of(segments[at][2:] or b"x", case.rng)
    file.write_bytes(b"".join(segments))
    return UNSURE


def header_fields(*patterns: str, size: int = 64) -> Callable[[Case], str]:
    """Two or four bytes of the first or last `size` become a number that is at an end of its range."""

    def change(case: Case) -> str:
        file = case.pick(*patterns)
        data = bytearray(file.read_bytes())
        width = int(case.rng.choice([2, 4]))
        at = case.upto(min(size, len(data) - width))
        if case.chance(0.3):
            at = len(data) - width - at
        value = int(case.rng.choice([0, 1, 2, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1]))
        data[at : at + width] = (value % 256**width).to_bytes(width, "little")
        file.write_bytes(data)
        return UNSURE

    return change


def tiff_entries(case: Case) -> str:
    file = case.pick("images/*.tiff", "masks/*.tiff")
    data = bytearray(file.read_bytes())
    start = int.from_bytes(data[4:8], "little")
    count = int.from_bytes(data[start : start + 2], "little")
    at = start + 2 + 12 * case.upto(count)
    place, width = [(0, 2), (2, 2), (4, 4), (8, 4)][case.upto(4)]
    value = int(
        case.rng.choice([0, 1, 2, 3, 5, 6, 7, 9, 12, 13, 16, 32, 255, 256, 262, 273, 32773, 2**31, 2**32 - 1])
    )
    data[at + place : at + place + width] = (value % 256**width).to_bytes(width, "little")
    file.write_bytes(data)
    return UNSURE


def wrong_suffix(case: Case) -> str:
    file = case.pick("images/*", "masks/*")
    suffix = str(case.rng.choice([".png", ".jpg", ".tif", ".bmp", ".webp", ".txt", "", ".PNG", ".gif"]))
    file.rename(file.with_suffix(suffix))
    return SURE


def odd_file(case: Case) -> str:
    file = case.pick("images/*", "masks/*", "classes.txt")
    how = case.upto(9)
    file.unlink()
    if how == 0:
        os.mkfifo(file)
    elif how == 1:
        file.mkdir()
    elif how == 2:
        file.symlink_to("nowhere")
    elif how == 3:
        file.symlink_to(file.name)
    elif how == 4:
        file.symlink_to(str(case.rng.choice(["/dev/zero", "/dev/null", "/dev/stdin"])))
    elif how == 5:
        file.write_bytes(b"")
    elif how == 6:
        file.symlink_to("..")
    elif how == 7:
        file.symlink_to(case.root.parent)
    else:
        file.symlink_to("/")
    return SURE


def odd_name(case: Case) -> str:
    file = case.pick("images/*", "masks/*")
    new = [
        b"a\nb", b"\x07", b"\xff", b"a\tb", "e\u0301".encode(), b".hidden", b"a b", b"{id}", b"-x", b"%s",
        b"a\\b", b"\xc2\xa0", "\u202e".encode(), b"0", b"CON", b"'", b'"', b"a,b", b"*", b"a" * 200,
    ]  # fmt: skip
    stem = new[case.upto(len(new))]
    both = case.chance(0.6)
    for folder in ("images", "masks") if both else (file.parent.name,):
        for found in (case.root / folder).glob(f"{file.stem}.*"):
            target = os.fsencode(found.parent) + b"/" + stem + os.fsencode(found.suffix)
            if not os.path.exists(target):
                os.rename(found, target)
    case.renames = True
    return SURE


def one_of_two(case: Case) -> str:
    """A file is gone, or there twice, or two are exchanged."""
    how, file, other = case.upto(3), case.pick("images/*", "masks/*"), case.pick("images/*", "masks/*")
    if how == 0:
        file.unlink()
        return SURE
    if how == 1:
        shutil.copy(file, file.with_name(f"copy{file.suffix}"))
        return SURE
    one, two = file.read_bytes(), other.read_bytes()
    file.write_bytes(two)
    other.write_bytes(one)
    return SOUND


def text_change(*patterns: str) -> Callable[[Case], str]:
    """What editors, spreadsheets and scripts do to a table or a list."""

    def change(case: Case) -> str:
        file = case.pick(*patterns)
        data = file.read_bytes()
        lines = data.split(b"\n")
        at = case.upto(len(lines))
        cells = lines[at].split(b",")
        how = case.upto(14)
        if how == 0:
            file.write_bytes(b"\xef\xbb\xbf" + data)
            return SURE
        if how == 1:
            file.write_bytes(data.replace(b"\n", b"\r\n"))
            return SURE
        if how == 2:
            file.write_bytes(data.decode().encode(str(case.rng.choice(["utf-16", "utf-32", "utf-16-le"]))))
            return SURE
        if how == 3:
            lines.insert(at, lines[at])
        elif how == 4:
            lines[at] = lines[at][: len(lines[at]) // 2] + b"\0" + lines[at][len(lines[at]) // 2 :]
        elif how == 5:
            cells[case.upto(len(cells))] = b'"' + bytes(case.rng.choice([b"", b"a", b'a""'])) + b","
            lines[at] = b",".join(cells)
        elif how == 6:
            huge = [
                b"1" * 5000,
                b"-1",
                b"1e9",
                b"99999999999999999999",
                b"1.5",
                b"NaN",
                b"0x10",
                "\u0663".encode(),
                b"1_0",
            ]
            cells[case.upto(len(cells))] = huge[case.upto(len(huge))]
            lines[at] = b",".join(cells)
        elif how == 7:
            lines[at] = b"x" * 200_000
        elif how == 8:
            lines[at] += (
                bytes(case.rng.choice([b"\x0c", b"\x1c", b"\x85", "\u2028".encode(), b"\x0b"])) + b"x"
            )
        elif how == 9:
            cells.append(cells[-1])
            lines[at] = b",".join(cells)
        elif how == 10:
            del lines[at]
        elif how == 11:
            lines = []
        elif how == 12:
            lines[at] = bytes(
                case.rng.choice([b"/", b".", b"..", b"../../etc/passwd", b"a/../0", b"~", b"\\"])
            )
        else:
            file.write_bytes(bytes_of(data, case.rng))
            return SOUND
        file.write_bytes(b"\n".join(lines))
        return SOUND

    return change


def json_change(*patterns: str) -> Callable[[Case], str]:
    """Any value of a JSON file becomes one of another type or size, is gone, or is there twice."""

    def change(case: Case) -> str:
        file = case.pick(*patterns)
        text = file.read_text()
        how = case.upto(8)
        if how == 0:
            file.write_text("[" * 100_000 + "]" * 100_000)
            return SURE
        if how == 1:
            file.write_text(f'{{"a": {text}, "a": {text}}}' if case.chance(0.5) else f"[{text}]")
            return SURE
        values = json.loads(text)
        places = list(walk(values))
        parent, key = places[case.upto(len(places))]
        odd = [
            None,
            True,
            0,
            -1,
            1.5,
            10**30,
            10**4000,
            "",
            "a\nb",
            "\ud800",
            [],
            {},
            [[]],
            {"a": 1},
            "x" * 10000,
            [1, 2],
            float("nan"),
        ]
        if how <= 5:
            parent[key] = odd[case.upto(len(odd))]
        elif isinstance(parent, list):
            if how == 6:
                del parent[key]
            else:
                parent.append(parent[key])
        else:
            value = parent.pop(key)
            if how == 7:
                parent[f"{key}x"] = value
        file.write_text(dump(values))
        return SURE if "manifest" in file.name else SOUND

    return change


def walk(values: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(values) if isinstance(values, dict) else range(len(values)):
        yield values, key
        if isinstance(values[key], dict | list):
            yield from walk(values[key])


def dump(values: Any) -> str:
    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(values)
    finally:
        sys.set_int_max_str_digits(limit)


def tar_headers(case: Case) -> str:
    """A field of a member's header is changed and its checksum is right again."""
    file = case.root / case.source
    data = bytearray(file.read_bytes())
    with tarfile.open(file) as tar:
        members = tar.getmembers()
    start = members[case.upto(len(members))].offset
    offset, length = [(0, 100), (100, 8), (124, 12), (136, 12), (156, 1), (157, 100), (257, 8), (345, 155)][
        case.upto(8)
    ]
    values = [b"\0" * length, b"\xff" * length, b"7" * length, b"0" * length, b"\x80" + b"\0" * (length - 1)]
    values += [case.rng.bytes(length), b"\x80" + b"\xff" * (length - 1)]
    data[start + offset : start + offset + length] = values[case.upto(len(values))]
    if offset == 156:
        data[start + 156] = int(case.rng.choice(list(b"012345678LKSxgX")))
    data[start + 148 : start + 156] = b" " * 8
    data[start + 148 : start + 156] = b"%06o\0 " % (sum(data[start : start + 512]) % 8**6)
    file.write_bytes(data)
    case.renames = True
    return SURE if offset not in {0, 345} else SOUND


def zip_headers(case: Case) -> str:
    """Two or four bytes of the directory at the end or of a member's header."""
    file = case.root / case.source
    data = bytearray(file.read_bytes())
    marks = [b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"]
    mark = marks[case.upto(3)]
    places = [at for at in range(len(data)) if data[at : at + 4] == mark]
    at = places[case.upto(len(places))] + 4 + case.upto(44)
    width = int(case.rng.choice([1, 2, 4]))
    value = int(case.rng.choice([0, 1, 2, 8, 9, 12, 14, 99, 255, 2**16 - 1, 2**31, 2**32 - 1]))
    data[at : at + width] = (value % 256**width).to_bytes(width, "little")
    file.write_bytes(data[: len(file.read_bytes())])
    case.renames = True
    return SURE


def gzip_inside(case: Case) -> str:
    """Damage below the compression, whose checksum is right again."""
    file = case.root / case.source
    file.write_bytes(gzip.compress(bytes_of(gzip.decompress(file.read_bytes()), case.rng)))
    case.renames = True
    return SURE


def odd_archive(case: Case) -> str:
    file = case.root / case.source
    how = case.upto(5)
    file.unlink()
    if how == 0:
        os.mkfifo(file)
    elif how == 1:
        file.mkdir()
    elif how == 2:
        file.symlink_to("nowhere")
    elif how == 3:
        file.symlink_to("/dev/zero")
    else:
        file.write_bytes(b"")
    return SURE


def parquet_values(case: Case) -> str:
    """A sound file with other cells: nulls, other types, other lengths."""
    file = case.pick("*.parquet")
    rows = pq.read_table(file).to_pylist()
    at, column = case.upto(len(rows)), str(case.rng.choice(["id", "image", "label"]))
    odd: list[Any] = [
        None,
        b"",
        "",
        "a\nb",
        "\x00",
        {"bytes": None, "path": "x"},
        {"bytes": b"", "path": ""},
        {},
        5,
        ["x"],
        "\u2028",
    ]
    value = odd[case.upto(len(odd))]
    if case.chance(0.5):
        for row in rows:
            row[column] = value
    else:
        rows[at][column] = value
    if value == {} or case.chance(0.2):
        rows = [{name: cell for name, cell in row.items() if name != column} for row in rows]
    try:
        pq.write_table(pa.Table.from_pylist(rows), file)
    except (pa.ArrowException, TypeError):  # one column of two types
        pq.write_table(pa.Table.from_pylist([{**row, column: value} for row in rows]), file)
    case.renames = True
    return SURE


def odd_store_file(case: Case) -> str:
    file = case.pick("*", ".cache/*")
    how = case.upto(6)
    other = case.pick(f"*{file.suffix}", f".cache/*{file.suffix}")
    content = other.read_bytes()
    file.unlink()
    if how == 0:
        os.mkfifo(file)
    elif how == 1:
        file.mkdir()
    elif how == 2:
        file.symlink_to("/dev/zero")
    elif how == 3:
        file.symlink_to("nowhere")
    elif how == 4:
        file.write_bytes(b"")
    else:
        file.write_bytes(content)  # a file of the same kind, but another one
    return SURE


# --- the table of all ---


@dataclass(frozen=True)
class Kind:
    """An input: how it is written, what reads it, and its changes by name."""

    write: Callable[[Path], None]
    changes: dict[str, Callable[[Case], str]]
    command: str = "import"
    importer: str = "folder"
    options: dict[str, Any] = field(default_factory=dict)
    weight: int = 1


ODD = {"suffix": wrong_suffix, "not a file": odd_file, "name": odd_name, "pairs": one_of_two}
VAL = {"words": ("--val-fraction", "0.4")}
PNG_FILES = ("images/*.png", "masks/*.png")
BOTH = {"words": ("--split", "train=ROOT/train.txt", "--split", "val=ROOT/val.txt")}


def picture_kind(form: str, mask_form: str, **changes: Callable[[Case], str]) -> Kind:
    files = (f"images/*.{form.lower()}", f"masks/*.{mask_form.lower()}")
    return Kind(
        lambda root: write_pairs(root, form, mask_form),
        {"bytes": damage(*files, call=UNSURE), "header": header_fields(*files), **changes},
        options=VAL,
    )


def table_kind(suffix: str, *, colours: bool) -> Kind:
    words = (f"--{'colours' if colours else 'labels'}", f"ROOT/table.{suffix}", *BOTH["words"])
    changes = {"table": json_change("table.json") if suffix == "json" else text_change("table.csv")}
    changes |= {
        "table's bytes": damage(f"table.{suffix}", call=SOUND),
        "lists": text_change("train.txt", "val.txt"),
    }
    return Kind(write_labelled(suffix, colours=colours), changes, options={"words": words})


def archive_kind(suffix: str, **changes: Callable[[Case], str]) -> Kind:
    return Kind(
        write_archive(suffix),
        {"bytes": damage(f"all.{suffix}"), "not a file": odd_archive, **changes},
        options={**VAL, "source": f"all.{suffix}"},
    )


KINDS = {
    "folder of PNG": Kind(
        lambda root: write_pairs(root, "PNG", "PNG"),
        {"bytes": damage(*PNG_FILES), "chunks": png_structure, "chunks again": png_structure, **ODD,
         "classes.txt": text_change("classes.txt")},
        options=VAL,
        weight=4,
    ),
    "folder of JPEG": picture_kind("JPEG", "PNG", segments=jpeg_segments),
    "folder of TIFF": picture_kind("TIFF", "TIFF", entries=tiff_entries),
    "folder of BMP": picture_kind("BMP", "BMP"),
    "folder of WebP": picture_kind("WEBP", "WEBP"),
    "labels.csv": table_kind("csv", colours=False),
    "colours.csv": table_kind("csv", colours=True),
    "labels.json": table_kind("json", colours=False),
    "colours.json": table_kind("json", colours=True),
    "zip": archive_kind("zip", headers=zip_headers),
    "tar": archive_kind("tar", headers=tar_headers),
    "tgz": archive_kind("tgz", inside=gzip_inside),
    "Hugging Face": Kind(
        write_hugging_face,
        {"bytes": damage("*.parquet", call=UNSURE), "cells": parquet_values,
         "end": header_fields("*.parquet", size=2000)},
        importer="parquet",
        options={"words": ("--classes", ",".join(CLASSES))},
    ),
    "VOC with SBD": Kind(
        write_voc,
        {"lists": text_change("VOCdevkit/VOC2012/ImageSets/Segmentation/*.txt",
                              "benchmark_RELEASE/dataset/*.txt"),
         "MATLAB": damage("benchmark_RELEASE/dataset/cls/*.mat", call=UNSURE),
         "MATLAB's header": header_fields("benchmark_RELEASE/dataset/cls/*.mat", size=400)},
        importer="voc",
        options={"words": ("--with-sbd",)},
    ),
    "PASCAL-Context": Kind(
        write_context,
        {"annotations": json_change("trainval_merged.json"),
         "bytes": damage("trainval_merged.json", call=UNSURE)},
        importer="pascal-context",
    ),
    "store": Kind(
        write_store,
        {"shard": damage("*.parquet"), "shard's end": header_fields("*.parquet", size=2000),
         "cache": damage(".cache/*.arrow"), "cache's end": header_fields(".cache/*.arrow", size=1500),
         "manifest": damage("manifest.json"), "manifest's values": json_change("manifest.json"),
         "not a file": odd_store_file},
        command="store",
        weight=4,
    ),
}  # fmt: skip


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):
        main()
