"""Hardware profiles: what is known of a target, every number with its unit, kind and source.

Promise: a number without a source does not load. A profile is a shipped TOML file, called by its name, or the
user's own, called by its path (`--target ./board.toml`). Nothing here turns a published figure into a latency.
"""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from edgeprune.errors import UsageError
from edgeprune.latency.estimate import Calibration
from edgeprune.protocols import did_you_mean
from edgeprune.records import Record, TargetInfo

PACKAGE = "edgeprune.hardware_profiles"
ANY_RUNTIME = ANY_ARCHITECTURE = "any"
Kind = Literal["measured-local", "measured-remote", "estimated", "published"]
Text = Annotated[str, Field(min_length=1)]


class Figure(Record):
    """A number about a device, and who says so (a URL, a data sheet, a command and the machine that it ran on)."""

    name: Text
    value: float = Field(gt=0)
    unit: Text
    kind: Kind
    source: Text


class Width(Record):
    """Channel counts that a runtime's kernels like: multiples of `value` on this device."""

    value: int = Field(gt=0)
    unit: Literal["channels"]
    kind: Kind
    source: Text


class Profile(Record):
    """One device.

    `measured` local: this machine is the target. remote: the device is elsewhere, and as long as none is attached
    its latency is unmeasured. never: nothing of ours runs there, its figures are all there is. `features`: what the
    processor has, where it was asked. `estimates` maps a runtime to a calibration of latency estimates. `cores` None:
    as many as the process may use. `widths` maps a runtime, or "any", to the multiple that its widths should end on.
    """

    name: Text
    description: Text
    measured: Literal["local", "remote", "never"]
    architecture: Text
    cores: int | None = Field(None, gt=0)
    widths: dict[str, Width]
    figures: tuple[Figure, ...] = ()
    features: tuple[str, ...] = ()
    estimates: dict[str, Calibration] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _widths_for_any(self) -> Profile:
        if ANY_RUNTIME not in self.widths:
            raise ValueError("widths.any is missing: the channel multiple where a runtime has none of its own")
        return self

    @property
    def is_local(self) -> bool:
        return self.measured == "local"

    @property
    def channel_multiple(self) -> int:
        """The multiple for a runtime that is not named."""
        return self.widths[ANY_RUNTIME].value

    def multiple_for(self, runtime: str) -> int:
        """The multiple that widths should end on for `runtime`."""
        return self.widths.get(runtime, self.widths[ANY_RUNTIME]).value

    def info(self, runtime: str = ANY_RUNTIME) -> TargetInfo:
        """What a report says of the target."""
        return TargetInfo(name=self.name, description=self.description, channel_multiple=self.multiple_for(runtime))


def list_profiles() -> tuple[Profile, ...]:
    """The shipped profiles: this machine first, then by name."""
    found = [_parse(path.read_text(encoding="utf-8"), path.name) for path in _shipped().values()]
    return tuple(sorted(found, key=lambda profile: (not profile.is_local, profile.name)))


def load_profile(name_or_path: str) -> Profile:
    """The shipped profile of that name, or the user's own TOML file.

    Errors: UsageError with the nearest known name, or with what is wrong in the file and where.
    """
    shipped = _shipped()
    if name_or_path in shipped:
        return _parse(shipped[name_or_path].read_text(encoding="utf-8"), name_or_path)
    path = Path(name_or_path)
    if path.suffix != ".toml" and len(path.parts) < 2:
        raise UsageError(
            f"unknown target: {name_or_path}",
            where=did_you_mean(name_or_path, tuple(sorted(shipped))),
            hint="a profile of your own is given by its path: --target ./board.toml",
        )
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"no such hardware profile: {path}", hint="known: " + ", ".join(sorted(shipped))) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the hardware profile {path}: {error}") from error
    return _parse(text, str(path))


def _shipped() -> dict[str, Path]:
    folder = Path(str(files(PACKAGE)))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def _parse(text: str, place: str) -> Profile:
    try:
        return Profile.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"the hardware profile {place} is not TOML: {error}") from error
    except ValidationError as error:
        raise _explain(error, place) from error


def _explain(error: ValidationError, place: str) -> UsageError:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _fields_at(first["loc"][:-1])
        return UsageError(
            f"unknown key in the hardware profile {place}: {where}", hint=did_you_mean(where.split(".")[-1], known)
        )
    if first["type"] == "missing":
        return UsageError(
            f"the hardware profile {place} lacks {where}", hint="every number needs value, unit, kind and source"
        )
    message = first["msg"].removeprefix("Value error, ")
    return UsageError(f"the hardware profile {place}: {where + ': ' if where else ''}{message}")


def _fields_at(location: tuple[int | str, ...]) -> tuple[str, ...]:
    tables: dict[str, type[BaseModel]] = {"figures": Figure, "widths": Width, "estimates": Calibration}
    record = tables.get(str(location[0]), Profile) if location else Profile
    return tuple(record.model_fields)
