"""Choose the files that travel with a job, check their size before anything is sent, and pack them."""

import fnmatch
import os
import subprocess
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from encsearch.errors import UserError
from encsearch.text import format_bytes

# Ray refuses 500 MiB only after packing and sending. Code is far smaller, so a larger package is a mistake.
MAX_PACKAGE_BYTES = 100 * 2**20
# Left out at the top of the working directory, and at any depth, whether git ignores them or not.
TOP_EXCLUDES = ("data", "runs", "mlruns", "mlartifacts", "mlflow.db*", "demo-out", "build")
EXCLUDES = (".git", ".venv", "venv", "__pycache__", "*.pyc", "*.egg-info", ".*_cache")
# Secrets: whoever may use the cluster's job server can read a package.
SECRETS = (
    *(".env*", "ray_token*", "*.token", "*.pem", "*.key", "*_token", "id_rsa*", "id_ed25519*", ".netrc"),
    *(".ssh", ".aws", ".kube", ".ray", ".docker", ".gnupg"),
)


def package_files(working_dir: Path) -> dict[str, int]:
    """Return the files that a job gets: path below `working_dir` -> bytes.

    In a git checkout these are the tracked files and the new ones that git does not ignore, those of its
    submodules too, elsewhere all that are not hidden; never TOP_EXCLUDES, EXCLUDES and SECRETS. Raises
    UserError if there is no such folder or it is a person's home, for a name that no package can hold, for a
    linked folder, and for a link to a file that would not travel by itself.
    """
    if not working_dir.is_dir():
        raise UserError(f"{working_dir}: no such folder")
    listed = _git_files(working_dir)
    if listed is None and working_dir.resolve() == Path.home().resolve():
        raise UserError(f"{working_dir}: all of a home would travel; submit from a folder of its own")
    found = _all_files(working_dir) if listed is None else listed
    paths = [path for path in found if not is_excluded(path)]
    for path in paths:
        if (working_dir / path).is_symlink() and (working_dir / path).is_dir():
            raise UserError(
                f"{working_dir / path}: a link to a folder, whose files would not travel; put a copy there, "
                "or name the link in .gitignore"
            )
    wanted = [path for path in paths if (working_dir / path).is_file()]
    for path in wanted:
        if not _is_utf8(path):
            raise UserError(f"{working_dir}: {path!a} is no UTF-8 name, which no zip holds; rename the file")
        _check_link(working_dir, path)
    return {path: (working_dir / path).stat().st_size for path in wanted}


def is_excluded(path: str) -> bool:
    """Whether a path relative to the working directory never travels."""
    parts = path.split("/")
    return any(fnmatch.fnmatch(parts[0], pattern) for pattern in TOP_EXCLUDES) or any(
        fnmatch.fnmatch(part, pattern) for part in parts for pattern in (*EXCLUDES, *SECRETS)
    )


def check_package(files: Mapping[str, int], working_dir: Path) -> None:
    """Refuse a package over MAX_PACKAGE_BYTES with the names of its largest parts."""
    total = sum(files.values())
    if total <= MAX_PACKAGE_BYTES:
        return
    parts: Counter[str] = Counter()
    for path, size in files.items():
        parts["/".join(path.split("/")[:2])] += size
    largest = ", ".join(f"{part} {format_bytes(size)}" for part, size in parts.most_common(3))
    raise UserError(
        f"{working_dir}: {format_bytes(total)} to send, but {format_bytes(MAX_PACKAGE_BYTES)} is the limit "
        f"(largest: {largest}); add what the job does not need to .gitignore, keep data on storage that the "
        "nodes see"
    )


def pack(files: Mapping[str, int], working_dir: Path, target: Path) -> Path:
    """Write the files to a zip with fixed dates: equal content has an equal hash and is uploaded once."""
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(files):
            source = working_dir / path
            entry = zipfile.ZipInfo(path)
            entry.external_attr = (source.stat().st_mode & 0o777) << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, source.read_bytes())
    return target


def _check_link(working_dir: Path, path: str) -> None:
    """Refuse a link to a file that does not travel: under the link's name nobody would see a secret."""
    root, target = working_dir.resolve(), (working_dir / path).resolve()
    if not target.is_relative_to(root) or is_excluded(target.relative_to(root).as_posix()):
        raise UserError(
            f"{working_dir / path}: a link to {target}, which does not travel; put a copy there, or name the"
            " link in .gitignore"
        )


def _git_files(folder: Path) -> list[str] | None:
    """List tracked files and new ones that git does not ignore, and submodules'; None outside a checkout."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        result = subprocess.run(command, cwd=folder, capture_output=True)
    except FileNotFoundError:
        return None
    if result.returncode != 0:
        return None
    found = [os.fsdecode(path).rstrip("/") for path in result.stdout.split(b"\0") if path]
    for path in list(found):
        # A submodule, or a checkout inside this one, is one name.
        if (folder / path).is_dir() and not (folder / path).is_symlink() and not is_excluded(path):
            found += [f"{path}/{below}" for below in _git_files(folder / path) or ()]
    return found


def _all_files(folder: Path) -> list[str]:
    found = []
    for root, folders, names in os.walk(folder):
        below = Path(root).relative_to(folder)
        folders[:] = [n for n in folders if n[0] != "." and not is_excluded((below / n).as_posix())]
        found += [(below / name).as_posix() for name in names if name[0] != "."]
        found += [(below / name).as_posix() for name in folders if (Path(root) / name).is_symlink()]
    return found


def _is_utf8(path: str) -> bool:
    """Whether a name is UTF-8: Python keeps other bytes as lone surrogates, which cannot be encoded."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True
