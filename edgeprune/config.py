"""`edgeprune.toml` and the command line -> `Config`.

Every setting stands here once: its name and default, the words that explain it, and the flag that sets it. A flag
wins over the file, the file over the default. Unknown keys are errors that name the nearest known one.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from edgeprune.budgets import METRICS, BudgetConfig, Limits
from edgeprune.errors import UsageError
from edgeprune.latency.settings import LatencyConfig, RemoteConfig
from edgeprune.margins import BoundaryConfig, CertifyConfig
from edgeprune.protocols import did_you_mean
from edgeprune.pruning.limits import Span as WidthSpan
from edgeprune.pruning.limits import WidthLimits, amount, span
from edgeprune.quantities import Epsilon, Milliseconds, Minutes, Times, Width, Widths
from edgeprune.recovery.settings import RecoverConfig
from edgeprune.sections import Place, Section, setting
from edgeprune.sweeping.settings import Alternatives, SweepConfig
from edgeprune.types import Goal

FILE_NAME = "edgeprune.toml"


class ModelConfig(Section):
    arch: str | None = setting(
        None, "Constructor of a state_dict's network: package.module:callable or file.py:callable."
    )
    arch_args: dict[str, Any] = setting({}, "Keyword arguments of that constructor (JSON on the command line).")
    trust: tuple[str, ...] = setting((), "Import prefixes, or Python files, whose classes a model file may use.")
    input_shape: tuple[int, int, int] | None = setting(None, "Channels, height, width of one image.")
    mean: tuple[float, ...] = setting((), "Mean a channel, subtracted inside the exported graph.")
    std: tuple[float, ...] = setting((), "Standard deviation a channel, divided by inside the exported graph.")
    bounds: tuple[float, float] = setting((0.0, 1.0), "Smallest and largest pixel value.", flag="pixel-bounds")
    classes: tuple[str, ...] = setting((), "Class names, in the order of the logits.")
    fit: Literal["exact", "crop", "squash"] = setting(
        "exact", "How image files get the input shape: they have it, centre crop (after resize), or squash."
    )
    resize: int | None = setting(None, "Shorter side of an image file before the centre crop, in pixels.", gt=0)
    interpolation: Literal["bilinear", "bicubic"] = setting("bilinear", "How image files are resized.")
    output: str | None = setting(None, "Which output is the logits: a key, or a position from 0.")
    held: Place | None = setting(
        None, "An .npz with one sample of every other input, by argument name: held at that value in all files."
    )
    image_input: str | None = setting(None, "Which argument of the network takes the images (default: the first).")
    weights_entry: str | None = setting(None, "Entry of a checkpoint that holds the weights.")

    @model_validator(mode="after")
    def _consistent(self) -> ModelConfig:
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean has {len(self.mean)} values and std {len(self.std)}: give one a channel to each")
        if any(value <= 0 for value in self.std):
            raise ValueError("every std must be above 0")
        if self.bounds[0] >= self.bounds[1]:
            raise ValueError("bounds: the smallest pixel value must be below the largest")
        if self.input_shape and any(size <= 0 for size in self.input_shape):
            raise ValueError("input_shape must be three positive numbers: channels, height, width")
        return self


class DataConfig(Section):
    train: Place | None = setting(
        None, "Training data: importance, calibration, recovery. An .npz, a folder, a .csv, module:function."
    )
    test: Place | None = setting(None, "Test data: every number that is reported.")
    samples: int | None = setting(None, "Report on this many test images (stratified, by the seed).", gt=0)


class PruneConfig(Section):
    ratio: float | None = setting(
        None, "Goal: share of every group's channels (and of the blocks) to remove.", gt=0, lt=1
    )
    macs_ratio: float | None = setting(None, "Goal: share of the MACs to keep.", gt=0, lt=1)
    speedup: Times | None = setting(None, "Goal: measured speed-up on the first runtime.", gt=1)
    latency_ms: Milliseconds | None = setting(None, "Goal: measured p50 on the first runtime.")
    criterion: str = setting(
        "l2",
        "What makes a channel important: l1, l2, bn_scale, lamp, fpgm, random; with training data: taylor, adv-taylor "
        "(or adv-taylor:EPSILON), thin-taylor, obd, apoz.",
    )
    scope: Literal["channels", "blocks", "both"] = setting(
        "channels", "What is removed: channels, whole blocks (residual blocks, links of a chain), or both."
    )
    block_criterion: str | None = setting(
        None,
        "What makes a block important: magnitude, random; with training data: loss, taylor, cka (default: loss with "
        "training data, else magnitude).",
    )
    ignore: tuple[str, ...] = setting((), "Layers and blocks to leave alone (names or patterns such as layer3.*).")
    channel_multiple: int | None = setting(None, "Widths end on multiples of this (default: the target's).", gt=0)
    ranking: Literal["local", "global", "isomorphic"] | None = setting(
        None,
        "Which channels compete: those of a group, all, or those of groups of the same structure (default: local for a "
        "ratio, global for other goals).",
    )
    min_width: Width | None = setting(None, "Every layer keeps at least this many channels, or this share (25%).")
    max_width: Width | None = setting(None, "Every layer keeps at most this many channels, or this share (75%).")
    widths: dict[str, Widths] = setting(
        {}, 'Widths of single layers, by name or pattern: {"layer3.*": "16..48"}; also "16..", "..75%", "32".'
    )
    cost_model: Literal["measured", "macs"] = setting(
        "measured", "What widths are priced by for a goal in time: layers timed in the first runtime, or MACs."
    )
    in_place: int = setting(
        96,
        "Whole networks of microseconds that are timed for a goal in time, so that layers are priced in their place "
        "(0: alone).",
        ge=0,
        le=512,
    )
    trials: int = setting(
        6,
        "Plans of one predicted time that are trained for a moment to choose one, where a goal is in time, the network "
        "is small and recovery trains (1: the one that loses least importance).",
        ge=1,
        le=64,
    )
    iterations: int = setting(1, "Prune in this many steps, recovering in between.", gt=0)
    schedule: Literal["geometric", "linear"] = setting(
        "geometric", "How the goal is approached: each step keeps the same share, or removes the same amount."
    )

    @model_validator(mode="after")
    def _widths_leave_room(self) -> PruneConfig:
        limits = self.limits().everywhere
        least, most = limits.least, limits.most
        if least and most and least.share == most.share and least.value > most.value:
            raise ValueError(f"min_width {self.min_width} is above max_width {self.max_width}")
        return self

    @model_validator(mode="after")
    def _blocks_go_at_once(self) -> PruneConfig:
        if self.scope != "channels" and self.iterations > 1:
            raise ValueError(f"scope {self.scope} prunes in one step: leave out iterations")
        widths = [name for name in ("min_width", "max_width", "widths", "ranking") if getattr(self, name)]
        if self.scope == "blocks" and widths:
            raise ValueError(f"scope blocks prunes no channels: leave out {' and '.join(widths)}")
        return self

    @model_validator(mode="after")
    def _one_goal(self) -> PruneConfig:
        given = [kind for kind in ("ratio", "macs_ratio", "speedup", "latency_ms") if getattr(self, kind) is not None]
        if len(given) > 1:
            raise ValueError(f"one goal at a time, not {' and '.join(given)}")
        if self.iterations > 1 and self.scope != "channels":
            raise ValueError(f"several iterations prune channels alone: leave out scope {self.scope} or the iterations")
        return self

    def limits(self) -> WidthLimits:
        """The widths that are to be kept to."""
        least = amount(self.min_width) if self.min_width else None
        most = amount(self.max_width) if self.max_width else None
        return WidthLimits(WidthSpan(least, most), {name: span(text) for name, text in self.widths.items()})

    def goal(self) -> Goal:
        """The goal that was set; half the channels of every group when none was."""
        if self.macs_ratio is not None:
            return Goal("macs_ratio", self.macs_ratio)
        if self.speedup is not None:
            return Goal("speedup", self.speedup)
        if self.latency_ms is not None:
            return Goal("latency_ms", self.latency_ms)
        return Goal("ratio", 0.5 if self.ratio is None else self.ratio)


class AttackConfig(Section):
    attack: str = setting("pgd", "Which attack is run on the exported file.")
    norm: Literal["linf", "l2", "l1"] = setting("linf", "Norm of the perturbation.")
    eps: Epsilon = setting("8/255", "Largest perturbation, in pixel units.")
    steps: int = setting(40, "Gradient steps a restart.", flag="attack-steps", gt=0)
    restarts: int = setting(2, "Random starts.", flag="attack-restarts", gt=0)
    targets: int = setting(9, "Classes that a targeted attack tries, nearest first.", flag="attack-targets", gt=0)
    queries: int = setting(5000, "Questions a black-box attack asks about an image.", flag="attack-queries", gt=0)
    samples: int | None = setting(None, "Attack this many test images (default: all).", flag="attack-samples", gt=0)
    target: int | None = setting(
        None, "Push images into this class (its index), not just out of their own.", flag="attack-target", ge=0
    )
    minutes: Minutes | None = setting(
        None, "Stop an attack on one file after this time; what was not finished is said.", flag="attack-for"
    )
    sequential: int = setting(
        1, "Look at the drop's bound up to so many times, and stop once it has decided the budget.", ge=1, le=20
    )
    processes: int = setting(
        1, "Processes on this machine that share an attack's images.", flag="attack-processes", ge=1, le=256
    )
    engine: Literal["local", "ray"] = setting("local", "Where an attack's images are shared.", flag="attack-engine")
    address: str | None = setting(
        None, "Ray cluster of the attack: HOST:PORT, or auto (default: one here).", flag="attack-address"
    )
    divergence_steps: int = setting(
        40, "Gradient steps that look for images which only the dense file gets right (0: none).", ge=0
    )

    @property
    def epsilon(self) -> float:
        return float(Fraction(self.eps))

    @model_validator(mode="after")
    def _suites_are_fixed(self) -> AttackConfig:
        given = [name for name in ("steps", "restarts", "targets", "queries") if name in self.model_fields_set]
        if self.attack in ("quick", "standard", "wide", "black-box") and given:
            raise ValueError(f"{self.attack} has its own settings: leave out {' and '.join(given)}, or set an attack")
        return self


class RunConfig(Section):
    target: str = setting("cpu", "Hardware profile, by name or as a path to a TOML file.")
    out: Place | None = setting(None, "Output folder (default: runs/MODEL-TARGET).")
    seed: int = setting(0, "Seed of everything that is drawn at random.", ge=0)
    device: str = setting("cpu", "Torch device of training and of the attack's gradients.")
    torch_threads: int | None = setting(None, "Threads of torch itself (default: all cores).", gt=0)


GOALS = {"ratio", "macs_ratio", "speedup", "latency_ms"}
_PATHS = (
    *(("data", "train"), ("data", "test"), ("run", "out"), ("run", "target")),
    *(("model", "arch"), ("model", "trust"), ("model", "held"), ("remote", "identity")),
)
_LIMITS = {
    "greater_than": "must be above {gt}",
    "greater_than_equal": "must be at least {ge}",
    "less_than": "must be below {lt}",
    "less_than_equal": "must be at most {le}",
    "finite_number": "must be a finite number",
}
_TABLES = (dict[str, Limits], Alternatives)
Tables = Mapping[str, Mapping[str, object]]
"""Section -> {name: value}."""


class Config(Section):
    """All settings of a run."""

    model: ModelConfig = ModelConfig()
    data: DataConfig = DataConfig()
    prune: PruneConfig = PruneConfig()
    recover: RecoverConfig = RecoverConfig()
    latency: LatencyConfig = LatencyConfig()
    remote: RemoteConfig = RemoteConfig()
    attack: AttackConfig = AttackConfig()
    boundary: BoundaryConfig = BoundaryConfig()
    certify: CertifyConfig = CertifyConfig()
    budget: BudgetConfig = BudgetConfig(scopes={})
    sweep: SweepConfig = SweepConfig(prune={}, recover={})
    run: RunConfig = RunConfig()

    def recovery(self) -> RecoverConfig:
        """[recover], its adversary as far-reaching as the attack where nothing else was set."""
        if self.recover.robust and self.recover.eps is None:
            return self.recover.model_copy(update={"eps": self.attack.eps})
        return self.recover


def settings_of(section: str) -> dict[str, FieldInfo]:
    """The settings of a section, by name; tables inside a section have no flag and are not among them."""
    fields: dict[str, FieldInfo] = Config.model_fields[section].annotation.model_fields  # type: ignore[union-attr]
    return {name: field for name, field in fields.items() if field.annotation not in _TABLES}


def flag_of(section: str, name: str) -> str:
    """The command-line option (without dashes) that sets `section.name`."""
    extra = settings_of(section)[name].json_schema_extra
    return str(extra["flag"]) if isinstance(extra, dict) else name.replace("_", "-")


def load_config(path: Path | None, flags: Tables) -> Config:
    """Read `path` (default: ./edgeprune.toml if it is there) and lay the flags over it.

    `flags` maps section to {name: value}. Paths in the file are relative to the file. UsageError names the key,
    what is wrong with it and the nearest known key.
    """
    path, merged = merged_tables(path, flags)
    return validated(path, merged, flags)


def merged_tables(path: Path | None, flags: Tables) -> tuple[Path | None, dict[str, dict[str, Any]]]:
    """The file that was read, if any, and its tables with the flags laid over them, not validated yet."""
    if path is None and Path(FILE_NAME).is_file():
        path = Path(FILE_NAME)
    tables = _read(path) if path else {}
    merged: dict[str, dict[str, Any]] = {}
    for section in {*tables, *flags}:
        table, over = tables.get(section, {}), dict(flags.get(section, {}))
        if section == "prune" and GOALS & over.keys():  # a goal on the command line takes the place of the file's
            table = {key: value for key, value in table.items() if key not in GOALS}
        merged[section] = {**table, **over}
    return path, merged


def validated(path: Path | None, merged: Tables, flags: Tables) -> Config:
    """The settings of these tables; UsageError in the words of the place, the file or a flag, where one is wrong."""
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        raise _explain(error, path, merged, flags) from error


def _read(path: Path) -> dict[str, dict[str, Any]]:
    try:
        with path.open("rb") as file:
            tables = tomllib.load(file)
    except FileNotFoundError:
        raise UsageError(f"no such configuration file: {path}", hint="check --config") from None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror or error}", hint="check --config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} is not TOML: {error}", hint="text stands in quotes, lists in [brackets], settings in [sections]"
        ) from error
    for section, table in tables.items():
        if not isinstance(table, dict):
            raise _unknown(path, "", section)
        for name, value in table.items():
            known = Config.model_fields.get(section) and settings_of(section).get(name)
            if isinstance(value, bool) and not (known and known.annotation is bool):  # pydantic would take true for 1
                raise UsageError(f"{section}.{name} is not a switch: {str(value).lower()}", where=f"in {path}")
    _place(tables, path.parent)
    return tables


def _place(tables: dict[str, dict[str, Any]], folder: Path) -> None:
    """Make the paths in the file's tables relative to the file's folder. In place."""
    for section, name in _PATHS:
        value = tables.get(section, {}).get(name)
        if isinstance(value, str):
            tables[section][name] = _placed(section, name, value, folder)
        elif isinstance(value, list):
            tables[section][name] = [_placed(section, name, item, folder) for item in value]


def _placed(section: str, name: str, value: Any, folder: Path) -> Any:
    """The value under `folder` where it is a path, and not the name of a module, a profile or a data set."""
    if section == "data" and str(value).startswith("torchvision:") and str(value).count(":") == 2:
        kind, place = str(value).rsplit(":", 1)
        return f"{kind}:{folder / place}"
    is_file = str(value).partition(":")[0].endswith((".py", ".toml"))
    is_path = is_file or name in ("out", "held", "identity") or (section == "data" and ":" not in str(value))
    return str(folder / value) if isinstance(value, str) and value and is_path else value


def _explain(error: ValidationError, path: Path | None, merged: Tables, flags: Tables) -> UsageError:
    """The first thing that is wrong, in the words of the place where the user wrote it."""
    first = error.errors(include_url=False)[0]
    section, name = (*(str(part) for part in first["loc"]), "", "")[:2]
    if name == "scopes":
        return _explain_scope(first, path)
    if section == "sweep" and name and name not in settings_of(section) and first["type"] != "extra_forbidden":
        place = ".".join(str(part) for part in first["loc"][:3])
        return UsageError(f"{place}: {first['msg'].removeprefix('Value error, ')}", where=f"in {path}" if path else "")
    if first["type"] == "extra_forbidden":
        return _unknown(path, section if name else "", name or section)
    message = first["msg"].removeprefix("Value error, ")
    by_flag = name in flags.get(section, {}) if name else section in flags
    where = f"in {path}" if path and not by_flag else ""
    if not name:  # settings that do not go together
        return UsageError(f"[{section}] {message}", where=where)
    value, field = merged[section][name], settings_of(section)[name]
    place = f"{section}.{name} = {_toml(value)}"
    if by_flag:
        place = f"--{flag_of(section, name)} {','.join(map(str, value)) if isinstance(value, tuple) else value}"
    if first["type"] == "literal_error":
        known = get_args(field.annotation)
        return UsageError(f"{place}: must be one of {', '.join(known)}", where=where, hint=_nearest(str(value), known))
    if first["type"] != "value_error":
        message = _LIMITS.get(first["type"], f"must be {_expected(field.annotation)}").format(**first.get("ctx", {}))
    return UsageError(f"{place}: {message}", where=where)


def _explain_scope(first: ErrorDetails, path: Path | None) -> UsageError:
    """What is wrong in a table such as [budget.openvino]."""
    scope, *rest = (str(part) for part in first["loc"][2:])
    where, place = f"in {path}" if path else "", f"budget.{scope}" + "".join(f".{part}" for part in rest[:1])
    if first["type"] == "extra_forbidden":
        hint = "it belongs into [budget]" if rest[0] in settings_of("budget") else did_you_mean(rest[0], METRICS)
        return UsageError(f"unknown key {where}: {place}", hint=hint)
    message = _LIMITS.get(first["type"], first["msg"].removeprefix("Value error, ")).format(**first.get("ctx", {}))
    return UsageError(f"{place} = {_toml(first['input'])}: {message}", where=where)


def _nearest(word: str, known: tuple[str, ...]) -> str:
    hint = did_you_mean(word, known)
    return hint if hint.endswith("?") else ""


def _toml(value: object) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _unknown(path: Path | None, section: str, name: str) -> UsageError:
    """The error for a key that does not exist, with the section that has one of this name, or the nearest name."""
    elsewhere = [other for other in Config.model_fields if other != section and name in settings_of(other)]
    known = tuple(settings_of(section)) if section in Config.model_fields else tuple(Config.model_fields)
    hint = f"it belongs into [{'] or ['.join(elsewhere)}]" if elsewhere else did_you_mean(name, known)
    return UsageError(f"unknown key in {path}: {f'{section}.{name}' if section else name}", hint=hint)


def _expected(annotation: Any) -> str:
    """In words, what a setting of this type takes: "a whole number", "3 whole numbers"."""
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
    arguments = get_args(annotation)
    if annotation in kinds:
        return kinds[annotation]
    if get_origin(annotation) is tuple:
        kind = kinds[arguments[0]].removeprefix("a ").replace("number", "numbers")
        return f"a list of {kind}" if arguments[-1] is Ellipsis else f"{len(arguments)} {kind}"
    if get_origin(annotation) is dict:
        return "a table (JSON on the command line)"
    if isinstance(arguments[0], str):
        return "one of " + ", ".join(arguments)
    return _expected(arguments[0])  # an optional setting, or one with a unit
