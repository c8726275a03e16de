"""Checks of single options."""

from __future__ import annotations

import math
import operator


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, choices))}, got {value!r}")


def check_integer(name: str, value: object, low: int, high: int | None = None) -> None:
    """Raise ValueError unless `value` is an integer in [low, high]."""
    wanted = f"an integer >= {low}" if high is None else f"an integer in [{low}, {high}]"
    high = 2**63 - 1 if high is None else high  # what the compiled part can hold
    if is_bool(value):
        raise ValueError(f"{name}: expected {wanted}, got {value!r}")
    try:
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(f"{name}: expected {wanted}, got {value!r}") from None
    if not low <= number <= high:
        raise ValueError(f"{name}: expected {wanted}, got {value!r}")


def check_real(name: str, value: object, low: float, high: float = math.inf, ends: str = "[)") -> None:
    """Raise ValueError unless `value` is a finite number in the interval, `ends` saying which ends belong."""
    wanted = f"a number in {ends[0]}{low:g}, {high:g}{ends[1]}"
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"{name}: expected {wanted}, got {value!r}") from None
    above = number >= low if ends[0] == "[" else number > low
    below = number <= high if ends[1] == "]" else number < high
    if is_bool(value) or isinstance(value, (str, bytes)) or not (math.isfinite(number) and above and below):
        raise ValueError(f"{name}: expected {wanted}, got {value!r}")


def check_bool(name: str, value: object) -> None:
    """Raise ValueError unless `value` is True or False."""
    if not is_bool(value):
        raise ValueError(f"{name}: expected True or False, got {value!r}")


def is_bool(value: object) -> bool:
    """Whether `value` is True or False."""
    return type(value).__name__ in ("bool", "bool_")  # NumPy's too, without importing it
