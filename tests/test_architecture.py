"""The invariants of ARCHITECTURE.md, checked by reading the source: import order, absences, sizes."""

from __future__ import annotations

import ast
import functools
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("gateway", "training", "adapters")  # each may import those to its right
FORBIDDEN_EVERYWHERE = {"torch", "transformers", "peft", "vllm", "llamafactory"}
V1_UNCOUNTED = re.compile(r"upstream|connection|fields\w*")  # the client and the field tables
# Run in the training environment or the engine's, never imported.
CHILD_SCRIPTS = {
    "training/demo_base.py",
    "training/demo_cast.py",
    "training/parity_child.py",
    "training/evaluate/bertscore_child.py",
    "training/export/merge_child.py",
    "training/interpreter_child.py",
    "gateway/local/engine_plugin/loragate_cpu_lora.py",
}


def sources(room: str) -> list[Path]:
    return sorted(path for path in (ROOT / room).rglob("*.py") if "versions" not in path.parts)


ALL = [path for room in ROOMS for path in sources(room)]


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imports(path: Path, *, top_level_only: bool = False) -> tuple[str, ...]:
    return tuple(_imports(parsed(path), top_level_only))


def _imports(tree: ast.Module, top_level_only: bool) -> Iterator[str]:
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            skipped.update(id(inner) for inner in ast.walk(node))
        if top_level_only and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            skipped.update(id(inner) for inner in ast.walk(node) if inner is not node)
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_rooms_import_only_downwards() -> None:
    found = []
    for path in ALL:
        above = ROOMS[: ROOMS.index(path.relative_to(ROOT).parts[0])]
        found += [(relative(path), name) for name in imports(path) if name.split(".")[0] in above]
    assert found == []


def test_the_two_planes_never_import_each_other() -> None:
    crossings = [(relative(p), n) for p in sources("gateway/v1") for n in imports(p) if n.startswith("gateway.admin")]
    crossings += [(relative(p), n) for p in sources("gateway/admin") for n in imports(p) if n.startswith("gateway.v1")]
    assert [c for c in crossings if not c[1].startswith("gateway.v1.snapshot")] == []


def test_the_data_plane_knows_no_sql_no_web_framework_no_services() -> None:
    forbidden = ("sqlalchemy", "fastapi", "starlette", "uvicorn", "httpx", "adapters.service", "adapters.store")
    found = [(relative(p), n) for p in sources("gateway/v1") for n in imports(p) if n.startswith(forbidden)]
    assert found == []


def test_the_data_plane_opens_no_file() -> None:
    calls = re.compile(r"\bopen\(|\.read_bytes\(|\.read_text\(|\.write_bytes\(|\.write_text\(")
    found = [relative(p) for p in sources("gateway/v1") if calls.search(p.read_text(encoding="utf-8"))]
    assert found == []


def test_heavy_packages_are_never_imported() -> None:
    found = [
        (relative(path), name)
        for path in ALL
        if relative(path) not in CHILD_SCRIPTS
        for name in imports(path)
        if name.split(".")[0] in FORBIDDEN_EVERYWHERE
    ]
    assert found == []


def test_the_gateway_process_loads_no_data_tool() -> None:
    """The libraries of the extra `train` are 200 MB that no request needs."""
    tools = {"numpy", "pyarrow", "tokenizers", "jinja2", "datasketch", "py3langid", "sacrebleu", "matplotlib", "scipy"}
    code = f"import sys, gateway.server; print(sorted({{m.split('.')[0] for m in sys.modules}} & {tools!r}))"
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_fastapi_only_under_gateway() -> None:
    found = [relative(p) for p in ALL if not relative(p).startswith("gateway/") and "fastapi" in set(imports(p))]
    assert found == []


def test_only_store_files_know_tables() -> None:
    verbs = re.compile(r"\b(select|insert|update|delete)\(")
    allowed = re.compile(r"(^|/)(store|schema|revision|migrate|db)\w*\.py$|migrations/")
    found = [
        relative(p)
        for p in ALL
        if not allowed.search(relative(p))
        and any(name.startswith("sqlalchemy") for name in imports(p))
        and verbs.search(p.read_text(encoding="utf-8"))
    ]
    assert found == []


def test_only_the_engine_client_loads_and_unloads() -> None:
    found = [relative(p) for p in ALL if "load_lora_adapter" in p.read_text(encoding="utf-8")]
    assert set(found) <= {"adapters/engine.py", "gateway/local/engine.py", "training/demo.py"}


def test_no_globals_no_bare_except_and_every_module_says_what_it_owns() -> None:
    found = []
    for path in ALL:
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Global) or (isinstance(node, ast.ExceptHandler) and node.type is None):
                found.append((relative(path), node.lineno))
        if not ast.get_docstring(parsed(path)):  # a module begins with what it owns and what it must not know
            found.append((relative(path), 1))
    assert found == []


def test_no_import_cycles() -> None:
    names = {relative(path)[:-3].replace("/", ".").removesuffix(".__init__"): path for path in ALL}
    graph = {
        name: {target for target in imports(path, top_level_only=True) if target in names and target != name}
        for name, path in names.items()
    }
    for name in graph:  # a package's own __init__ is imported with any of its modules: not counted as an edge
        graph[name] = {t for t in graph[name] if not name.startswith(t + ".") and not t.startswith(name + ".")}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " → ".join((*trail[trail.index(name) :], name))
        if name not in done:
            for target in sorted(graph[name]):
                visit(target, (*trail, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())


def lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def code_lines(path: Path) -> int:
    """Lines that are neither blank, comment nor docstring."""
    tree = parsed(path)
    prose: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(
            node
        ):
            first = node.body[0]
            prose.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    text = path.read_text(encoding="utf-8").splitlines()
    return sum(
        1
        for number, line in enumerate(text, 1)
        if number not in prose and line.strip() and not line.lstrip().startswith("#")
    )


def test_files_are_small() -> None:
    sizes = {relative(path): lines(path) for path in ALL}
    assert statistics.median(sizes.values()) <= 150
    assert {name: size for name, size in sizes.items() if size > 500} == {}


def test_functions_are_small() -> None:
    sizes = {}
    for path in ALL:
        for node in ast.walk(parsed(path)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                sizes[f"{relative(path)}:{node.name}:{node.lineno}"] = (node.end_lineno or 0) - node.lineno + 1
    assert {name: size for name, size in sizes.items() if size > 80} == {}
    assert statistics.quantiles(sizes.values(), n=10)[-1] <= 35


def test_the_hot_path_stays_readable() -> None:
    counted = [path for path in sources("gateway/v1") if not V1_UNCOUNTED.fullmatch(path.stem)]
    assert sum(code_lines(path) for path in counted) <= 1700


def test_the_repository_names_no_index_host() -> None:
    hosts = re.compile("|".join(("pypi" + r"\.org", "python" + "hosted", "npm" + "js", "debian" + r"\.org")))
    found = []
    for path in ROOT.rglob("*"):
        parts = path.relative_to(ROOT).parts
        if parts[0] in {".git", ".venv", "dist", "build"} or "__pycache__" in parts or not path.is_file():
            continue
        if (
            path.suffix in {".py", ".md", ".txt", ".toml", ".yaml", ".yml", ".json", ".sh", ""}
            and path.stat().st_size < 2**20
        ):
            text = path.read_text(encoding="utf-8", errors="ignore")
            if path != Path(__file__) and hosts.search(text):
                found.append(relative(path))
    assert found == []
