"""Numbers as people write them: "2 pt", "1.5x", "3.5 ms", "500 kB", "8/255", "16..48".

Promise: a bare number is in the base unit (a fraction, a ratio, milliseconds, minutes, bytes), a unit is never guessed,
and a fraction stays exact. What cannot be read is a ValueError that shows how to write it.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from edgeprune.pruning.limits import amount, span

_UNITS = {
    "pt": Decimal("0.01"),
    "%": Decimal("0.01"),
    "x": Decimal(1),
    "ms": Decimal(1),
    "s": Decimal(1000),
    "m": Decimal(1),
    "min": Decimal(1),
    "h": Decimal(60),
    "B": Decimal(1),
    "us": Decimal("0.001"),
    "kB": Decimal(1000),
    "KB": Decimal(1000),
    "MB": Decimal(10**6),
    "GB": Decimal(10**9),
    "KiB": Decimal(1024),
    "MiB": Decimal(1024**2),
    "GiB": Decimal(1024**3),
}
_LARGEST_EPSILON = 10**6


def _quantity(example: str, *units: str) -> BeforeValidator:
    """Reads text with one of the units, or without, as a number in the base unit; other values pass through."""

    def read(value: object) -> object:
        if not isinstance(value, str):
            return value
        text, factor = value.strip(), Decimal(1)
        for unit in sorted(units, key=len, reverse=True):
            if text.endswith(unit):
                text, factor = text[: -len(unit)].strip(), _UNITS[unit]
                break
        try:
            return float(Decimal(text) * factor)
        except InvalidOperation:
            raise ValueError(f'must be a number such as "{example}" (units: {", ".join(units)})') from None

    return BeforeValidator(read, json_schema_input_type=float | str)


def _a_share(value: float) -> float:
    if not 0 < value <= 1:
        raise ValueError('must be above 0 and at most 100 % (ninety percent are "90 %" or 0.9)')
    return value


def _a_drop(value: float) -> float:
    if not 0 <= value < 1:
        raise ValueError('must be from 0 to below 100 points (two points are "2 pt" or 0.02)')
    return value


def _exact(value: object) -> object:
    """A fraction as it was written, a number as a fraction: 8/255 is no decimal, and 3/255 says more than 1/85."""
    if not isinstance(value, str | int | float):
        return value
    text = str(value).replace(" ", "")
    try:
        epsilon = Fraction(text)
    except (ValueError, ZeroDivisionError):
        raise ValueError('must be a fraction or a number, such as "8/255" or 0.03') from None
    if not 0 < epsilon <= _LARGEST_EPSILON:
        raise ValueError('must be above 0, in pixel units, such as "8/255" for pixels in [0, 1]')
    return text if "/" in text else str(epsilon)


def _readable(read: Callable[[object], object]) -> AfterValidator:
    """Keeps text that `read` can read, as it was written."""

    def check(text: str) -> str:
        read(text)
        return text

    return AfterValidator(check)


def _as_text(value: object) -> object:
    return str(value) if isinstance(value, int | float) else value


Drop = Annotated[float, _quantity("2 pt", "pt", "%"), AfterValidator(_a_drop)]
Share = Annotated[float, _quantity("90 %", "%"), AfterValidator(_a_share)]
Bytes = Annotated[float, _quantity("500 kB", "B", "kB", "KB", "MB", "GB", "KiB", "MiB", "GiB"), Field(gt=0)]
Milliseconds = Annotated[float, _quantity("3.5 ms", "us", "ms", "s"), Field(gt=0)]
Minutes = Annotated[float, _quantity("10m", "m", "min", "h"), Field(gt=0)]
Times = Annotated[float, _quantity("1.5x", "x", "%"), Field(gt=0)]
Epsilon = Annotated[str, BeforeValidator(_exact, json_schema_input_type=float | str)]
Width = Annotated[str, BeforeValidator(_as_text), _readable(amount)]
Widths = Annotated[str, BeforeValidator(_as_text), _readable(span)]
