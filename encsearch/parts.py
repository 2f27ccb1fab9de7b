"""Own parts: Python objects that a recipe names as `module:Object`, and the code that they are made of.

A module is looked for in a folder, which is the working directory or the copy that a job and a model keep,
and then among what is installed. Own files are hashed, travel with a job and stay with a model; an installed
package stays what it is, a name with a version. `contracts` (in `train`) says what each kind must do.
"""

import ast
import functools
import hashlib
import importlib
import importlib.abc
import importlib.util
import inspect
import re
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cache
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, entry_points, packages_distributions, version
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, Protocol

from typing_extensions import TypeIs

from encsearch.errors import UserError, one_line
from encsearch.text import format_bytes, format_count, format_list

Kind = Literal[
    "backbone",
    "head",
    "context",
    "loss",
    "transform",
    "schedule",
    "optimizer",
    "metric",
    "sampler",
    "dataset",
]
ENTRY_POINTS: Mapping[Kind, str] = {
    "backbone": "encsearch.backbones",
    "head": "encsearch.heads",
    "context": "encsearch.contexts",
    "loss": "encsearch.losses",
    "transform": "encsearch.transforms",
    "schedule": "encsearch.schedules",
    "optimizer": "encsearch.optimizers",
    "metric": "encsearch.metrics",
    "sampler": "encsearch.samplers",
    "dataset": "encsearch.datasets",
}
"""The group of entry points under which a package names its parts of a kind."""

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    class PartName(str):
        """`module:Object`. A class for the type checker alone, which then tells it from a word of a list."""

else:
    PartName = str


class LossPart(Protocol):
    """A loss of the pixels: a value for each image, from that image alone, so that a batch can be spread.

    logits (B, C, H, W) float32, labels (B, H, W) int64 with 255 = ignore -> (B,), what is to become small.
    What it gives for an image without labels does not count. It has no weights of its own.
    """

    def __call__(self, logits: "Tensor", labels: "Tensor") -> "Tensor": ...


class TransformPart(Protocol):
    """A random change of a training image, after the warp and the crop, before colours and normalisation.

    image (H, W, 3) uint8 RGB, mask (H, W) uint8 with 255 = ignore -> both, of the same sizes and types. All
    chance comes from `rng`. Several threads call it at once, and neither array may be changed in place.
    """

    def __call__(
        self, image: "NDArray[np.uint8]", mask: "NDArray[np.uint8]", rng: "np.random.Generator"
    ) -> "tuple[NDArray[np.uint8], NDArray[np.uint8]]": ...


class SchedulePart(Protocol):
    """The factor, 0 or more, of the base learning rates for step 0, 1, ... of `total_steps` after warm-up."""

    def __call__(self, step: int, total_steps: int) -> float: ...


class MetricPart(Protocol):
    """A figure in [0, 1] of a whole set, the more the better, from counts that add up over its parts.

    labels (B, H, W) with 255 = ignore and predictions (B, H, W), integers, on one device -> a tensor of a
    fixed shape. `score` gets the sum over all images, float64 on the CPU.
    """

    def count(self, labels: "Tensor", predictions: "Tensor", num_classes: int) -> "Tensor": ...

    def score(self, counts: "Tensor") -> float: ...


NAME = r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*"
CODE_FOLDER = "code"
"""The copy of the own files, in the folder of a job and of a model."""
MAX_CODE_BYTES = 10 * 2**20

_root: ContextVar["Path | Code | None"] = ContextVar("root", default=None)
_lock = threading.RLock()
_modules: dict[str, dict[str, ModuleType]] = {}  # by the digest of the code, then by name


def is_part(name: object) -> TypeIs[PartName]:
    """Whether a value of a recipe names a Python object; "timm:NAME" is a network of timm."""
    return isinstance(name, str) and not name.startswith("timm:") and bool(re.fullmatch(NAME, name))


def find_part(kind: Kind, name: str) -> PartName | None:
    """The part that `name` means: itself, or what an installed package names so; None if there is none."""
    return name if is_part(name) else _entry_points(ENTRY_POINTS[kind]).get(name)


class NoModuleError(UserError):
    """The module of a part is neither in the folder nor installed."""


