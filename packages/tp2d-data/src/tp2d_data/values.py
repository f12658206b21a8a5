"""Checks of single values, which every part of the package uses."""

import operator


def require_integer(name: str, value: int) -> int:
    """`value` as an int; ValueError where it is not a whole number type."""
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, not {value!r}") from None


def require_at_least(name: str, value: int, least: int) -> None:
    """ValueError where `value` is below `least`."""
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value}")
