"""Own parts: where their code is found, what it is made of, and what is said of code that cannot be used."""

import importlib
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path

import pydantic
import pytest

from encsearch.errors import UserError
from encsearch.parts import (
    ENTRY_POINTS,
    MAX_CODE_BYTES,
    Code,
    PartName,
    _entry_points,
    bind_part,
    code_from,
    code_root,
    find_code,
    find_part,
    is_part,
    load_part,
    make_part,
)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    with code_from(tmp_path):
        yield tmp_path


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / f"{name.replace('__in__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def refusal(name: str) -> str:
    with pytest.raises(UserError) as refused:
        load_part("loss", PartName(name))
    line = str(refused.value)
    assert "\n" not in line
    return line


def test_a_part_is_module_and_object_and_no_network_of_timm() -> None:
    names = ("m:F", "a.b_2.c:_f", "torch.optim:Adam")
    others = (
        "timm:resnet18",
        "m",
        "m:",
        ":f",
        "m:a.b",
        "m.:f",
        "a/b:f",
        "m:f:g",
        "2m:f",
        "mIoU/group:x",
        3,
        None,
    )
    assert all(map(is_part, names))
    assert not any(map(is_part, others))


def test_an_own_module_is_found_in_the_folder(folder: Path) -> None:
    write(folder, parts_plain="def f(x, y=1): return x + y")
    assert load_part("loss", PartName("parts_plain:f"))(2) == 3
    assert bind_part("loss", PartName("parts_plain:f"), {"y": 5})(2) == 7
    assert make_part("loss", PartName("parts_plain:f"), {"y": 5}, 1) == 6
    assert find_code([PartName("parts_plain:f")]).files.keys() == {"parts_plain.py"}


def test_the_working_directory_is_the_folder_unless_another_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert code_root() == tmp_path
    with code_from(tmp_path / "a"):
        with code_from(str(tmp_path / "b")):
            assert code_root() == tmp_path / "b"
            with code_from(None):
                assert code_root() == tmp_path / "b", "None changes nothing"
        assert code_root() == tmp_path / "a"
        with pytest.raises(KeyError), code_from(tmp_path / "c"):
            raise KeyError
        assert code_root() == tmp_path / "a"
    assert code_root() == tmp_path


def test_imports_beside_it_are_followed_wherever_they_stand(folder: Path) -> None:
    write(
        folder,
        parts_top="import os, parts_one\nfrom parts_pack import thing\n"
        "def f():\n    from parts_late import g",
        parts_one="import parts_two",
        parts_two="import parts_one",
        parts_late="",
        parts_other="",
        parts_pack__in____init__="from . import thing",
        parts_pack__in__thing="",
        parts_pack__in__deep__in__er="",
    )
    (folder / "parts_pack" / "weights.bin").write_bytes(b"0")
    assert find_code([PartName("parts_top:f")]).files.keys() == {
        "parts_top.py",
        "parts_one.py",
        "parts_two.py",
        "parts_late.py",
        "parts_pack/__init__.py",
        "parts_pack/thing.py",
        "parts_pack/deep/er.py",
    }


def test_a_module_of_a_package_and_of_a_folder_without_init(folder: Path) -> None:
    write(folder, parts_regular__in____init__="from .b import F", parts_regular__in__b="class F: pass")
    write(folder, parts_plain_folder__in__b="class F: pass")
    for name in ("parts_regular:F", "parts_regular.b:F", "parts_plain_folder.b:F"):
        part = load_part("loss", PartName(name))
        assert part.__name__ == "F"
        assert inspect.getmodule(part).__name__ == part.__module__  # type: ignore[union-attr]


def test_a_name_of_pythons_own_library_is_not_followed(folder: Path) -> None:
    write(folder, parts_random="import random\ndef f(): return random.random()", random="raise SystemExit")
    assert find_code([PartName("parts_random:f")]).files.keys() == {"parts_random.py"}
    assert 0 <= load_part("loss", PartName("parts_random:f"))() < 1