@dataclass(frozen=True)
class Code:
    """What parts are made of: own files by their path below `root`, and installed packages by their name.

    The packages are those that own files import, and those of parts that are installed.
    """

    root: Path
    files: Mapping[str, bytes] = field(default_factory=dict)
    installed: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """The SHA-256 of the own files' paths and contents; "" without own files."""
        if not self.files:
            return ""
        lines = (f"{hashlib.sha256(data).hexdigest()}  {path}\n" for path, data in sorted(self.files.items()))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def write(self, folder: Path) -> None:
        for path, data in self.files.items():
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)


@contextmanager
def code_from(root: "str | Path | Code | None") -> Iterator[None]:
    """Look for own modules in `root` during the block; None: where they are looked for already."""
    token = _root.set(Path(root) if isinstance(root, str) else root) if root else None
    try:
        yield
    finally:
        if token:
            _root.reset(token)


def code_root() -> Path:
    """The folder in which own modules are looked for first."""
    root = _root.get()
    return root.root if isinstance(root, Code) else root or Path.cwd()


def find_code(names: Iterable[PartName]) -> Code:
    """The code of parts; nothing is imported. Raises UserError for a module that is nowhere.

    An own module is a file or a package, with the modules beside it that it imports, and those that they do.
    Of a package all `*.py` travel, no other files.
    """
    if isinstance(code := _root.get(), Code):
        return code
    files: dict[str, bytes] = {}
    installed: dict[str, str] = {}
    place = code_root()
    for name in sorted(set(names)):
        module = name.partition(":")[0]
        root = _find_root(module, name)
        if root is None:
            installed |= _distribution(module.partition(".")[0])
        else:
            place = root
            found, imported = _read_sources(root, module)
            files |= found
            for top in imported:
                installed |= _distribution(top)
    total = sum(map(len, files.values()))
    if total > MAX_CODE_BYTES:
        raise UserError(
            f"own parts have {format_count(len(files), 'file')} of {format_bytes(total)}, more than "
            f"{format_bytes(MAX_CODE_BYTES)}; name a smaller module"
        )
    return Code(place, files, installed)


def load_part(kind: Kind, name: PartName) -> Any:
    """Import the object. Raises UserError, one line, if it cannot be."""
    module_name, _, attribute = name.partition(":")
    code = find_code([name])
    top = module_name.partition(".")[0]
    is_own = any(_top(path) == top for path in code.files)
    if not is_own and top in sys.stdlib_module_names:
        raise UserError(f"{kind} {name}: is of Python itself, which has no parts; name a module of your own")
    try:
        module = _import_own(code, module_name) if is_own else importlib.import_module(module_name)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{kind} {name}: cannot be imported ({_describe(error)})") from None
    if not hasattr(module, attribute):
        raise UserError(f"{kind} {name}: {module_name} has no {attribute}; it has {_list_public(module)}")
    found = getattr(module, attribute)
    if not callable(found):
        raise UserError(
            f"{kind} {name}: is of type {type(found).__name__}, but a class or a function is asked for"
        )
    if not is_own and not _is_safe(kind, found):
        raise UserError(
            f"{kind} {name}: of an installed package only a class that is one can be named; call anything "
            "else in a module of your own"
        )
    return found


def _is_safe(kind: Kind, found: Any) -> bool:
    """Whether an installed object may be called for a model that is loaded.

    The code of a model's own files is hashed and named. An installed function would be called with arguments
    of whoever made the model, and might do anything.
    """
    bases = getattr(found, "__mro__", ()) if inspect.isclass(found) else ()
    match kind:
        case "backbone" | "head" | "context":
            # By name, since this module does without torch.
            names = ("torch.nn.modules.module", "Module")
            return any((base.__module__, base.__name__) == names for base in bases)
        case "metric":
            return all(hasattr(found, needed) for needed in ("count", "score")) and bool(bases)
        case "loss" | "transform" | "schedule" | "optimizer" | "sampler" | "dataset":
            return True  # no model that is loaded has them called


def make_part(kind: Kind, name: PartName, args: Mapping[str, Any], *given: Any, **named: Any) -> Any:
    """Call the object with `given`, `named` and the recipe's `args`, and return what it makes.

    Raises UserError, one line, for arguments that it does not take and for what it raises.
    """
    return _call(kind, name, load_part(kind, name), given, {**named, **args})


