"""Numbers as a report writes them."""

from __future__ import annotations


def value(number: float) -> str:
    """Return the value of a measure."""
    return f"{number:.4f}"


def signed(number: float) -> str:
    """Return a difference between two values of a measure."""
    # Adding 0 takes the minus from what is nothing after rounding.
    return f"{round(number, 4) + 0.0:+.4f}"


def p_value(number: float) -> str:
    """Return a p; below 0.001 its digits say nothing."""
    return "< 0.001" if number < 0.001 else f"{number:.3f}"


def milliseconds(number: float | None) -> str:
    """Return a time to three digits, without its unit; a dash where nothing was timed."""
    if number is None:
        return "-"
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def percent(share: float) -> str:
    """Return a share in per cent."""
    return f"{100 * share:.4g} %"


def count(number: int, one: str, several: str | None = None) -> str:
    """Return a number with its noun."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"
