"""An in-toto Statement (v1) about the files that a run shipped: what they are, and what the gate said of each.

Names are those of the in-toto specification, so that its tools can read them:
https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md
"""

from __future__ import annotations

from typing import Final, Literal

from pydantic import ConfigDict, Field

from edgeprune.records.base import SCHEMA_VERSION, Record, Sha256
from edgeprune.records.machine import Environment
from edgeprune.records.verdict import Verdict

STATEMENT: Final = "https://in-toto.io/Statement/v1"
PREDICATE: Final = "urn:edgeprune:verdict:v1"


class Digest(Record):
    """The digest of a file or of data."""

    sha256: Sha256


class Resource(Record):
    """A file or data by its name and digest."""

    name: str
    digest: Digest


class Predicate(Record):
    """What is claimed of the subjects: the verdict on each file, and everything that it rests on.

    `verdicts` judge one file each, by its sha256; empty where no budgets were set. `materials` are what went in: the
    network, the data (digests of pixels, labels and sample ids), the configuration, the report and its evidence.
    """

    schema_version: Literal["1"] = SCHEMA_VERSION
    verdicts: tuple[Verdict, ...]
    report: Digest
    materials: tuple[Resource, ...]
    environment: Environment
    target: str
    command: str
    created: str


class Statement(Record):
    """The statement: `subject` are the files that ship, with the weights that belong to them."""

    model_config = ConfigDict(populate_by_name=True, serialize_by_alias=True)

    type: Literal["https://in-toto.io/Statement/v1"] = Field(
        STATEMENT, validation_alias="_type", serialization_alias="_type"
    )
    subject: tuple[Resource, ...]
    predicate_type: Literal["urn:edgeprune:verdict:v1"] = Field(
        PREDICATE, validation_alias="predicateType", serialization_alias="predicateType"
    )
    predicate: Predicate