def test_the_digest_is_of_all_followed_files(folder: Path) -> None:
    name = [PartName("parts_hashed:f")]
    write(folder, parts_hashed="import parts_helped", parts_helped="x = 1", parts_unused="")
    first = find_code(name).digest
    write(folder, parts_unused="changed")
    assert find_code(name).digest == first
    write(folder, parts_helped="x = 2")
    second = find_code(name).digest
    assert len({first, second, ""}) == 3
    (folder / "parts_hashed.py").rename(folder / "parts_renamed.py")
    assert find_code([PartName("parts_renamed:f")]).digest not in (first, second)


def test_a_copy_is_the_same_code(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    write(folder, parts_copied__in____init__="import parts_beside", parts_beside="")
    code = find_code([PartName("parts_copied:f")])
    copy = tmp_path_factory.mktemp("copy")
    code.write(copy)
    with code_from(copy):
        assert find_code([PartName("parts_copied:f")]).digest == code.digest


def test_two_contents_of_one_name_work_side_by_side(tmp_path: Path) -> None:
    source = "import parts_number\nclass F:\n    def __call__(self): return parts_number.N\n"
    parts = {}
    for number in (1, 2):
        write(tmp_path / str(number), parts_twice=source, parts_number=f"N = {number}")
        with code_from(tmp_path / str(number)):
            parts[number] = load_part("loss", PartName("parts_twice:F"))
    assert [part()() for part in parts.values()] == [1, 2]
    with code_from(tmp_path / "1"):
        assert load_part("loss", PartName("parts_twice:F")) is parts[1], "not imported a second time"
    assert parts[2]()() == 2


def test_code_that_is_held_is_not_read_again(folder: Path) -> None:
    write(folder, parts_held="def f(): return 1")
    code = find_code([PartName("parts_held:f")])
    (folder / "parts_held.py").unlink()
    with code_from(code):
        assert find_code([PartName("parts_held:f")]) is code
        assert load_part("loss", PartName("parts_held:f"))() == 1


def test_a_changed_file_is_imported_anew(folder: Path) -> None:
    for number in (1, 2):
        write(folder, parts_edited=f"def f(): return {number}")
        assert load_part("loss", PartName("parts_edited:f"))() == number


def test_parts_of_several_modules_share_what_both_import(folder: Path) -> None:
    write(folder, parts_base="class Base: pass")
    write(folder, parts_left="from parts_base import Base", parts_right="from parts_base import Base")
    left, right = (load_part("loss", PartName(f"parts_{side}:Base")) for side in ("left", "right"))
    assert left is right


def test_a_module_of_another_folder_is_not_taken_where_there_is_none(tmp_path: Path) -> None:
    write(tmp_path / "one", parts_elsewhere="def f(): pass")
    (tmp_path / "two").mkdir()
    with code_from(tmp_path / "one"):
        load_part("loss", PartName("parts_elsewhere:f"))
    with code_from(tmp_path / "two"):
        assert refusal("parts_elsewhere:f").startswith(
            "parts_elsewhere:f: there is no module parts_elsewhere in"
        )


def test_an_installed_module_is_named_with_its_version_and_not_copied(folder: Path) -> None:
    code = find_code([PartName("pydantic:BaseModel"), PartName("json:dumps")])
    assert dict(code.files) == {}
    assert code.digest == ""
    assert dict(code.installed) == {"pydantic": importlib.metadata.version("pydantic")}
    assert load_part("loss", PartName("pydantic:BaseModel")) is pydantic.BaseModel
    with pytest.raises(UserError, match="loss json:dumps: is of Python itself, which has no parts"):
        load_part("loss", PartName("json:dumps"))
    assert find_code([PartName("encsearch.parts:Code")]).files == {}


def test_a_module_on_the_path_that_is_not_installed_travels(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path_factory.mktemp("elsewhere")
    write(place, parts_on_path="def f(): return 4")
    monkeypatch.syspath_prepend(place)
    code = find_code([PartName("parts_on_path:f")])
    assert (code.root, code.files.keys()) == (place, {"parts_on_path.py"})
    assert load_part("loss", PartName("parts_on_path:f"))() == 4


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("import parts_nowhere_at_all", "cannot be imported (ModuleNotFoundError: No module named"),
        ("x = 1\nraise ValueError('no\\nway')", "cannot be imported (ValueError: no way, parts_bad.py:2)"),
        ("x = 1", "parts_bad has no f; it has no class and no function"),
        ("class A: pass\ndef b(): pass\n_c = len", "parts_bad has no f; it has A and b"),
        ("f = 3", "is of type int, but a class or a function is asked for"),
    ],
)
def test_what_cannot_be_used_is_one_line_with_the_part(folder: Path, source: str, line: str) -> None:
    write(folder, parts_bad=source)
    assert refusal("parts_bad:f").startswith(f"loss parts_bad:f: {line}")


