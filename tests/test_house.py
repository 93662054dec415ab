"""The shape of the code: imports point one way, functions are short, docstrings are sentences."""

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for package in ("hwsearch", "hw_models")
    for path in (ROOT / package).rglob("*.py")
}

MOST_LINES, MOST_PARAMETERS, MOST_LOOSE = 60, 8, 8


def imported(tree: ast.AST) -> Iterator[str]:
    """Modules of the project that a module imports when it runs, at its top or in a function."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in MODULES else node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        yield from imported(node)


def package_of(module: str) -> str:
    """A package of hwsearch counts as one; hw_models is looked at module by module."""
    return ".".join(module.split(".")[:2]) if module.startswith("hwsearch") else module


def imports() -> dict[str, set[str]]:
    return {name: set(imported(ast.parse(path.read_text("utf-8")))) & MODULES.keys() for name, path in MODULES.items()}


def functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef):
                yield f"{name}.{node.name}", node


@pytest.mark.parametrize("whole", [False, True], ids=["modules", "packages"])
def test_no_imports_go_in_a_circle(*, whole: bool) -> None:
    graph: dict[str, set[str]] = {}
    for name, others in imports().items():
        group = package_of if whole else str
        graph.setdefault(group(name), set()).update(group(other) for other in others if group(other) != group(name))
    try:
        order = list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"imports in a circle: {error.args[1]}")
    assert order.index("hwsearch.errors") < order.index("hwsearch.cli" if whole else "hwsearch.cli.commands")


def test_a_circle_would_be_seen() -> None:
    with pytest.raises(CycleError):
        TopologicalSorter({"a": {"b"}, "b": {"a"}}).prepare()
    assert list(imported(ast.parse("def f():\n    from hwsearch.errors import UserError"))) == ["hwsearch.errors"]
    assert list(imported(ast.parse("if TYPE_CHECKING:\n    import hwsearch.errors"))) == []


@pytest.mark.parametrize(
    ("library", "packages"),
    [
        ("ray", {"hwsearch.executor"}),
        ("optuna", {"hwsearch.search"}),
        ("brevitas", {"hwsearch.separator", "hwsearch.export"}),
        ("rich", {"hwsearch.view"}),
    ],
)
def test_a_library_is_known_where_it_belongs_only(library: str, packages: set[str]) -> None:
    found = {
        package_of(name)
        for name, path in MODULES.items()
        for other in imported(ast.parse(path.read_text("utf-8")))
        if other.split(".")[0] == library
    }
    assert found
    assert found <= packages


def test_the_cost_simulator_knows_nothing_of_what_uses_it() -> None:
    found = {other for name, others in imports().items() if name.startswith("hw_models") for other in others}
    assert found
    assert all(other.startswith("hw_models") for other in found)


def test_functions_are_short_and_take_few_parameters() -> None:
    for name, node in functions():
        assert node.end_lineno is not None
        assert node.end_lineno - node.lineno < MOST_LINES, name
        parameters = [parameter.arg for parameter in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
        assert len([parameter for parameter in parameters if parameter not in ("self", "cls")]) <= MOST_PARAMETERS, name


def test_few_modules_lie_loose() -> None:
    assert len(list((ROOT / "hwsearch").glob("*.py"))) <= MOST_LOOSE


def test_docstrings_are_sentences() -> None:
    """Also the strings below attributes and constants."""
    said = [
        (name, node.value.value)
        for name, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    assert len(said) > len(MODULES)
    assert [(name, text) for name, text in said if text.startswith(("Of ", "Those ", "That of "))] == []
