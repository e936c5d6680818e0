"""The packages depend on each other one way: perceiver <- pipelines <- tune."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
PACKAGES = ("perceiver", "pipelines", "tune")


@dataclass(frozen=True)
class Rule:
    """Modules within `importer`, but for one, import nothing within `imported`, not even inside a function."""

    importer: str
    imported: str
    exception: str | None = None

    def forbids(self, importer: str, imported: str) -> bool:
        return importer != self.exception and within(importer, self.importer) and within(imported, self.imported)


RULES = (
    Rule("perceiver", "pipelines"),
    Rule("perceiver", "tune"),
    Rule("pipelines", "tune"),
    Rule("perceiver", "ray"),
    Rule("perceiver", "mlflow"),
    Rule("perceiver.config", "torch"),
    *(Rule(package, "jsonargparse", exception="pipelines.cli") for package in PACKAGES),
)


def within(module: str, parent: str) -> bool:
    """Tell whether a module is `parent` or lies below it."""
    return f"{module}.".startswith(f"{parent}.")


def find_modules(root: Path) -> dict[str, Path]:
    """Return the file of every module of the packages under `root`."""
    modules = {}
    for path in (file for package in PACKAGES for file in sorted((root / package).rglob("*.py"))):
        parts = path.relative_to(root).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return modules


def find_imports(node: ast.AST, package: str, lazy: bool = False) -> Iterator[tuple[str, bool]]:
    """Yield the dotted names that the code below `node` imports, and whether it does so only inside a function.

    `from a import b` yields a.b, be it a module or not. `package` is what the dots of relative imports start from.
    """
    match node:
        case ast.Import(names=aliases):
            yield from ((alias.name, lazy) for alias in aliases)
        case ast.ImportFrom(module=module, names=aliases, level=level):
            parents = package.split(".")
            base = parents[: len(parents) - level + 1] if level else []
            source = ".".join([*base, *([module] if module else [])])
            yield from ((f"{source}.{alias.name}", lazy) for alias in aliases)
        case ast.Call(
            func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__"),
            args=[ast.Constant(value=str(name)), *_],
        ):
            yield name, lazy
    lazy = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in ast.iter_child_nodes(node):
        yield from find_imports(child, package, lazy)


def find_faults(root: Path) -> list[str]:
    """Describe each forbidden import in the packages under `root`, and a cycle of imports if there is one."""
    modules = find_modules(root)
    faults = set()
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        graph[module] = set()
        for imported, lazy in find_imports(ast.parse(path.read_text(encoding="utf-8")), package):
            faults |= {f"{module} imports {rule.imported}" for rule in RULES if rule.forbids(module, imported)}
            target = imported if imported in modules else imported.rpartition(".")[0]
            if target in modules and not lazy:
                graph[module].add(target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        faults.add(f"cycle: {' <- '.join(error.args[1])}")
    return sorted(faults)


def test_packages_keep_their_direction() -> None:
    assert {"perceiver.config", "pipelines", "tune"} <= find_modules(REPOSITORY).keys()
    assert find_faults(REPOSITORY) == []


def test_config_loads_without_torch() -> None:
    code = "import sys, perceiver.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=False).returncode == 0


@pytest.mark.parametrize(
    ("files", "faults"),
    [
        ({"perceiver/a.py": "import pipelines.b"}, ["perceiver.a imports pipelines"]),
        ({"pipelines/a.py": "from tune import b"}, ["pipelines.a imports tune"]),
        ({"perceiver/data/a.py": "def f():\n    import ray.train"}, ["perceiver.data.a imports ray"]),
        ({"perceiver/a.py": "if True:\n    from mlflow import log_metric"}, ["perceiver.a imports mlflow"]),
        ({"perceiver/a.py": "import importlib\nimportlib.import_module('ray')"}, ["perceiver.a imports ray"]),
        (
            {"perceiver/config.py": "async def f():\n    from torch.nn import Module"},
            ["perceiver.config imports torch"],
        ),
        ({"tune/a.py": "import jsonargparse"}, ["tune.a imports jsonargparse"]),
        ({"perceiver/a.py": "from . import b", "perceiver/b.py": "from .a import c"}, ["cycle: "]),
        ({"perceiver/__init__.py": "from perceiver.a import b", "perceiver/a.py": "from . import c"}, ["cycle: "]),
        ({"perceiver/a/b.py": "from ..c import d", "perceiver/c.py": "import perceiver.a.b"}, ["cycle: "]),
    ],
)
def test_bad_imports_are_found(tmp_path: Path, files: dict[str, str], faults: list[str]) -> None:
    write(tmp_path, files)
    found = find_faults(tmp_path)
    assert len(found) == len(faults)
    assert all(line.startswith(fault) for line, fault in zip(found, faults, strict=True))


def test_good_imports_pass(tmp_path: Path) -> None:
    files = {
        "perceiver/__init__.py": "",
        "perceiver/a.py": "import torch, raylib\nfrom perceiver import b",
        "perceiver/b.py": "def f():\n    from perceiver.a import c",
        "pipelines/cli.py": "import jsonargparse, ray, mlflow\nfrom perceiver.a import c",
        "tune/__init__.py": "from pipelines import cli\nimport perceiver.config",
    }
    write(tmp_path, files)
    assert find_faults(tmp_path) == []


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
