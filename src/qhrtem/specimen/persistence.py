"""Persistence: what an earlier image of the same specimen says of the column ends, as a soft rule.

A hidden Markov chain for each column: between two images it keeps its ends with probability 1 − rate and
takes any other with the rest. The posterior of the image before, after that step, is the prior of the next.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qhrtem.specimen.columns import ColumnModel

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
RATE = 0.01  # of columns that change between two images
OTHERS = 24.0  # ends that a column could take instead: up to two sites more or less at both


@dataclass(frozen=True)
class Persistence:
    """Probabilities of K column ends after the last image, all others having none.

    Soft rule: a column costs -2 ln of the prior probability of its ends, less that of the likeliest ones. A
    column of which nothing is known costs nothing.
    """

    column: Ints  # (K,) rising
    first: Ints  # (K,) first site
    last: Ints  # (K,) last site
    probability: Floats  # (K,)
    rate: float = RATE
    name: str = "persistence"

    def prior(self, column: int, first: Ints, last: Ints) -> Floats | None:
        """Return the prior probability (S,) of ends of a column, None where nothing is known of it.

        What the known ends leave of the probability, others share evenly.
        """
        begin, end = np.searchsorted(self.column, [column, column + 1])
        if begin == end:
            return None
        mine = slice(begin, end)
        rows = (np.asarray(first)[:, None], np.asarray(last)[:, None])
        same = (self.first[mine] == rows[0]) & (self.last[mine] == rows[1])
        rest = max(1 - float(self.probability[mine].sum()), 0.0) / OTHERS
        held = np.where(same.any(1), (same * self.probability[mine]).sum(1), rest)
        return np.asarray((1 - self.rate) * held + self.rate / OTHERS)

    def cost_of(self, column: int, first: Ints, last: Ints) -> Floats:
        """Return the cost (S,) in χ² units of ends of a column."""
        prior = self.prior(column, first, last)
        if prior is None:
            return np.zeros(len(first))
        begin, end = np.searchsorted(self.column, [column, column + 1])
        best = (1 - self.rate) * self.probability[begin:end].max() + self.rate / OTHERS
        return np.asarray(-2 * np.log(prior / best))

    def cost(self, columns: ColumnModel) -> float:
        """Return the cost of all occupied columns; whether a column is there at all is not judged here."""
        known = [int(c) for c in np.unique(self.column) if columns.occupied[c]]
        return float(
            sum(self.cost_of(c, columns.first[c : c + 1], columns.last[c : c + 1])[0] for c in known)
        )

    def renumbered(self, number: Ints) -> Persistence:
        """Return the same for columns that have other numbers now; number: (C,), -1 for one that is gone."""
        column = number[self.column]
        keep = np.flatnonzero(column >= 0)
        order = keep[np.argsort(column[keep], kind="stable")]
        return Persistence(
            column[order], self.first[order], self.last[order], self.probability[order], self.rate, self.name
        )


def certain(columns: ColumnModel, which: Ints, probability: Floats) -> Persistence:
    """Return what is known where a column's ends (C,) are right with some probability and nothing else is."""
    return Persistence(
        np.sort(which),
        columns.first[np.sort(which)],
        columns.last[np.sort(which)],
        np.clip(probability[np.argsort(which)], 0.0, 1.0),
    )