def bind_part(kind: Kind, name: PartName, args: Mapping[str, Any]) -> Callable[..., Any]:
    """A callable: a class is made with `args`, a function gets them with each call. Raises as `make_part`."""
    found = load_part(kind, name)
    if inspect.isclass(found):
        made = _call(kind, name, found, (), args)
        if not callable(made):
            raise UserError(f"{kind} {name}: what it makes cannot be called; give it __call__")
        bound: Callable[..., Any] = made
        return bound
    try:
        inspect.signature(found).bind_partial(**args)
    except TypeError as error:
        raise UserError(f"{kind} {name}: {error}; it takes {inspect.signature(found)}") from None
    except ValueError:  # one written in C has no signature
        pass
    return functools.partial(found, **args)


def takes(function: Callable[..., Any], argument: str) -> bool:
    """Whether a call may name this argument."""
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:
        return False
    return argument in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())


def _call(
    kind: Kind, name: PartName, function: Callable[..., Any], given: tuple[Any, ...], named: Mapping[str, Any]
) -> Any:
    try:
        signature = inspect.signature(function)
    except ValueError:
        signature = None
    if signature:
        try:
            signature.bind(*given, **named)
        except TypeError as error:
            raise UserError(f"{kind} {name}: {error}; it takes {signature}") from None
    try:
        return function(*given, **named)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{kind} {name}: cannot be made ({_describe(error)})") from None


@cache
def _entry_points(group: str) -> Mapping[str, PartName]:
    found = {point.name: point.value.replace(" ", "") for point in entry_points(group=group)}
    return {name: value for name, value in found.items() if is_part(value)}


