"""The documentation executes: generated pages are current, every example in it is understood by the program."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import tomllib
from pathlib import Path

import pytest
import typer
from typer.main import get_command

from edgeprune.cli import app
from edgeprune.config import Config, flag_of, settings_of
from edgeprune.errors import ExitCode
from edgeprune.latency.profiles import Profile

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SHELL = {"console", "sh", "bash", "shell"}


def blocks(page: Path, languages: set[str]) -> list[tuple[int, str]]:
    """(line, text) of every fenced block in one of the languages; a block inside a list may be indented."""
    found, lines = [], page.read_text(encoding="utf-8").splitlines()
    start, indent, language = -1, 0, ""
    for number, line in enumerate(lines):
        fence = re.match(r"( *)```(\w*)", line)
        if start < 0 and fence:
            start, indent, language = number, len(fence[1]), fence[2]
        elif start >= 0 and line.strip() == "```":
            if language in languages:
                found.append((start + 2, "\n".join(each[indent:] for each in lines[start + 1 : number])))
            start = -1
    assert start < 0, f"{page.name}:{start + 1}: the block is not closed"
    return found


def commands(page: Path) -> list[tuple[int, list[str]]]:
    """(line, arguments) of every `edgeprune ...` in the shell blocks of a page, lines joined at a backslash."""
    found = []
    for start, text in blocks(page, SHELL):
        for offset, line in enumerate(text.replace("\\\n", " ").splitlines()):
            bare = re.sub(r"^[$>] |^ *- run: ", "", line.strip())
            for part in re.split(r"&&|\|\||;|(?<!\\)\|", bare):
                if re.match(r"\s*edgeprune( |$)", part):
                    found.append((start + offset, shlex.split(part, comments=True)[1:]))
    return found


TOML = [
    pytest.param(text, id=f"{page.relative_to(ROOT)}:{line}") for page in PAGES for line, text in blocks(page, {"toml"})
]
COMMANDS = [
    pytest.param(arguments, id=f"{page.relative_to(ROOT)}:{line}")
    for page in PAGES
    for line, arguments in commands(page)
]


def test_the_command_line_page_is_current() -> None:
    """When this fails: `python docs/generate_cli.py`."""
    place = ROOT / "docs" / "generate_cli.py"
    spec = importlib.util.spec_from_file_location("generate_cli", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "cli.md").read_text(encoding="utf-8") == module.cli_page()


def test_the_command_line_page_has_every_setting_command_and_exit_code() -> None:
    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for section in Config.model_fields:
        for name in settings_of(section):
            assert f"| `{section}.{name}` | `--{flag_of(section, name)}` |" in text
    for command in get_command(app).commands:  # type: ignore[attr-defined]
        assert f"### edgeprune {command}" in text
    for code in ExitCode:
        assert f"| {int(code)} |" in text


@pytest.mark.parametrize("text", TOML)
def test_settings_in_the_documentation_are_settings(text: str) -> None:
    """Of edgeprune.toml, or of a hardware profile."""
    tables = tomllib.loads(text)
    kind = Profile if "widths" in tables else Config
    given = kind.model_validate(tables).model_fields_set
    assert given == tables.keys()


@pytest.mark.parametrize("arguments", COMMANDS)
def test_commands_in_the_documentation_are_commands(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Parsed, not run: names, flags and the number of arguments are right."""
    monkeypatch.setattr(os, "environ", {**os.environ, "COLUMNS": "80"})
    parser = get_command(app)
    arguments = [argument for argument in arguments if argument != "--debug"]
    if not arguments or set(arguments) & {"--help", "-h", "--version"}:
        return
    command = parser.commands[arguments[0]]  # type: ignore[attr-defined]
    context = typer.Context(parser, info_name="edgeprune")
    parsed = command.make_context(arguments[0], arguments[1:], parent=context)
    for section in Config.model_fields:
        for name in settings_of(section):
            value = parsed.params.get(f"{section}_{name}")
            assert value is None or isinstance(value, str)


def test_examples_are_found_at_all(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```console\n$ edgeprune compress model.pt \\\n    --ratio 0.5 && edgeprune gate run --artifact m.onnx | cat\n"
        "pip install edgeprune\n```\n- a\n  ```toml\n  [run]\n  seed = 1\n  ```\n"
    )
    assert [arguments for _, arguments in commands(page)] == [
        ["compress", "model.pt", "--ratio", "0.5"],
        ["gate", "run", "--artifact", "m.onnx"],
    ]
    assert [text for _, text in blocks(page, {"toml"})] == ["[run]\nseed = 1"]
