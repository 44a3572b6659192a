"""Symbols of elements and ions, and what the tables of form factors hold."""

from __future__ import annotations

import pytest

from qhrtem.errors import InputError
from qhrtem.physics.form_factor_tables import (
    TABLES,
    Ion,
    ionic_coefficients,
    neutral_coefficients,
    parse_ion,
    tabulated_ions,
)


@pytest.mark.parametrize(
    ("symbol", "element", "charge"),
    [
        ("Ti", "Ti", 0),
        ("O2-", "O", -2),
        ("O-2", "O", -2),
        ("O--", "O", -2),
        ("Na+", "Na", 1),
        ("Na1+", "Na", 1),
        ("Ba+2", "Ba", 2),
        (" Ti++++ ", "Ti", 4),
        ("Cl-", "Cl", -1),
        ("F1-", "F", -1),
    ],
)
def test_symbols_in_common_use_are_understood(symbol: str, element: str, charge: int) -> None:
    assert parse_ion(symbol) == Ion(element, charge)


@pytest.mark.parametrize("symbol", ["", "2+", "ti", "TI4+", "Ti4", "O2-+", "Ti+-"])
def test_other_symbols_are_refused(symbol: str) -> None:
    with pytest.raises(InputError, match="O2- or Na"):
        parse_ion(symbol)


def test_symbols_of_tabulated_ions_read_back() -> None:
    ions = tabulated_ions()
    assert len(set(ions)) == len(ions) > 100
    for symbol in ions:
        ion = parse_ion(symbol)
        assert ion.charge != 0 and ion.symbol == symbol
        amplitudes, widths = ionic_coefficients(ion)
        assert len(amplitudes) == len(widths) == 5 and min(widths) > 0
        for table in TABLES:
            neutral_coefficients(ion.element, table)


def test_tables_cover_the_published_elements() -> None:
    for table, last in (("lobato", "Lr"), ("kirkland", "Lr"), ("weickenmeier_kohl", "Cf"), ("peng", "Cf")):
        neutral_coefficients("H", table)
        neutral_coefficients(last, table)
    with pytest.raises(InputError, match=r"'Es' in table 'peng', which holds 98 elements, H to Cf"):
        neutral_coefficients("Es", "peng")


def test_unknown_names_are_refused_with_what_there_is() -> None:
    with pytest.raises(InputError, match="lobato, kirkland, weickenmeier_kohl, peng, got 'doyle'"):
        neutral_coefficients("O", "doyle")
    with pytest.raises(InputError, match=r"ion Ti5\+: tabulated are Ti2\+, Ti3\+, Ti4\+; .* atom Ti$"):
        ionic_coefficients(Ion("Ti", 5))
    with pytest.raises(InputError, match=r"ion He\+: no ion of He is tabulated"):
        ionic_coefficients(Ion("He", 1))
