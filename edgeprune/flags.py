"""Turns the settings of `Config` into command-line options: one truth for the file, the flags and the docs."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable
from typing import Annotated, Any, get_origin

import typer
from pydantic.fields import FieldInfo

from edgeprune.config import flag_of, settings_of
from edgeprune.errors import UsageError

Flags = dict[str, dict[str, object]]


def settings(*sections: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command every setting of these sections as an option; it receives those given as ``flags``.

    Values stay text here (lists are split at commas): `load_config` is what validates, for flags as for the file.
    """
    fields = [(section, name) for section in sections for name in settings_of(section)]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def wrapper(**given: Any) -> Any:
            flags: Flags = {}
            for section, name in fields:
                text = given.pop(f"{section}_{name}")
                if text is not None:
                    flags.setdefault(section, {})[name] = _value(section, name, text)
            return command(**given, flags=flags)

        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "flags"]
        added = [_parameter(section, name) for section, name in fields]
        wrapper.__signature__ = inspect.Signature([*own, *added])  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in (*own, *added)}
        return wrapper

    return decorate


def default_of(field: FieldInfo) -> str:
    """A setting's default as it is written on the command line; empty when there is none."""
    default = field.default
    if default is None or default == {}:
        return ""
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _parameter(section: str, name: str) -> inspect.Parameter:
    field = settings_of(section)[name]
    shown = default_of(field)
    help_text = f"{field.description}" + (f" (default: {shown})" if shown else "")
    option = typer.Option(
        f"--{flag_of(section, name)}",
        help=help_text,
        metavar=_metavar(field.annotation),
        rich_help_panel=f"Settings: {section}",
        show_default=False,
    )
    kind = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(f"{section}_{name}", kind, default=None, annotation=Annotated[str | None, option])


def _metavar(annotation: Any) -> str:
    text = str(annotation)
    for word, metavar in (
        ("bool", "true|false"),
        ("tuple", "A,B,..."),
        ("dict", "JSON"),
        ("Path", "PATH"),
        ("int", "N"),
        ("float", "X"),
    ):
        if word in text:
            return metavar
    return "TEXT"


def _value(section: str, name: str, text: str) -> object:
    annotation = settings_of(section)[name].annotation
    if "tuple" in str(annotation):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if get_origin(annotation) is dict:
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise UsageError(f"--{flag_of(section, name)} is not JSON: {error}") from error
    return text