def test_what_python_cannot_read_is_named_with_its_line(folder: Path) -> None:
    write(folder, parts_wrong="x = 1\ndef f(:\n    pass")
    assert refusal("parts_wrong:f").startswith(f"{folder}/parts_wrong.py:2: cannot be read as Python (")
    write(folder, parts_right="import parts_wrong")
    assert f"{folder}/parts_wrong.py:2" in refusal("parts_right:f")
    (folder / "parts_bytes.py").write_bytes(b"x = '\xff'")
    assert refusal("parts_bytes:f").startswith(f"{folder}/parts_bytes.py")


def test_a_module_that_is_nowhere_is_named_with_the_folder(folder: Path) -> None:
    assert refusal("parts_nowhere:f") == (
        f"parts_nowhere:f: there is no module parts_nowhere in {folder}, and none is installed; run from the "
        "folder that has it, or name that in code="
    )


def test_a_name_that_is_in_use_is_refused(folder: Path) -> None:
    write(folder, pytest="def f(): pass")
    line = refusal("pytest:f")
    assert line.startswith("own module pytest: ")
    assert line.endswith("is in use under this name; rename the module")
    assert sys.modules["pytest"] is pytest


def test_arguments_that_a_part_does_not_take_are_one_line(folder: Path) -> None:
    write(
        folder,
        parts_args="class C:\n    def __init__(self, a, b=1):\n"
        "        if b < 0: raise ValueError('b is negative')\n"
        "def f(x, *, width=2): return width\n",
    )
    name, function = PartName("parts_args:C"), PartName("parts_args:f")
    for call, line in (
        (
            lambda: make_part("head", name, {"c": 1}, 1),
            "got an unexpected keyword argument 'c'; it takes (a, b=1)",
        ),
        (lambda: make_part("head", name, {}), "missing a required argument: 'a'; it takes (a, b=1)"),
        (
            lambda: make_part("head", name, {"b": -1}, 1),
            "cannot be made (ValueError: b is negative, parts_args.py:3)",
        ),
        (lambda: bind_part("head", name, {"a": 1}), "what it makes cannot be called; give it __call__"),
        (
            lambda: bind_part("head", function, {"height": 1}),
            "got an unexpected keyword argument 'height'; it takes (x, *, width=2)",
        ),
    ):
        with pytest.raises(UserError) as refused:
            call()
        assert str(refused.value).partition(": ")[2] == line


def test_too_much_code_is_refused_with_the_numbers(folder: Path) -> None:
    write(folder, parts_large="import parts_data", parts_data=f"x = '{'a' * MAX_CODE_BYTES}'")
    assert refusal("parts_large:f").startswith("own parts have 2 files of 10 MiB, more than 10 MiB; ")


def test_a_package_gives_its_parts_short_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh_entry_points: None
) -> None:
    info = tmp_path / "given_parts-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: given-parts\nVersion: 1.2\n")
    lines = [f"[{ENTRY_POINTS['loss']}]", "focal = given_parts : Focal", "odd = given_parts", ""]
    (info / "entry_points.txt").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    assert find_part("loss", "focal") == "given_parts:Focal"
    assert find_part("loss", "odd") is None, "a module is no part"
    assert find_part("head", "focal") is None
    assert find_part("head", "m:F") == "m:F"


@pytest.fixture
def fresh_entry_points() -> Iterator[None]:
    _entry_points.cache_clear()
    yield
    _entry_points.cache_clear()


def test_the_code_of_nothing_is_nothing() -> None:
    assert find_code([]).files == {}
    assert Code(Path()).digest == ""
