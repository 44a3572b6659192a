"""The verdict of a report in words: what was found, how sure it is, what to distrust."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from qhrtem.errors import InputError
from qhrtem.model.twin import ColumnTable, Twin
from qhrtem.report.notation import chi2_text, number, percent, value_and_sigma
from qhrtem.science.polarisation import off_centring

NOTABLE = 1.05  # ratio of crystal to vacuum χ² from which the model's own error deserves a word
CLEAR = 3.0  # standard deviations
CLEAR_CHI2 = 11.83  # of two components, exceeded by chance as rarely as three standard deviations
DOUBT = 0.9  # a kind whose mean probability of exact counts is below this is named
REMEDY = (
    "Usual causes: another structure or zone axis than stated, a pixel size or high tension that is off, "
    "a wrong vacuum level, gain or MTF. The command qhrtem inspect IMAGE shows what was found in the image."
)


@dataclass(frozen=True)
class KeyNumber:
    """One figure of merit with its meaning."""

    value: str
    meaning: str


@dataclass(frozen=True)
class Verdict:
    """What the page says first."""

    passed: bool
    headline: str
    found: tuple[str, ...]  # sentences; empty when a gate failed
    distrust: tuple[str, ...]  # sentences


def verdict(twin: Twin) -> Verdict:
    """Return the verdict of a twin; one that failed a gate makes no statement about the specimen."""
    if not twin.passed:
        failed = [g for g in twin.gates if not g.passed]
        reasons = tuple(
            f"{g.name}: {number(g.value)} against a limit of {number(g.limit)}. {g.meaning}" for g in failed
        )
        headline = "REFUSED: the model does not describe this image, so no counts or positions are claimed."
        return Verdict(False, headline, (), (*reasons, *_misfit(twin), REMEDY))
    return Verdict(
        True,
        "The simulation matches the measured image; every quality gate holds.",
        _found(twin),
        _doubts(twin),
    )


def key_numbers(twin: Twin) -> tuple[KeyNumber, ...]:
    """Return the numbers shown in large type; those about the specimen only if every gate holds."""
    misfit = (
        KeyNumber(chi2_text(twin.chi2_crystal), "reduced χ² over the crystal (1 is noise alone)"),
        KeyNumber(chi2_text(twin.chi2_vacuum), "reduced χ² over the vacuum"),
    )
    if not twin.passed:
        return misfit
    table, inner = twin.columns, twin.columns.inside
    numbers = [KeyNumber(str(int(inner.sum())), "columns in the fitted region")]
    if inner.any():
        sure = float(np.mean(table.p_exact[inner]))
        sigma = 100.0 * twin.pixel_size_A * _median(table.sigma_px[inner])
        depth = _median((table.bottom_A - table.top_A)[inner]) / 10.0
        numbers += [
            KeyNumber(percent(sure), "of columns expected to have every count exact"),
            KeyNumber(f"{number(sigma, 2)} pm", "median standard deviation of a position, per axis"),
            KeyNumber(f"{number(depth, 3)} nm", "median distance from first to last atom"),
        ]
    return (*numbers, *misfit)


def _found(twin: Twin) -> tuple[str, ...]:
    table, inner = twin.columns, twin.columns.inside
    if not inner.any():
        return ("No column lies in the fitted region.",)
    kinds = [f"{int((_kind(table)[inner] == k).sum())} {k}" for k in dict.fromkeys(table.kind)]
    total = table.counts[inner].sum(axis=0)
    atoms = [f"{int(n)} {e}" for e, n in zip(table.elements, total, strict=True)]
    sentences = [
        f"{int(inner.sum())} columns in the fitted region ({', '.join(kinds)}) hold {', '.join(atoms)} atoms."
    ]
    thickness = (table.bottom_A - table.top_A)[table.inside]
    if np.isfinite(thickness).any():
        low, high = np.nanmin(thickness), np.nanmax(thickness)
        sentences.append(
            f"First and last atom of a column lie {number(low, 3)} to {number(high, 3)} Å apart in depth."
        )
    return (*sentences, *_polar(twin))


def _polar(twin: Twin) -> tuple[str, ...]:
    """Say whether the cation stands off the centre of its cage, if the twin can tell."""
    try:
        found = off_centring(twin)
    except InputError:
        return ()
    mean = found.mean_vector()
    value = 100.0 * float(np.linalg.norm(mean.value))
    sigma = 100.0 * float(mean.sigma.max())
    name = found.name.removeprefix("off-centring of ")
    if mean.chi2(0.0) > CLEAR_CHI2:
        text = f"{name} stands {value_and_sigma(value, sigma)} pm off the centre of its anion cage on average"
    else:
        text = (
            f"{name} stands in the centre of its anion cage within {number(CLEAR * sigma, 2)} pm on average"
        )
    return (f"{text} ({len(found.column)} cells).",)


def _doubts(twin: Twin) -> tuple[str, ...]:
    table, sentences = twin.columns, list(_misfit(twin))
    for kind in dict.fromkeys(table.kind):
        mean = _mean(table.p_exact[(_kind(table) == kind) & table.inside])
        if mean < DOUBT:
            sentences.append(
                f"{kind} columns: only {percent(mean)} are expected to have every count exact; "
                "use p_exact of each column."
            )
    outside = int((~table.inside).sum())
    if outside:
        sentences.append(
            f"{outside} columns lie at the border of the image, which shows them only in part; "
            "do not rely on their numbers."
        )
    fixed = [e.label for e in twin.microscope if not e.refined]
    if fixed:
        sentences.append(f"Held fixed at assumed values: {', '.join(fixed)}.")
    return tuple(sentences)


def _misfit(twin: Twin) -> tuple[str, ...]:
    crystal, vacuum = twin.chi2_crystal, twin.chi2_vacuum
    if not math.isfinite(vacuum):
        return ("No vacuum in the image: the noise model could not be tested on its own.",)
    if crystal > NOTABLE * vacuum:
        excess = percent(math.sqrt(max(crystal - vacuum, 0.0)))
        return (
            f"The crystal fits worse than the vacuum (χ² {chi2_text(crystal)} against {chi2_text(vacuum)}): "
            f"the model itself is wrong by about {excess} of the noise in each pixel.",
        )
    return ()


def _kind(table: ColumnTable) -> np.ndarray:
    return np.array(table.kind, dtype=object)


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else math.inf


def _median(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if len(known) else math.nan
