"""Formats numbers for tables, figures and reports."""

from __future__ import annotations


def value(number: float) -> str:
    """Format the value of a measure."""
    return f"{number:.4f}"


def signed(number: float) -> str:
    """Format a difference between two values of a measure."""
    # Adding 0 turns -0.0 into 0.0.
    return f"{round(number, 4) + 0.0:+.4f}"


def p_value(number: float) -> str:
    """Format a p-value."""
    return "< 0.001" if number < 0.001 else f"{number:.3f}"


def milliseconds(number: float | None) -> str:
    """Format a time with three digits, without the unit; a dash if nothing was timed."""
    if number is None:
        return "-"
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def percent(share: float) -> str:
    """Format a share as a percentage."""
    return f"{100 * share:.4g} %"


def count(number: int, one: str, several: str | None = None) -> str:
    """Format a number with its noun."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"
