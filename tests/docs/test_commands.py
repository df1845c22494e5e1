"""Every command of README.md and of the quick start runs as it is written.

A comment in the page's source before a block, `<!-- shell: ... -->`, says how:

- `fresh`: a new world (folder, network, processes) begins here;
- `background`: goes on running, in a terminal of its own;
- `prints TEXT`: its output has this text, in time; of a background one at the end of the world;
- `covered TEST`: needs what is not here; this test, which exists, shows it.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, ROOT, Block, blocks
from tests.docs.shell import World

PAGES = (ROOT / "README.md", DOCS / "quick-start.md")
_NOTES = {"fresh", "background", "prints", "covered"}


def _worlds(page: Path) -> list[list[Block]]:
    worlds: list[list[Block]] = []
    for block in blocks(page.read_text("utf-8")):
        if block.language in ("sh", "") and "covered" not in block.notes:
            if "fresh" in block.notes or not worlds:
                worlds.append([])
            worlds[-1].append(block)
    return worlds


WORLDS = [pytest.param(world, id=f"{page.name}:{world[0].line}") for page in PAGES for world in _worlds(page)]


@pytest.mark.parametrize("world", WORLDS)
def test_commands(world: list[Block], tmp_path: Path) -> None:
    with World(tmp_path) as shell:
        for block in world:
            wanted = block.notes.get("prints", "")
            if "background" in block.notes:
                terminal = shell.begin(block.text)
                if wanted:
                    shell.expect(terminal, wanted)
            else:
                printed = shell.run(block.text)
                assert wanted in printed, (block.line, printed)
        shell.settle()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_blocks_say_what_they_are(page: Path) -> None:
    text = page.read_text("utf-8")
    for block in blocks(text):
        assert block.language in ("sh", "toml", "text"), block
        assert set(block.notes) <= _NOTES, block
    # An indented block would run nowhere.
    fences = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert not re.search(r"\n\n    \S", fences)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_goes_on_running_says_where_the_next_command_goes(page: Path) -> None:
    text = page.read_text("utf-8")
    parts = re.split(r"^```.*?^```$", text, flags=re.MULTILINE | re.DOTALL)
    shown = list(blocks(text))
    for number, block in enumerate(shown[:-1]):
        if "background" in block.notes and "fresh" not in shown[number + 1].notes:
            around = parts[number] + parts[number + 1]
            assert "terminal" in around, (block.line, block.text)


@pytest.mark.parametrize("page", [*PAGES, *DOCS.glob("*.md"), ROOT / "helm" / "rookery" / "README.md"], ids=str)
def test_a_release_is_tested_when_it_is_there(page: Path) -> None:
    for block in blocks(page.read_text("utf-8")):
        before, found, _ = block.text.partition("helm test")
        if found and "helm install" in before:
            assert "--wait" in before or "rollout status" in before, block


COVERED = [
    pytest.param(block.notes["covered"], id=f"{page.name}:{block.line}")
    for page in PAGES
    for block in blocks(page.read_text("utf-8"))
    if "covered" in block.notes
]


@pytest.mark.parametrize("name", COVERED)
def test_what_others_cover_is_covered(name: str) -> None:
    path, _, test = name.partition("::")
    source = (ROOT / path).read_text("utf-8")
    if test:
        assert re.search(rf"^(async )?def {re.escape(test)}\(", source, re.MULTILINE), name
    else:
        assert name == ".ci/run" and "make --no-print-directory test" in source


def test_a_failing_command_fails(tmp_path: Path) -> None:
    with World(tmp_path) as shell:
        assert "hello" in shell.run("echo hello")
        with pytest.raises(AssertionError, match="false"):
            shell.run("false\ntrue")
