"""Profiles as TOML files of one's own: written so that `--target ./board.toml` reads them again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from edgeprune.files import write_text
from edgeprune.latency.profiles import Profile, load_profile


def write_profile(profile: Profile, path: Path) -> None:
    """Write `profile` to `path` and read it back. OutputError when it cannot be written."""
    write_text(path, as_toml(profile))
    assert load_profile(str(path)) == profile


def as_toml(profile: Profile) -> str:
    """The profile as TOML: plain keys first, then tables, then lists of tables."""
    return "\n".join(_table(profile.model_dump(mode="json", exclude_none=True), "")) + "\n"


def _table(values: Mapping[str, object], place: str) -> Iterator[str]:
    later: list[tuple[str, object]] = []
    for name, value in values.items():
        nested = isinstance(value, dict) or (isinstance(value, list) and value and isinstance(value[0], dict))
        if nested:
            later.append((name, value))
        else:
            yield f"{_key(name)} = {json.dumps(value, ensure_ascii=False)}"
    for name, value in later:
        path = f"{place}.{_key(name)}" if place else _key(name)
        if isinstance(value, dict):
            plain = any(not isinstance(part, dict) for part in value.values())
            if plain:
                yield from ("", f"[{path}]")
            yield from _table(value, path)
        elif isinstance(value, list):
            for part in value:
                yield from ("", f"[[{path}]]")
                yield from _table(part, path)


def _key(name: str) -> str:
    """Bare where TOML allows it, else quoted."""
    bare = name.replace("-", "").replace("_", "")
    return name if bare.isascii() and bare.isalnum() else json.dumps(name, ensure_ascii=False)
