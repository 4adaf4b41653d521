"""What all records share: frozen, no unknown keys, stable JSON; counts with their intervals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Final, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgeprune.errors import SchemaError, UsageError

SCHEMA_VERSION: Final = "1"

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Side = Literal["dense", "compressed"]
R = TypeVar("R", bound="Record")


class Record(BaseModel):
    """Base of everything that is written to a file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def to_json(self) -> str:
        """Stable JSON: keys in field order, two spaces, a newline at the end."""
        return json.dumps(self.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


class Unmeasured(Record):
    """Stands where a measurement would: there is none, and this is why."""

    unmeasured: str


class Interval(Record):
    """A two-sided confidence interval."""

    low: float
    high: float
    confidence: float = 0.95


class Proportion(Record):
    """`count` of `total`, with its Clopper-Pearson interval."""

    count: int
    total: int
    interval: Interval

    @property
    def value(self) -> float:
        return self.count / self.total


class PairedDrop(Record):
    """Dense minus compressed on the same images.

    `dense_only` images are right in the dense file alone, `compressed_only` in the compressed one alone. `upper`
    is a one-sided bound on the drop at `confidence`; `p_value` is McNemar's exact two-sided test.
    """

    total: int
    dense_only: int
    compressed_only: int
    upper: float
    confidence: float
    p_value: float

    @property
    def value(self) -> float:
        return (self.dense_only - self.compressed_only) / self.total


def read_record(kind: type[R], path: Path) -> R:
    """Read a record from a JSON file; UsageError says what is wrong with it and where.

    SchemaError, a UsageError, when the file says that it was written in another schema.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"no such file: {path}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    if "schema_version" in kind.model_fields:
        _check_schema(kind.__name__, text, path)
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the top level"
        raise UsageError(
            f"{path} is not a {kind.__name__} of this version of edgeprune",
            where=f"{place}: {first['msg']}",
            hint="make it again with this version, or use the version that wrote it",
        ) from error


def _check_schema(name: str, text: str, path: Path) -> None:
    """SchemaError when the text names another schema version; what is no such JSON is for the validation to refuse."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return
    found = data.get("schema_version", SCHEMA_VERSION) if isinstance(data, dict) else SCHEMA_VERSION
    if found == SCHEMA_VERSION:
        return
    newer = str(found).isdigit() and int(str(found)) > int(SCHEMA_VERSION)
    environment = data.get("environment")
    wrote = str(environment.get("edgeprune", ""))[:40] if isinstance(environment, dict) else ""
    remedy = f"use edgeprune {wrote}, which wrote it" if wrote else "use the version of edgeprune that wrote it"
    raise SchemaError(
        f"{path} is a {name} of the {'newer' if newer else 'older'} schema {str(found)[:20]!r}; this version reads "
        f"{SCHEMA_VERSION!r}",
        hint=f"{remedy}, or a newer one" if newer else f"run `edgeprune compress` again, or {remedy}",
    )
