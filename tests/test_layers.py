"""The layering, read from the source: a module imports only from layers above its own."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "fastrfm"
LAYERS = [
    "errors",
    "_interrupt",
    "_checks",
    "_memory",
    "_places",
    "atomic",
    "_hdf5",
    "_layout",
    "_numba",
    "_lanes",
    "options",
    "sparse_options",
    "low_rank_options",
    "_cuda",
    "devices",
    "kernels",
    "_designs",
    "compressed_rows",
    "designs",
    "device_designs",
    "regression_inputs",
    "measurements",
    "measurement_inputs",
    "metrics",
    "arrays",
    "device_arrays",
    "blocks",
    "device_blocks",
    "observations",
    "splits",
    "ranking",
    "similarity",
    "results",
    "words",
    "outputs",
    "tables",
    "merging",
    "stored",
    "stored_files",
    "store",
    "readers",
    "conversion",
    "factors",
    "agop",
    "solvers",
    "leverages",
    "uncertainty",
    "cross_validation",
    "ridge_plot",
    "_parameters",
    "_estimator",
    "_answers",
    "estimators",
    "_regressor",
    "sparse_regression",
    "sparse_cross_validation",
    "low_rank_regression",
    "baselines",
    "_figures",
    "matrix_plots",
    "plots",
    "report",
    "cli",
    "__main__",
]
LIGHT = {"errors", "options", "words", "cli", ""}  # what the command may load before it runs ("" is fastrfm/__init__)
HEAVY = {"numpy", "numba", "scipy", "h5py", "threadpoolctl", "llvmlite", "sklearn", "matplotlib"}
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def dotted(path: Path) -> list[str]:
    parts = list(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    return parts[:-1] if parts[-1] == "__init__" else parts


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(path: Path, *, at_load: bool = False) -> Iterator[str]:
    """Yield the full name of everything that a module imports; `at_load`: only what runs when it is loaded."""

    def walk(node: ast.AST) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            if at_load and (isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) or is_type_checking(child)):
                continue
            if isinstance(child, ast.Import):
                yield from (alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                is_package = path.name == "__init__.py"
                base = dotted(path)[: len(dotted(path)) - child.level + is_package] if child.level else []
                home = ".".join([*base, *([child.module] if child.module else [])])
                # ``from fastrfm import cli`` names a module; ``from fastrfm.errors import X`` does not.
                yield from (f"{home}.{alias.name}" if home == "fastrfm" else home for alias in child.names)
            else:
                yield from walk(child)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")))


def own_layers(path: Path, *, at_load: bool = False) -> set[str]:
    """Return the layers of fastrfm that a module imports from."""
    found = set()
    for name in imports(path, at_load=at_load):
        parts = name.split(".")
        if parts[0] == "fastrfm":
            layer = parts[1] if len(parts) > 1 else ""
            found.add("" if layer.startswith("__") and layer != "__main__" else layer)
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_import_only_from_layers_above(path):
    layer = layer_of(path)
    assert layer in LAYERS, f"give {layer} its place in LAYERS"
    above = LAYERS[: LAYERS.index(layer)]
    # Packages may import within themselves, but a kernel shares no code: the disk cache would not see it change.
    # Device kernels do, with their twins: they are not kept on disk.
    is_alone = path.parent in (PACKAGE, PACKAGE / "kernels")
    allowed = {*above, ""} if is_alone else {*above, layer, ""}
    if layer not in ("cli", "__main__"):
        allowed.discard("")  # only the command reads the version from the top
    assert own_layers(path) <= allowed


def test_numba_is_named_in_one_place():
    for path in MODULES:
        wanted = {"_lanes": {"numba", "llvmlite"}}.get(layer_of(path), set())
        if layer_of(path) in ("_numba", "_cuda", "kernels"):
            wanted = {"numba"}
        found = {name.split(".")[0] for name in imports(path)} & {"numba", "llvmlite"}
        assert found <= wanted, f"{path.name} imports {found - wanted}"
        if layer_of(path) == "kernels":  # prange, or what threads and blocks are called, and no decorator
            names = [
                alias.name
                for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                if isinstance(node, ast.ImportFrom) and node.module == "numba"
                for alias in node.names
            ]
            assert set(names) <= ({"cuda"} if path.parent.name == "cuda" else {"prange"})


@pytest.mark.parametrize("path", [p for p in MODULES if layer_of(p) in (*LIGHT, "__main__")])
def test_the_command_loads_nothing_heavy_before_it_runs(path):
    assert not {name.split(".")[0] for name in imports(path, at_load=True)} & HEAVY
    assert own_layers(path, at_load=True) <= LIGHT


def test_the_package_itself_loads_lazily():
    found = [name for name in imports(PACKAGE / "__init__.py", at_load=True) if name.split(".")[0] in HEAVY]
    assert not found and not own_layers(PACKAGE / "__init__.py", at_load=True)
    script = "import sys, fastrfm.cli; print(sorted(set(sys.modules) & {'numpy', 'numba', 'scipy', 'h5py'}))"
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=PACKAGE.parent, capture_output=True, text=True, timeout=60, check=False
    )
    assert (run.returncode, run.stdout.strip()) == (0, "[]"), run.stderr
