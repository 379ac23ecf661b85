"""The library's rooms: which imports which, what is private to a module, and how long a module and a function may be. Read from the source, nothing is run."""

import ast
import sys
from pathlib import Path

import pytest
from conftest import ROOT

ROOMS = ("method", "data", "measure", "prune", "train", "convert", "deploy", "lab")  # a room imports itself and those before it
METHOD_NEEDS = {"torch", "torchvision", "pywt", "safetensors", "timm"} | sys.stdlib_module_names  # safetensors for weights and saved networks; timm is an extra
MODULE_LINES, FUNCTION_LINES = 300, 60
NAMED_TUPLES = {"_replace", "_asdict", "_fields", "_make"}  # public in spite of their names


def modules(package: Path) -> dict[tuple[str, ...], ast.Module]:
    """Name, in parts without the package's → syntax tree."""
    paths = sorted(p for p in package.rglob("*.py") if p.name != "_modidx.py")
    return {p.relative_to(package).with_suffix("").parts: ast.parse(p.read_text(encoding="utf-8")) for p in paths}


def imports(name: tuple[str, ...], tree: ast.Module, package: str, known: set) -> list[tuple[int, str, tuple[str, ...] | None, str | None, str]]:
    """Of each imported thing: line, top-level package, module in parts (None outside the package), name in it (None for a whole module), name here."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for a in node.names:
                top, *rest = a.name.split(".")
                found.append((node.lineno, top, tuple(rest) if top == package else None, None, a.asname or a.name))
        elif isinstance(node, ast.ImportFrom):
            parts = (node.module or "").split(".") if node.module else []
            if node.level:
                inside = name[: len(name) - node.level] + tuple(parts)
            elif parts[0] == package:
                inside = tuple(parts[1:])
            else:
                found += [(node.lineno, parts[0], None, a.name, a.asname or a.name) for a in node.names]
                continue
            for a in node.names:
                whole = (*inside, a.name)
                is_module = whole in known or any(k[: len(whole)] == whole for k in known)
                found.append((node.lineno, package, whole if is_module else inside, None if is_module else a.name, a.asname or a.name))
    return found


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name not in NAMED_TUPLES


def violations(package: Path) -> list[str]:
    trees, out, exported = modules(package), [], {}
    for name, tree in trees.items():
        where = "/".join(name) + ".py"
        room = name[0] if len(name) > 1 else None
        ours = {}
        if room is not None and room not in ROOMS:
            out.append(f"{where}: {room} is no room")
        for line, top, module, thing, here in imports(name, tree, package.name, set(trees)):
            at = f"{where}:{line}"
            if module is None:
                if room == "method" and top not in METHOD_NEEDS:
                    out.append(f"{at}: method imports {top}")
                continue
            ours[here] = module
            if room in ROOMS:
                if not module and thing not in (None, "__version__"):
                    out.append(f"{at}: imports the face")
                elif module and module[0] not in ROOMS[: ROOMS.index(room) + 1]:
                    out.append(f"{at}: {room} imports {module[0]}")
            if any(map(is_private, (*module, thing or ""))) and module != name:
                out.append(f"{at}: imports the private {thing or module[-1]}")
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and is_private(node.attr) and ast.unparse(node.value) in ours:
                out.append(f"{where}:{node.lineno}: uses the private {ast.unparse(node)}")
            elif isinstance(node, ast.Attribute) and ours.get(ast.unparse(node.value)) == () and not node.attr.startswith("__") and room in ROOMS:
                out.append(f"{where}:{node.lineno}: uses the face")
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (n := node.end_lineno - node.lineno + 1) > FUNCTION_LINES:
                out.append(f"{where}:{node.lineno}: {node.name} has {n} lines")
            if isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == ["__all__"] and isinstance(node.value, ast.List):
                for element in (e for e in node.value.elts if e.value != "main"):  # of which each program has one
                    exported.setdefault(element.value, []).append(where)
        lines = len((package / where).read_text(encoding="utf-8").splitlines())
        if lines > MODULE_LINES:
            out.append(f"{where}: has {lines} lines")
    return out + [f"{thing} is exported by {' and '.join(places)}" for thing, places in exported.items() if len(places) > 1]


def test_the_rooms():
    found = violations(ROOT / "wae_nb")
    assert not found, "\n" + "\n".join(found)


def test_every_module_is_a_notebook_s():
    exports = {p.relative_to(ROOT / "nbs/lib").with_suffix("").parts for p in (ROOT / "nbs/lib").rglob("*.ipynb") if not p.parts[-1].startswith((".", "_"))}
    exports = exports - {("train", "command")} | {("train", "__main__")}  # nbdev passes over notebooks whose names begin like that
    assert exports == {m for m in modules(ROOT / "wae_nb") if m[-1] != "__init__"}


CASES = {  # source of one module → what is said of it
    "a right arrow": ("data/a.py", "from ..method.wae import WAE\nfrom .b import x", []),
    "a wrong arrow": ("data/a.py", "from ..train.runs import fit", ["data/a.py:1: data imports train"]),
    "written out": ("method/a.py", "import wae.lab.plots", ["method/a.py:1: method imports lab"]),
    "absolute": ("method/a.py", "from wae.lab.plots import x", ["method/a.py:1: method imports lab"]),
    "in a function": ("prune/a.py", "def f():\n    from ..deploy import engines", ["prune/a.py:2: prune imports deploy"]),
    "a room as a name": ("measure/a.py", "from .. import lab", ["measure/a.py:1: measure imports lab"]),
    "the face": ("lab/a.py", "import wae\nwae.build", ["lab/a.py:2: uses the face"]),
    "the package's place": ("lab/a.py", "import wae\nwae.__file__", []),
    "the version": ("lab/a.py", "from .. import __version__", []),
    "from the face": ("lab/a.py", "from .. import build", ["lab/a.py:1: imports the face"]),
    "no room": ("attic/a.py", "", ["attic/a.py: attic is no room"]),
    "method needs little": ("method/a.py", "import math\nimport torch\nimport pywt\nfrom torchvision.models import vgg16", []),
    "method needs more": ("method/a.py", "def f():\n    import numpy.linalg", ["method/a.py:2: method imports numpy"]),
    "others may": ("data/a.py", "import numpy", []),
    "a private name": ("lab/a.py", "from .b import _x", ["lab/a.py:1: imports the private _x"]),
    "a private name, renamed": ("lab/a.py", "from ..data.b import _x as x", ["lab/a.py:1: imports the private _x"]),
    "of a module": ("lab/a.py", "from . import b\nb._x()", ["lab/a.py:2: uses the private b._x"]),
    "of a module by its path": ("lab/a.py", "import wae.lab.b\nwae.lab.b._x()", ["lab/a.py:2: uses the private wae.lab.b._x"]),
    "of a class": ("lab/a.py", "from .b import B\nB._x", ["lab/a.py:2: uses the private B._x"]),
    "of others": ("lab/a.py", "from torch.fx import _x\nimport torch\ntorch._dynamo\nfrom .b import B\nB._fields\nself._x", []),
    "a long module": ("lab/a.py", "x = 1\n" * 301, ["lab/a.py: has 301 lines"]),
    "as long as may be": ("lab/a.py", "x = 1\n" * 300, []),
    "a long function": ("lab/a.py", "class A:\n    def f(self):\n" + "        x = 1\n" * 60, ["lab/a.py:2: f has 61 lines"]),
    "a function as long as may be": ("lab/a.py", "def f():\n" + "    x = 1\n" * 59, []),
    "a long class": ("lab/a.py", "class A:\n" + "    x = 1\n" * 99, []),
    "two of a name": ("lab/a.py", "__all__ = ['x']", ["x is exported by data/c.py and lab/a.py"]),
}


@pytest.mark.parametrize("case", CASES)
def test_the_checks_can_fail(tmp_path, case):
    path, source, expected = CASES[case]
    empty = ("__init__.py", "train/runs.py", "lab/plots.py", "deploy/engines.py", "data/b.py", "lab/b.py")
    made = dict.fromkeys(empty, "") | {"method/wae.py": "WAE = 1", "data/c.py": "__all__ = ['x']"}
    for at, text in (made | {path: source}).items():
        (tmp_path / "wae" / at).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "wae" / at).write_text(text)
    assert violations(tmp_path / "wae") == expected
