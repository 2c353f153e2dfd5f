"""The source as a whole: where modules lie, how many parameters functions take, how much of it is typed."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import grimp

import tunewise

SOURCE = Path(tunewise.__file__).parent
MODULES = sorted(SOURCE.rglob("*.py"))
BESIDE_PACKAGES = {"__main__.py", "__init__.py", "resolve.py", "testing.py", "py.typed"}
MOST_PARAMETERS = 12
# What Python code calls with keywords, each of which is documented.
PUBLIC = {"comparison/compare.py compare": 14, "fitting/loop.py train": 13, "export/export.py export": 13}
MOST_UNTYPED_DICTIONARIES = 30


def functions():
    """Every function of the source: its module and name, and how many parameters it takes."""
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                given = node.args
                count = len(given.posonlyargs) + len(given.args) + len(given.kwonlyargs)
                count += (given.vararg is not None) + (given.kwarg is not None)
                yield f"{path.relative_to(SOURCE).as_posix()} {getattr(node, 'name', 'lambda')}", count


def test_no_function_takes_too_many_parameters():
    counts = list(functions())
    assert len(counts) > 500, "the source is found"
    too_many = {name: count for name, count in counts if count > PUBLIC.get(name, MOST_PARAMETERS)}
    assert not too_many, "group parameters in a dataclass, as cli/options.py and comparison/invocation.py do"


def test_modules_lie_in_packages():
    beside = {path.name for path in SOURCE.iterdir() if path.is_file()}
    assert beside <= BESIDE_PACKAGES, "put a module into the package that it belongs to"


def test_most_records_are_typed():
    uses = {path.relative_to(SOURCE).as_posix(): path.read_text("utf-8").count("dict[str, Any]") for path in MODULES}
    assert sum(uses.values()) <= MOST_UNTYPED_DICTIONARIES, {name: count for name, count in uses.items() if count}


def test_imports_have_no_circle():
    """Not even one that hides in a function; `lint-imports` checks that they point downwards."""
    graph = grimp.build_graph("tunewise", exclude_type_checking_imports=True)
    imports = {module: graph.find_modules_directly_imported_by(module) for module in graph.modules}
    assert sum(map(len, imports.values())) > 500, "the imports are found"
    TopologicalSorter(imports).prepare()
