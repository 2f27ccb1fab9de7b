"""What damaged files of jobs do to the commands that read them.

    python -m benchmarks.damage --cases 1000 --seed 0 --jobs /tmp/jobs
    python -m benchmarks.damage --seed 0 --case 17 --jobs /tmp/jobs       # one case again; its files stay

Makes real jobs on tiny `scenes` first, unless `--jobs` has them: a training that is finished, one that was
interrupted after its first epoch, a sweep and an ablation (by Ray). A case copies a job, damages one of its
files in one way, and runs one command that reads it, in a fork of this process. All follows from the seed and
the number of the case.

refused     one line "error: ...", and no file of the job was changed
went on     exit code 0; what `eval` and `predict` print is what they print for the sound job
began       a job that trains by Ray was read as far as the start of Ray, which is left out here
WRONG       exit code 0, but other scores or label maps
TRACEBACK   anything else on the terminal or any other exit code
HANG        no answer in a time limit
LEFT        a half-written file, or a job that was refused and is not what it was
"""

import argparse
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from PIL import Image

from encsearch.cli.main import main as encsearch

OUT = Path("benchmarks/results/damage.json")
LIMIT_S = 60
BEGAN = 77  # exit code of a command that would start Ray now
GOOD, BAD = ("refused", "went on", "began"), ("WRONG", "TRACEBACK", "HANG", "LEFT")
RECIPE = """
name: toy
data: {{store: {store}, threads: 1}}
model: {{backbone: tiny, output_stride: 4, num_codewords: 4, channels: 16}}
optim: {{lr: 0.05, head_lr_factor: 10}}
train: {{epochs: 2, steps_per_epoch: 2, global_batch_size: 4, val_batch_size: 8}}
promote: {{model_name: toy, min_images: 5}}
search:
  space: {{optim.lr: {{loguniform: [0.01, 0.1]}}}}
  budget: {{trials: 2}}
  confirm: {{finalists: 1, seeds: [1], num_workers: 1, baselines: [none]}}
ablate:
  {{seeds: [0], heads: [], codewords: [2], se_weights: [0.2], scales: [], words: []}}
"""

