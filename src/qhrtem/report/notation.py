"""How numbers and foreign strings are written in figures and on the page."""

from __future__ import annotations

import math

from qhrtem.model.twin import Estimate

MINUS = "\u2212"


def plain(text: str, longest: int = 60) -> str:
    """Return the text on one line without control characters or rare glyphs, cut to `longest` characters."""
    kept = "".join(c if c.isprintable() and ord(c) < 0x2300 else "?" for c in text)
    return kept if len(kept) <= longest else kept[: longest - 1] + "…"


def number(value: float, digits: int = 4) -> str:
    """Return a number with `digits` significant digits and a true minus sign; "not known" for nan."""
    if not math.isfinite(value):
        return "not known"
    return f"{value:.{digits}g}".replace("-", MINUS)


def value_and_sigma(value: float, sigma: float) -> str:
    """Return "value ± sigma", sigma with two significant digits and the value with as many decimals.

    Where sigma is unknown or not positive only the value is written.
    """
    if not math.isfinite(value):
        return "not known"
    if not (math.isfinite(sigma) and sigma > 0.0):
        return number(value)
    decimals = 1 - math.floor(math.log10(sigma))
    if not -4 <= decimals <= 9:
        return f"{number(value, 6)} ± {number(sigma, 2)}"
    if decimals < 0:
        value, sigma, decimals = round(value, decimals), round(sigma, decimals), 0
    return f"{value:.{decimals}f} ± {sigma:.{decimals}f}".replace("-", MINUS)


def chi2_text(value: float) -> str:
    """Return a reduced χ² with three decimals, or four digits from 10 on; "not known" for nan."""
    return f"{value:.3f}" if abs(value) < 10.0 else number(value)


def standing(estimate: Estimate) -> str:
    """Return whether a parameter was refined, "refined" or "held fixed"."""
    return "refined" if estimate.refined else "held fixed"


def percent(fraction: float) -> str:
    """Return a fraction as a whole percentage, with one decimal where it is close to 0 or 100 %."""
    if not math.isfinite(fraction):
        return "not known"
    value = 100.0 * fraction
    return f"{value:.1f} %" if abs(value - 50.0) > 45.0 and 0.0 <= value <= 100.0 else f"{value:.0f} %"


def power_of_ten(value: float) -> str:
    """Return an exact power of ten as "10ⁿ" with a raised exponent; "" for other values."""
    exponent = math.log10(value) if value > 0.0 else 0.5
    if abs(exponent - round(exponent)) > 1e-6:
        return ""
    return "10" + str(round(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
