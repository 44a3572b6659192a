"""Published coefficients of electron form factors, by element and by ion."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

from qhrtem.errors import InputError

TABLES = ("lobato", "kirkland", "weickenmeier_kohl", "peng")  # of neutral atoms
IONS = "peng_ionic"
SYMBOL = re.compile(r"([A-Z][a-z]?)(?:(\d?)([+-])|([+-])(\d)|(\+{2,}|-{2,}))?")

Rows = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Ion:
    """A chemical element and its charge."""

    element: str
    charge: int  # elementary charges, 0 for a neutral atom

    @property
    def symbol(self) -> str:
        """The usual symbol, such as O2-, Na+ or Ti."""
        count = abs(self.charge)
        return (
            self.element + (str(count) if count > 1 else "") + ("+" if self.charge > 0 else "-" * (count > 0))
        )


def parse_ion(symbol: str) -> Ion:
    """Return the element and charge that a symbol names: Ti, O2-, Na+, Na1+, Ba+2 and Ba++ are understood.

    Raises `InputError` where the symbol is none of these.
    """
    found = SYMBOL.fullmatch(symbol.strip())
    if found is None:
        raise InputError(
            f"an element must be written like Ti, or an ion like O2- or Na+, got {symbol!r}; check the "
            "element symbols of the CIF"
        )
    element, before, sign, leading, after, repeated = found.groups()
    if repeated:
        return Ion(element, len(repeated) * (1 if repeated[0] == "+" else -1))
    count = int(before or after or 1) if sign or leading else 0
    return Ion(element, -count if "-" in (sign, leading) else count)


@lru_cache
def _load(name: str) -> dict[str, Rows]:
    text = files("qhrtem.physics").joinpath(f"tables/{name}.json").read_text("utf-8")
    return {symbol: tuple(tuple(row) for row in rows) for symbol, rows in json.loads(text).items()}


def tabulated_elements(table: str) -> tuple[str, ...]:
    """Return the symbols of all elements in a table; raises `InputError` for a table that is not there."""
    if table not in TABLES:
        raise InputError(f"form factor table must be one of {', '.join(TABLES)}, got {table!r}")
    return tuple(_load(table))


def neutral_coefficients(element: str, table: str) -> Rows:
    """Return the rows of coefficients of a neutral atom; README.md of the tables says what each row holds.

    Raises `InputError` for a table or an element that is not there.
    """
    symbols = tabulated_elements(table)
    if element not in symbols:
        raise InputError(
            f"no electron form factor for element {element!r} in table {table!r}, which holds {len(symbols)} "
            f"elements, {symbols[0]} to {symbols[-1]}; check the element symbols of the CIF"
        )
    return _load(table)[element]


def ionic_coefficients(ion: Ion) -> Rows:
    """Return the rows a_i (Å), b_i (Å²) of an ion, without its point charge.

    Raises `InputError` for an ion that is not tabulated, and names those of the same element.
    """
    known = _load(IONS)
    if ion.symbol not in known:
        same = [symbol for symbol in known if parse_ion(symbol).element == ion.element]
        remedy = f"tabulated are {', '.join(same)}" if same else f"no ion of {ion.element} is tabulated"
        raise InputError(
            f"no electron form factor for the ion {ion.symbol}: {remedy}; use one of these or the neutral "
            f"atom {ion.element}"
        )
    return known[ion.symbol]


def tabulated_ions() -> tuple[str, ...]:
    """Return the symbols of all ions that have coefficients."""
    return tuple(_load(IONS))