# job: the files of it that are damaged, as patterns.
RECORD = ("record/events.jsonl", "record/sent.json", "record/owner.json")
BUNDLE = "artifacts/bundle/*"
FILES = {
    "training": ("run.json", "training.json", "config.yaml", "checkpoints/reports.jsonl", BUNDLE, *RECORD),
    "unfinished": ("training.json", "config.yaml", "checkpoints/reports.jsonl", "checkpoints/*/*", *RECORD),
    "sweep": (
        *("run.json", "study.json", "study.journal", "sweep.json", "config.yaml", "progress.jsonl"),
        *("finalists/finalists.jsonl", "trials/*/reports.jsonl", "finalists/*/artifacts/bundle/*", *RECORD),
    ),
    "ablation": ("run.json", "trainings.jsonl", "config.yaml", *RECORD),
}
# job: the commands that read it; {job}, {in} and {out} are folders.
READERS = ("eval {job} --json", "predict {job} {in} --out {out}", "ui {job} --json", "sync {job} --wait 0")
COMMANDS = {
    "training": (
        *READERS,
        "resume {job}",
        "export {job} --format safetensors --out {out}",
        "runs show {job}",
    ),
    "unfinished": (*READERS, "resume {job}", "resume {job}"),
    "sweep": (*READERS, "resume {job}", "report {job}", "report {job}", "resume {job} --extend 1"),
    "ablation": ("resume {job}", "ui {job} --json", "sync {job} --wait 0", "eval {job} --json"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", type=int, help="run only this one, and keep its files")
    parser.add_argument(
        "--jobs", type=Path, help="folder for the jobs; default: a new one, deleted at the end"
    )
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="encsearch-damage-") as scratch:
        root = (arguments.jobs or Path(scratch) / "jobs").absolute()
        make_jobs(root)
        prepare(root)
        cases = [arguments.case] if arguments.case is not None else range(arguments.cases)
        found = [run_case(root, Path(scratch), arguments.seed, case) for case in cases]
        if arguments.case is not None:
            shutil.copytree(Path(scratch) / "case", kept := Path(tempfile.mkdtemp()) / "case", symlinks=True)
            print(
                json.dumps(found, indent=1), f"\nfiles: {kept}\n" + (kept / "log").read_text(errors="replace")
            )
            return
    report(found, arguments)


def report(found: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    columns = (*GOOD, *BAD)
    for by in ("file", "damage", "command"):
        counts: dict[str, Counter[str]] = {}
        for one in found:
            counts.setdefault(one[by], Counter())[one["outcome"]] += 1
        print(f"| {by} | cases | {' | '.join(columns)} |\n" + "|---" * (len(columns) + 2) + "|")
        for name in sorted(counts):
            print(
                f"| {name} | {counts[name].total()} | {' | '.join(str(counts[name][c]) for c in columns)} |"
            )
        total = sum(counts.values(), Counter[str]())
        print(f"| all | {total.total()} | {' | '.join(str(total[c]) for c in columns)} |\n")
    for one in found:
        if one["outcome"] in BAD:
            print(f"{one['outcome']}: {json.dumps(one)}", file=sys.stderr)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    bad = [one for one in found if one["outcome"] in BAD]
    values = {"seed": arguments.seed, "cases": len(found), "outcomes": Counter(o["outcome"] for o in found)}
    arguments.out.write_text(json.dumps({**values, "findings": bad}, indent=1) + "\n")


# --- jobs ---


def make_jobs(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    os.environ |= {
        "MLFLOW_TRACKING_URI": f"sqlite:///{root / 'mlflow.db'}",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    store, recipe = root / "scenes", root / "toy.yaml"
    recipe.write_text(RECIPE.format(store=store))
    if not store.exists():
        run("data", "scenes", store, "--train", "16", "--val", "8", "--test", "8")
    (root / "in").mkdir(exist_ok=True)
    for number in range(2):
        Image.effect_noise((48, 40), 60 + number).convert("RGB").save(root / "in" / f"{number}.png")
    make = {
        "training": ("train", recipe, "--in-process"),
        "unfinished": ("train", recipe, "--in-process", "train.epochs=3"),
        "sweep": ("sweep", recipe),
        "ablation": ("ablate", recipe),
    }
    for kind, command in make.items():
        if not (root / kind).exists():
            out = root / f".{kind}"
            if kind == "unfinished":
                interrupt(*command, "--out", out)
            else:
                run(*command, "--out", out)
            (made,) = out.glob("toy-*")
            made.rename(root / kind)


def run(*arguments: object) -> None:
    subprocess.run(["encsearch", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def interrupt(*arguments: object) -> None:
    """Send Ctrl-C after the line of the first epoch."""
    process = subprocess.Popen(["encsearch", *map(str, arguments)], stderr=subprocess.PIPE, text=True)
    assert process.stderr
    for line in process.stderr:
        if " epoch 1/" in line:
            process.send_signal(signal.SIGINT)
    process.wait()


# --- cases ---


def prepare(root: Path) -> None:
    """Import once what the forks need, and stand in for the processes that a job starts: a sender, a Ray."""
    import encsearch.workflow.ablate.run as ablate
    import encsearch.workflow.sweep.run as sweep
    import encsearch.workflow.train as train
    from encsearch.tracking.outbox.forward import begin_sending, read_sent

    class Sender:
        root = Path.cwd()

        def store(self) -> Any:
            sent = read_sent(root / "training")
            return argparse.Namespace(uri=os.environ["MLFLOW_TRACKING_URI"], experiment_id=sent.experiment_id)

        def follow(self, folder: Path) -> None:
            self.folder = folder
            begin_sending(folder, self.store().uri, self.store().experiment_id)

        def run_ids(self, timeout_s: float = 0) -> dict[str, str]:
            return dict(read_sent(self.folder).runs)

        def notify(self, *text: str) -> None: ...

    @contextmanager
    def run_sender() -> Iterator[Sender]:
        yield Sender()

    @contextmanager
    def no_ray(**arguments: object) -> Iterator[None]:
        sys.exit(BEGAN)
        yield

    for module in (train, sweep, ablate):
        module.run_sender = run_sender  # type: ignore[attr-defined]
    for module in (sweep, ablate):
        module.ray_session = no_ray  # type: ignore[attr-defined]


def run_case(root: Path, scratch: Path, seed: int, case: int) -> dict[str, Any]:
    rng = random.Random(f"{seed} {case}")
    kind = rng.choice(list(FILES))
    pattern = rng.choice(FILES[kind])
    damage, change = rng.choice(list(DAMAGES.items()))
    command = rng.choice(COMMANDS[kind])
    place = scratch / "case"
    shutil.rmtree(place, ignore_errors=True)
    job = place / kind
    shutil.copytree(root / kind, job)
    path = rng.choice(sorted(path for path in job.glob(pattern) if path.is_file()))
    change(path, rng)
    before = contents(job)
    sound = answers(root, kind, command, scratch) if command.startswith(("eval", "predict")) else None
    code, said, answer = execute(command, job, root, place)
    facts = {"case": case, "file": pattern.rpartition("/")[2] if "*" not in pattern else pattern}
    facts |= {"job": kind, "damaged": path.name, "damage": damage, "command": command.split()[0]}
    outcome = judge(code, said, answer, sound, before, contents(job))
    return facts | {"outcome": outcome, "code": code, "said": said[-600:]}


def judge(
    code: int | None, said: str, answer: str, sound: str | None, before: dict[str, str], after: dict[str, str]
) -> str:
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    if code is None:
        return "HANG"
    if "Traceback" in said or code not in (0, 1, 2, 3, BEGAN) or (code in (2, 3) and len(errors) != 1):
        return "TRACEBACK"
    if any(name.endswith((".tmp", ".old")) for name in after):
        return "LEFT"
    if code == BEGAN:
        return "began"
    if code == 0:
        return "WRONG" if sound is not None and answer != sound else "went on"
    return "refused" if before == after or code == 1 else "LEFT"


def execute(command: str, job: Path, root: Path, place: Path) -> tuple[int | None, str, str]:
    """Run a command in a fork; return its exit code (None: no answer), what it said, and its answer."""
    out = place / "out"
    words = [word.format(job=job, out=out, **{"in": root / "in"}) for word in command.split()]
    child = os.fork()
    if child == 0:
        for descriptor, name in ((1, "answer"), (2, "log")):
            os.dup2(os.open(place / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), descriptor)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        code = 1
        try:
            encsearch(words)
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        except BaseException as error:
            sys.excepthook(type(error), error, error.__traceback__)
            code = 99
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    deadline_s = time.monotonic() + LIMIT_S
    code: int | None = None
    while time.monotonic() < deadline_s:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            break
        time.sleep(0.01)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    said = (place / "log").read_text(errors="replace")
    maps = "".join(map(digest, sorted(out.glob("*.png")))) if command.startswith("predict") else ""
    answer = (place / "answer").read_text(errors="replace")
    return code, said, maps or re.sub(r'"(?:seconds|images_per_second|model|source)": .*\n', "", answer)


_SOUND: dict[tuple[str, str], str] = {}


def answers(root: Path, kind: str, command: str, scratch: Path) -> str:
    """What a command answers for the sound job."""
    if (kind, command) not in _SOUND:
        place = scratch / "sound"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(root / kind, place / kind)
        code, said, answer = execute(command, place / kind, root, place)
        assert code == 0, said
        _SOUND[kind, command] = answer
    return _SOUND[kind, command]


def contents(job: Path) -> dict[str, str]:
    """What each file of a job holds; locks and what a sender writes are left out."""
    return {
        str(path.relative_to(job)): digest(path)
        for path in sorted(job.rglob("*"))
        if not path.name.endswith(".lock") and path.name != "owner.json" and path.name != "lock"
    }


def digest(path: Path) -> str:
    if path.is_symlink() or not path.is_file():
        return "other"
    return hashlib.sha256(path.read_bytes()).hexdigest()


# --- damage ---


def replace_by(text: bytes) -> Callable[[Path, random.Random], None]:
    return lambda path, rng: void(path.write_bytes(text))


def void(_: object) -> None: ...


def cut(share: float) -> Callable[[Path, random.Random], None]:
    return lambda path, rng: void(path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)]))


def flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def insert(piece: bytes) -> Callable[[Path, random.Random], None]:
    def change(path: Path, rng: random.Random) -> None:
        data = path.read_bytes()
        at = rng.randrange(len(data))
        path.write_bytes(data[:at] + piece + data[at:])

    return change


def line(change_lines: Callable[[list[bytes], random.Random], None]) -> Callable[[Path, random.Random], None]:
    def change(path: Path, rng: random.Random) -> None:
        lines = path.read_bytes().splitlines(keepends=True)
        change_lines(lines, rng)
        path.write_bytes(b"".join(lines))

    return change


def double(lines: list[bytes], rng: random.Random) -> None:
    at = rng.randrange(len(lines))
    lines.insert(at, lines[at])


def swap(lines: list[bytes], rng: random.Random) -> None:
    first, second = rng.randrange(len(lines)), rng.randrange(len(lines))
    lines[first], lines[second] = lines[second], lines[first]


def drop(lines: list[bytes], rng: random.Random) -> None:
    del lines[rng.randrange(len(lines))]


def foreign(lines: list[bytes], rng: random.Random) -> None:
    lines.insert(rng.randrange(len(lines) + 1), b'{"name": "of another job", "epoch": 1, "kind": "x"}\n')


def leaf(make: Callable[[Any], Any]) -> Callable[[Path, random.Random], None]:
    """Change one value of one JSON document in the file; a flipped bit where there is none."""

    def change(path: Path, rng: random.Random) -> None:
        text = path.read_text(errors="replace")
        lines = text.splitlines(keepends=True) if path.suffix in (".jsonl", ".journal") else [text]
        at = rng.randrange(len(lines)) if lines else 0
        try:
            values = json.loads(lines[at])
            holders = list(find_holders(values))
            holder, key = rng.choice(holders)
        except (ValueError, IndexError):
            flip(path, rng)
            return
        holder[key] = make(holder[key])
        if holder[key] is DROPPED:
            del holder[key]
        lines[at] = json.dumps(values) + "\n"
        path.write_text("".join(lines))

    return change


def find_holders(values: Any) -> Iterator[tuple[Any, Any]]:
    is_list = isinstance(values, list)
    for key, value in enumerate(values) if is_list else values.items() if isinstance(values, dict) else ():
        yield values, key
        yield from find_holders(value)


DROPPED = object()


def put(make: Callable[[Path], None]) -> Callable[[Path, random.Random], None]:
    def change(path: Path, rng: random.Random) -> None:
        path.unlink()
        make(path)

    return change


def add_key(path: Path, rng: random.Random) -> None:
    text = path.read_text(errors="replace")
    path.write_text(text.replace("{", '{"unknown": 1, ', 1) if "{" in text else text + "unknown: 1\n")


DAMAGES: dict[str, Callable[[Path, random.Random], None]] = {
    "empty": replace_by(b""),
    "one newline": replace_by(b"\n"),
    "{}": replace_by(b"{}\n"),
    "[]": replace_by(b"[]\n"),
    "null": replace_by(b"null\n"),
    "a number": replace_by(b"17\n"),
    "NaN": replace_by(b"NaN\n"),
    "NUL bytes": replace_by(bytes(512) + b"\n"),
    "nested deep": replace_by(b"[" * 100_000 + b"\n"),
    "not UTF-8": insert(b"\xff\xfe"),
    "a blank line": insert(b"\n"),
    "cut at a quarter": cut(0.25),
    "cut in the middle": cut(0.5),
    "cut at 9 tenths": cut(0.9),
    "a byte is missing": lambda path, rng: void(path.write_bytes(path.read_bytes()[:-1])),
    "a bit flipped": flip,
    "32 bits flipped": lambda path, rng: void([flip(path, rng) for _ in range(32)]),
    "a line twice": line(double),
    "lines exchanged": line(swap),
    "a line is missing": line(drop),
    "a line of another job": line(foreign),
    "an unknown key": add_key,
    "a key is missing": leaf(lambda value: DROPPED),
    "a value is null": leaf(lambda value: None),
    "a value is NaN": leaf(lambda value: float("nan")),
    "a value is infinite": leaf(lambda value: float("inf")),
    "a value is huge": leaf(lambda value: 10**400),
    "a value below zero": leaf(lambda value: -1),
    "a value is text": leaf(lambda value: "text"),
    "a value is a list": leaf(lambda value: ["a", {"b": 1}]),
    "deleted": put(void),
    "a folder": put(Path.mkdir),
    "a FIFO": put(lambda path: void(os.mkfifo(path))),
    "a link to itself": put(lambda path: path.symlink_to(path.name)),
    "a link to nothing": put(lambda path: path.symlink_to("nowhere")),
}

if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main()
