"""Writes edgeprune/schemas/*.json from the records: `python docs/generate_schemas.py`."""

from __future__ import annotations

from pathlib import Path

from edgeprune.schema import KINDS, schema_text

FOLDER = Path(__file__).parents[1] / "edgeprune" / "schemas"

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for kind in KINDS:
        (FOLDER / f"{kind}.schema.json").write_text(schema_text(kind), encoding="utf-8")
        print(FOLDER / f"{kind}.schema.json")
