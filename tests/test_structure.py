"""The package keeps its shape: few modules at its root, imports in one direction, no cycle."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import tract_trainer

ROOT = Path(tract_trainer.__file__).parent
ROOMS = ("", "data", "engines", "judging", "hub", "training", "rationales", "evaluation", "cli")
"""A module may import from its own room and from those before it; the first one is the ground floor."""


def modules(root):
    return {".".join((root.name, *path.relative_to(root).with_suffix("").parts)): path for path in root.rglob("*.py")}


def imports(root):
    """By module, the modules of the package that it imports anywhere: in functions and for types, too."""
    known = modules(root)
    found = {name: set() for name in known}
    for name, path in known.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found[name] |= {alias.name for alias in node.names if alias.name in known}
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                found[name] |= (inner & set(known)) or ({node.module, f"{node.module}.__init__"} & set(known))
    return found


def room(name):
    parts = name.split(".")
    return ROOMS.index(parts[1]) if len(parts) > 2 else 0


def against_the_order(root):
    entries = {f"{root.name}.{name}" for name in ("__init__", "__main__")}  # the root's names, and `python -m`
    return sorted(
        (name, other) for name, others in imports(root).items() for other in others
        if name not in entries and room(other) > room(name)
    )  # fmt: skip


def cycle(root):
    graph = {name: others for name, others in imports(root).items() if name != f"{root.name}.__init__"}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return error.args[1]
    return []


def test_the_ground_floor_has_at_most_eight_modules():
    assert len(list(ROOT.glob("*.py"))) <= 8


def test_every_folder_is_a_room_that_says_what_it_is_for():
    folders = {path.parent.name for path in ROOT.rglob("__init__.py") if path.parent != ROOT}
    assert folders == set(ROOMS[1:])
    for folder in folders:
        docstring = ast.get_docstring(ast.parse((ROOT / folder / "__init__.py").read_text()))
        assert docstring and len(docstring.split(". ")) >= 2, folder


def test_imports_go_in_the_order_of_the_rooms():
    assert sum(map(len, imports(ROOT).values())) > 100
    assert against_the_order(ROOT) == []


def test_no_import_goes_in_a_circle():
    assert cycle(ROOT) == []


def test_nothing_imports_the_package_root():
    assert [name for name, others in imports(ROOT).items() if "tract_trainer.__init__" in others] == []


@pytest.mark.parametrize("line", ["from package.data.records import f", "def g():\n    import package.data.records"])
def test_a_wrong_import_is_found(tmp_path, line):
    for name, text in (("data/records.py", "from package.scale import s"), ("scale.py", line)):
        path = tmp_path / "package" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert against_the_order(tmp_path / "package") == [("package.scale", "package.data.records")]
    assert set(cycle(tmp_path / "package")) == {"package.scale", "package.data.records"}
