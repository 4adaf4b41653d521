"""What every table of `edgeprune.toml` is made of: a frozen section, and settings that explain themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field


class Section(BaseModel):
    """One table of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def setting(default: Any, help: str, *, flag: str = "", **limits: Any) -> Any:
    """A field with its help text; `flag` names the command-line option where the field's own name would not do."""
    return Field(default, description=help, json_schema_extra={"flag": flag} if flag else None, **limits)


def _not_empty(value: object) -> object:
    if value == "":  # which pathlib takes for the current folder
        raise ValueError("must name a file or a folder")
    return value


Place = Annotated[Path, BeforeValidator(_not_empty)]
