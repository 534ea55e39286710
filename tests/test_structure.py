"""The shape of the repository: imports point one way, and files and functions stay small.

The sources are parsed, never imported, so that a broken import cannot hide the fault.
"""

import ast
from copy import deepcopy
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Each package may import those to its left. Scripts and benchmarks may import all of them.
ORDER = ("psf", "micrographs", "simulation", "models", "restoration")
MAY_IMPORT = {package: {*ORDER[: i + 1], "common"} for i, package in enumerate(ORDER)}
MAY_IMPORT["viewer"] = {*ORDER, "common", "viewer"}
MAY_IMPORT |= {"common": {"common", "psf"}, "reproduction": {"reproduction", "common", "psf"}}
MAY_IMPORT |= {"export": {"export", *MAY_IMPORT["models"]}}
PACKAGES = tuple(MAY_IMPORT)

# Limits of size. The house rules aim lower: functions of 12 lines, files of 120.
MOST_PSF_FILES = 16
LARGEST_SHARE = 0.22  # of the lines outside tests, for one package
LONGEST_FUNCTION = 60  # lines
LONG_FILE, MOST_LONG_FILES = 350, 2  # lines; files that may be longer


@cache
def sources() -> dict[str, ast.Module]:
    """Every Python file outside tests, by its path from the root."""
    paths = [*ROOT.glob("*.py"), *ROOT.glob("benchmarks/*.py")]
    paths += [path for package in PACKAGES for path in ROOT.glob(f"{package}/**/*.py")]
    return {str(path.relative_to(ROOT)): ast.parse(path.read_text("utf-8")) for path in paths}


def line_count(name: str) -> int:
    return len((ROOT / name).read_text("utf-8").splitlines())


def imported(tree: ast.AST) -> list[tuple[str, int]]:
    """Every module that a tree may import, as ("package.module", line).

    `from package import name` counts as package and as package.name, since name may be a module.
    """
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: write imports from the root, not relative"
            found.append((node.module, node.lineno))
            found += [(f"{node.module}.{alias.name}", node.lineno) for alias in node.names]
    return found


def module_level(tree: ast.Module) -> ast.Module:
    """The tree without the bodies of its functions, whose imports run later."""

    class WithoutFunctions(ast.NodeTransformer):
        def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
            return None

    return WithoutFunctions().visit(deepcopy(tree))


def forbidden(name: str, module: str) -> bool:
    """Whether the file `name` may not import `module`, one of ours or not."""
    top, *rest = module.split(".")
    package = name.split("/")[0] if "/" in name else "scripts"
    if top in PACKAGES:
        return top not in MAY_IMPORT.get(package, PACKAGES)
    if top == "benchmarks" or f"benchmarks/{top}.py" in sources():
        helper = f"benchmarks/{rest[0] if rest else top}.py"
        is_script = helper in sources() and defines(sources()[helper], "main")
        return package != "benchmarks" or is_script
    return f"{top}.py" in sources() or top == "tests" or (ROOT / "tests" / f"{top}.py").is_file()


def defines(tree: ast.Module, function: str) -> bool:
    return any(isinstance(n, ast.FunctionDef) and n.name == function for n in tree.body)


def functions() -> list[tuple[str, ast.FunctionDef]]:
    """Every function and method, nested ones too, with the file that holds it."""
    return [
        (name, node)
        for name, tree in sources().items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


@pytest.mark.parametrize(
    ("name", "module", "wrong"),
    [
        ("psf/blur.py", "psf.errors", False),
        ("psf/blur.py", "models.loss", True),
        ("psf/blur.py", "common.files", False),
        ("common/files.py", "psf.errors", False),
        ("common/files.py", "micrographs", True),
        ("micrographs/camera.py", "simulation.crops", True),
        ("restoration/rivals.py", "models.mapping", False),
        ("train.py", "restoration.rivals", False),
        ("train.py", "deconvolve", True),
        ("train.py", "benchmarks.training", True),
        ("models/loss.py", "train", True),
        ("benchmarks/training.py", "benchmarks.psf_peers", False),
        ("benchmarks/training.py", "psf_peers", False),
        ("benchmarks/training.py", "benchmarks.mapping", True),
        ("benchmarks/training.py", "conftest", True),
        ("benchmarks/training.py", "numpy.random", False),
    ],
)
def test_the_rule_itself(name, module, wrong):
    assert forbidden(name, module) == wrong


def test_imports_point_one_way():
    wrong = {}  # by statement: `from a import b` names both a and a.b
    for name, tree in sources().items():
        for module, line in imported(tree):
            if forbidden(name, module):
                wrong.setdefault(f"{name}:{line}", module)
    listed = "\n".join(f"{place} imports {module}" for place, module in wrong.items())
    assert not wrong, f"imports against the order of the packages:\n{listed}"


def import_graph(trees: dict[str, ast.Module]) -> dict[str, set[str]]:
    """Modules by name, each with those of ours that it imports while it is imported itself."""
    names = {
        path.removesuffix(".py").removesuffix("/__init__").replace("/", "."): path for path in trees
    }
    return {
        module: {other for other, _ in imported(module_level(trees[path])) if other in names}
        for module, path in names.items()
    }


def test_no_import_circles():
    graph = import_graph(sources())
    # The first half of `from psf import blur` names the package; only the module is meant.
    for module, others in graph.items():
        package = module.split(".")[0]
        inside = {name for name in others if name.startswith(f"{package}.")}
        if "." in module and inside:
            others.discard(package)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail("import circle: " + " <- ".join(error.args[1]))


def test_circles_are_found():
    trees = {
        "psf/a.py": ast.parse("from psf.b import f"),
        "psf/b.py": ast.parse("from psf import a\ndef f():\n    import psf.c"),
        "psf/c.py": ast.parse("import psf.a"),
    }
    graph = import_graph(trees)
    assert graph == {"psf.a": {"psf.b"}, "psf.b": {"psf.a"}, "psf.c": {"psf.a"}}


def test_psf_holds_few_files():
    files = sorted(name for name in sources() if name.startswith("psf/"))
    assert 0 < len(files) <= MOST_PSF_FILES, f"{len(files)} files: {', '.join(files)}"


def test_no_package_outgrows_the_others():
    lines = {name: line_count(name) for name in sources()}
    shares = {
        package: sum(n for name, n in lines.items() if name.startswith(f"{package}/"))
        / sum(lines.values())
        for package in PACKAGES
    }
    largest = max(shares, key=shares.get)
    assert shares[largest] <= LARGEST_SHARE, f"{largest}/ holds {shares[largest]:.1%} of the lines"


def test_functions_fit_a_screen():
    long = [
        f"{name}:{node.lineno} {node.name} has {node.end_lineno - node.lineno + 1} lines"
        for name, node in functions()
        if node.end_lineno - node.lineno + 1 > LONGEST_FUNCTION
    ]
    assert not long, "split these by subject:\n" + "\n".join(long)


def test_few_files_are_long():
    long = {name: n for name in sources() if (n := line_count(name)) > LONG_FILE}
    assert len(long) <= MOST_LONG_FILES, f"files over {LONG_FILE} lines: {long}"


def test_checks_have_names_that_can_be_searched_for():
    named = [f"{name}:{node.lineno}" for name, node in functions() if node.name == "check"]
    assert len(named) < 2, f"several functions are called `check`: {', '.join(named)}"
