"""Numbers as people read them: a unit on each, three significant digits, a real minus sign.

Only text comes out of here; nothing is rounded on its way into a record or a decision.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from edgeprune.records import Interval

_UNIT_LETTERS = " %×BGMkmpst"
_DECIMAL = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


def significant(value: float, digits: int = 3) -> str:
    """`value` with `digits` significant digits, never in scientific notation: 0.0661, 1.23, 1234."""
    if not math.isfinite(value):
        return "not a number"
    if value == 0:
        return "0"
    decimals = max(digits - 1 - math.floor(math.log10(abs(value))), 0)
    rounded = round(value, decimals)
    if abs(rounded) >= 10 ** (math.floor(math.log10(abs(value))) + 1):  # 9.996 rounds up to 10.0, not 10.00
        decimals = max(decimals - 1, 0)
    return _minus(f"{value:,.{decimals}f}")


def milliseconds(value: float, digits: int = 3) -> str:
    """A time: "1.23 ms"."""
    return f"{significant(value, digits)} ms"


def times(value: float, digits: int = 3) -> str:
    """A ratio: "1.87×"."""
    return f"{significant(value, digits)}×"


def percent(fraction: float, _digits: int = 0) -> str:
    """A share: "91.3 %"."""
    return f"{_minus(f'{100 * fraction:.1f}')} %"


def points(fraction: float, _digits: int = 0) -> str:
    """A difference of two shares in percentage points: "2.0 pt"; two decimals where one would read zero."""
    value = 100 * fraction
    return f"{_minus(f'{value:.2f}' if abs(value) < 0.095 and value else f'{value:.1f}')} pt"


def signed(text: str) -> str:
    """The same text with a plus sign where it has no minus; zero stays bare."""
    return text if text.startswith("−") or not any(digit in text for digit in "123456789") else f"+{text}"


def size(count: float, digits: int = 3) -> str:
    """Bytes in decimal units: "512 B", "1.10 MB"."""
    return f"{_scaled(count, digits)}B"


def count(number: float) -> str:
    """Large counts: "9,876", "40.8 M"."""
    return f"{number:,.0f}" if abs(number) < 10_000 else _scaled(number).rstrip()


def change(before: float, after: float) -> str:
    """Relative change: "−62.1 %"; a dash where there was nothing before."""
    return signed(percent(after / before - 1)) if before else "–"


def span(interval: Interval, show: Callable[[float], str], *, unit: bool = True) -> str:
    """An interval, its unit once or not at all: "1.20–1.26 ms", "1.20–1.26"; negative ends are parted by "to"."""
    low, high = show(interval.low), show(interval.high)
    end = high[len(high.rstrip(_UNIT_LETTERS)) :]
    low, high = low.removesuffix(end), high if unit else high.removesuffix(end)
    return f"{low} to {high}" if "−" in low + high else f"{low}–{high}"


def quantity(value: float, unit: str, digits: int = 3) -> str:
    """A gate row's number in its unit."""
    return _UNITS[unit](value, digits)


def p_value(value: float) -> str:
    """A p-value: "p = 0.018", "p < 0.0001"."""
    return f"p = {value:.2g}" if value >= 1e-4 else "p < 0.0001"


def short(sha256: str) -> str:
    """The first twelve digits of a digest, which is what people compare."""
    return sha256[:12]


def _scaled(number: float, digits: int = 3) -> str:
    for factor, prefix in _DECIMAL:
        if abs(number) >= factor:
            return f"{significant(number / factor, digits)} {prefix}"
    return f"{number:,.0f} "


def _minus(text: str) -> str:
    bare = text.lstrip("-")
    return bare if not any(digit in bare for digit in "123456789") else text.replace("-", "−")


_UNITS: dict[str, Callable[[float, int], str]] = {
    "fraction": points,
    "share": percent,
    "ms": milliseconds,
    "x": times,
    "bytes": size,
}
