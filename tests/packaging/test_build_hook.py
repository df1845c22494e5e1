"""When the core is compiled: what the environment and the machine say."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path
from typing import Any

import pytest
from hatchling.builders.wheel import WheelBuilder
from setuptools.errors import CompileError

import hatch_build
from tests.packaging.compiled import ROOT


def _hook() -> hatch_build.CustomBuildHook:
    builder = WheelBuilder(str(ROOT))
    return hatch_build.CustomBuildHook(
        str(ROOT), {}, builder.config, builder.metadata, str(ROOT / "dist"), "wheel", builder.app
    )


def _data() -> dict[str, Any]:
    return {"force_include": {}, "pure_python": True, "infer_tag": False}


def test_the_environment_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOKERY_COMPILE", "1")
    assert hatch_build.wanted()
    assert any(each.startswith("mypy==") for each in _hook().dependencies())
    monkeypatch.setenv("ROOKERY_COMPILE", "0")
    assert not hatch_build.wanted()
    assert _hook().dependencies() == []
    monkeypatch.setenv("ROOKERY_COMPILE", "yes")
    with pytest.raises(ValueError, match="ROOKERY_COMPILE is 'yes', must be 0 or 1"):
        hatch_build.wanted()


def test_else_the_machine_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ROOKERY_COMPILE", raising=False)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    assert hatch_build.wanted()
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert not hatch_build.wanted()
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert hatch_build.wanted()
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    assert not hatch_build.wanted()


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A compiler that is there and does not work, such as one without headers of the C library; what it was given."""
    compiler, given = tmp_path / "cc", tmp_path / "given"
    compiler.write_text(f'#!/bin/sh\necho "$@" >> {given}\nexit 1\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("CC", str(compiler))
    monkeypatch.setattr(hatch_build, "_COMPILED", ("broker/reasons.py",))  # enough
    return given


def test_a_compiler_that_fails_leaves_a_pure_wheel(
    broken: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("ROOKERY_COMPILE", raising=False)
    before, hook, data = Path.cwd(), _hook(), _data()
    hook.initialize("standard", data)
    hook.finalize("standard", data, "")
    assert data == _data() and Path.cwd() == before
    told = "".join(capsys.readouterr())
    assert "the core is not compiled" in told and str(broken.with_name("cc")) in told
    # Newer compilers know more warnings.
    assert "-Werror" not in broken.read_text()


def test_unless_it_has_to_compile(broken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOKERY_COMPILE", "1")
    data = _data()
    with pytest.raises(CompileError):
        _hook().initialize("standard", data)
    assert data == _data() and broken.exists()


def test_an_editable_installation_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOKERY_COMPILE", "1")
    data = _data()
    _hook().initialize("editable", data)
    assert data == _data()


def test_the_compiler_is_the_type_checker_of_the_tree() -> None:
    """The same version of mypy: what it accepts here it compiles there."""
    (compiler,) = (each for each in _hook_dependencies() if each.startswith("mypy"))
    assert f'"{compiler}"' in (ROOT / "pyproject.toml").read_text("utf-8")


def _hook_dependencies() -> list[str]:
    return list(hatch_build._COMPILER)


def test_modules_of_the_core_are_compiled() -> None:
    modules = hatch_build.modules(ROOT)
    assert {"broker/codec/decode.py", "broker/session/session.py", "broker/topics/trie.py"} <= set(modules)
    assert all((ROOT / name).is_file() and Path(name).name != "__init__.py" for name in modules)