def _find_root(module: str, part: str) -> Path | None:
    """The folder that holds an own module; None for an installed one."""
    top, root = module.partition(".")[0], code_root()
    if top == "encsearch":
        return None
    if _file_of(root, module):
        return root
    # Not importlib.util.find_spec, which also finds own modules that were imported from another folder.
    others = (finder for finder in sys.meta_path if finder is not _finder)
    spec = next(filter(None, (finder.find_spec(top, None) for finder in others)), None)
    if spec is None:
        raise NoModuleError(
            f"{part}: there is no module {module} in {root}, and none is installed; run from the folder that "
            "has it, or name that in code="
        )
    origin = spec.origin or next(iter(spec.submodule_search_locations or ()), None)
    if origin is None or spec.origin in ("built-in", "frozen"):
        return None
    libraries = {Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib")}
    place = Path(origin).resolve()
    if any(place.is_relative_to(library) for library in libraries):
        return None
    return place.parent.parent if spec.submodule_search_locations else place.parent


def _file_of(root: Path, module: str) -> Path | None:
    """The file of a module below `root`; of a package its __init__.py, or its folder if it has none."""
    below = root.joinpath(*module.split("."))
    if (below / "__init__.py").is_file():
        return below / "__init__.py"
    if below.with_suffix(".py").is_file():
        return below.with_suffix(".py")
    return None


def _read_sources(root: Path, module: str) -> tuple[dict[str, bytes], set[str]]:
    """The files of the top package or module of `module`, and of those beside it that these import.

    With them the top names of all other modules that they import.
    """
    files: dict[str, bytes] = {}
    others: set[str] = set()
    waiting, seen = [module.partition(".")[0]], set()
    while waiting:
        top = waiting.pop()
        if top in seen:
            continue
        seen.add(top)
        package = root / top
        is_package = (package / "__init__.py").is_file() or not (root / f"{top}.py").is_file()
        for path in sorted(package.rglob("*.py")) if is_package else [root / f"{top}.py"]:
            try:
                data = path.read_bytes()
                tree = ast.parse(data)
            except (OSError, SyntaxError, ValueError) as error:
                where = f"{path}:{error.lineno}" if isinstance(error, SyntaxError) else str(path)
                raise UserError(f"{where}: cannot be read as Python ({one_line(error)})") from None
            files[path.relative_to(root).as_posix()] = data
            imported = _imported(tree)
            own = {name for name in imported if _is_own(root, name)}
            waiting += own
            others |= imported - own
    return files, others - sys.stdlib_module_names - {"encsearch"}


def _is_own(root: Path, top: str) -> bool:
    """Whether a module imports this from the folder; never what Python has itself, such as a random.py."""
    return top != "encsearch" and top not in sys.stdlib_module_names and _file_of(root, top) is not None


def _imported(tree: ast.AST) -> set[str]:
    """The top names of what a module imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.partition(".")[0])
    return names


@cache
def _packages() -> Mapping[str, list[str]]:
    return packages_distributions()


def _distribution(top: str) -> dict[str, str]:
    """The package, and its version, that an installed module is of; {} for one of Python itself."""
    for name in _packages().get(top, ()):
        try:
            return {name: version(name)}
        except PackageNotFoundError:
            continue
    return {}


def _import_own(code: Code, module: str) -> ModuleType:
    """Import own code under its own names, from the bytes that are hashed.

    Two models may have different files of one name: modules of another content make way in `sys.modules`, and
    what was made of them goes on with them.
    """
    with _lock:
        modules = _modules.setdefault(code.digest, {})
        if module not in modules:
            _finder.serve(code)
            found = importlib.import_module(module)
            modules[module] = found
        return modules[module]


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.ExecutionLoader):
    """Finds and runs own modules, of one content at a time for each top name."""

    def __init__(self) -> None:
        self._files: dict[str, tuple[Path, bytes]] = {}

    def serve(self, code: Code) -> None:
        """Take up the files of `code`, and make way for them. Raises UserError for a name that is in use."""
        if self not in sys.meta_path:
            sys.meta_path.insert(0, self)
        wanted = {path: (code.root / path, data) for path, data in code.files.items()}
        tops = {_top(path) for path in wanted}
        ours = {_top(path) for path in self._files}
        for top in tops - ours:
            if top in sys.modules:
                place = getattr(sys.modules[top], "__file__", None) or "Python itself"
                raise UserError(f"own module {top}: {place} is in use under this name; rename the module")
        same = {path: found for path, found in self._files.items() if _top(path) in tops}
        others = {path: found for path, found in self._files.items() if path not in same}
        self._files = others | wanted
        if same != {path: found for path, found in wanted.items() if _top(path) in ours}:
            for name in [name for name in sys.modules if name.partition(".")[0] in tops]:
                del sys.modules[name]

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        found, is_package = self._find(fullname)
        if found is None:  # a folder without __init__.py has no file, and `inspect` fails on an empty name
            return ModuleSpec(fullname, None, is_package=True) if is_package else None
        return importlib.util.spec_from_loader(fullname, self, is_package=is_package)

    def is_package(self, fullname: str) -> bool:
        return self._find(fullname)[1]

    def get_filename(self, fullname: str) -> str:
        found, _ = self._find(fullname)
        return str(self._files[found][0]) if found else ""

    def get_source(self, fullname: str) -> str:
        found, _ = self._find(fullname)
        return importlib.util.decode_source(self._files[found][1]) if found else ""

    def _find(self, fullname: str) -> tuple[str | None, bool]:
        """The path of a module, None for a folder without __init__.py, and whether it is a package."""
        below = fullname.replace(".", "/")
        if f"{below}/__init__.py" in self._files:
            return f"{below}/__init__.py", True
        if f"{below}.py" in self._files:
            return f"{below}.py", False
        return None, any(path.startswith(f"{below}/") for path in self._files)


_finder = _Finder()


def _top(path: str) -> str:
    return path.partition("/")[0].removesuffix(".py")


def _describe(error: Exception) -> str:
    """The error and the line of own code that it comes from."""
    frames = traceback.extract_tb(error.__traceback__)
    files = {str(place) for place, _ in _finder._files.values()}
    own = [frame for frame in frames if frame.filename in files]
    where = f", {Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
    return f"{type(error).__name__}: {one_line(error)}{where}"


def _list_public(module: ModuleType) -> str:
    names = [name for name, value in vars(module).items() if name[0] != "_" and callable(value)]
    own = [name for name in names if getattr(vars(module)[name], "__module__", None) == module.__name__]
    return format_list(own[:10]) if own else "no class and no function"
