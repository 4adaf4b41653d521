"""JSON Schemas of the files that edgeprune writes and reads: what another program may rely on.

Promise: a schema is generated from the record that writes or reads the file, so neither can say what the other does
not. The committed ones, under `edgeprune/schemas/`, ship with the package; a test checks that they are current.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Literal

from edgeprune.errors import UsageError
from edgeprune.records import SCHEMA_VERSION

if TYPE_CHECKING:
    from pydantic import BaseModel

DIALECT = "https://json-schema.org/draft/2020-12/schema"
KINDS = {
    "report": "report.json: everything that a run learned.",
    "plan": "plan.json: what was removed, and what was left alone and why.",
    "verdict": "What `edgeprune gate --json` prints.",
    "comparison": "What `edgeprune compare --json` prints.",
    "sweep": "sweep.json: the points of a sweep and where each stands.",
    "statement": "attestation.json: an in-toto Statement that binds the files to their verdicts.",
    "profile": "A hardware profile (TOML).",
    "config": "edgeprune.toml, as data.",
}


def schema_of(kind: str) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of a kind of file; UsageError for an unknown kind."""
    if kind not in KINDS:
        raise UsageError(f"no schema of that name: {kind}", hint="known: " + ", ".join(KINDS))
    model, mode = _model(kind)
    made = model.model_json_schema(mode=mode)
    head = {"$schema": DIALECT, "$id": f"urn:edgeprune:schema:{kind}:{SCHEMA_VERSION}", "description": KINDS[kind]}
    return {**head, **{key: value for key, value in made.items() if key not in head}}


def schema_text(kind: str) -> str:
    """`schema_of` as stable JSON, ending in a newline."""
    return json.dumps(schema_of(kind), indent=2, ensure_ascii=False) + "\n"


def _model(kind: str) -> tuple[type[BaseModel], Literal["validation", "serialization"]]:
    """The record of a kind, and whether people write such files (validation) or edgeprune does."""
    if kind == "config":
        from edgeprune.config import Config

        return Config, "validation"
    if kind == "profile":
        from edgeprune.latency.profiles import Profile

        return Profile, "validation"
    from edgeprune import records

    written: dict[str, type[BaseModel]] = {
        "report": records.Report,
        "plan": records.PrunePlan,
        "verdict": records.Verdict,
        "comparison": records.RunComparison,
        "statement": records.Statement,
        "sweep": records.Sweep,
    }
    return written[kind], "serialization"
