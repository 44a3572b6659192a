"""Events: columns that appear, leave, gain or lose atoms, or move, from one frame of a series to the next.

Counts: the probability is that of the counts being others than before, by the posterior of the column's ends,
in which the frames before have their say (`specimen.persistence`). Positions: a column either stays where its
frames since the last event put it, or has jumped by some `JUMP_A`; the Bayes factor of the two, and the rate
at which columns change, give the probability.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from qhrtem.model.series import Event, Frame
from qhrtem.specimen.persistence import RATE

Floats = NDArray[np.float64]
Site = tuple[int, int, int]
JUMP_A = 0.12  # one standard deviation of a jump along each axis: ferroelectric shifts, surface relaxation
LIKELY = 0.5  # probability from which an event is listed
COMMON_A = 0.01  # of a position, beyond its error bar: what is common to all columns differs between frames


@dataclass
class _Place:
    """Where a column stands since its last event, relative to the lattice."""

    mean: Floats  # (2,) x, y, Å
    weight: Floats  # (2,) 1/Å²


@dataclass
class Watch:
    """Compares each frame with what was known before it; frames come in order."""

    counts: dict[Site, tuple[int, ...]] = field(default_factory=dict)
    places: dict[Site, _Place] = field(default_factory=dict)
    open: list[Event] = field(default_factory=list)  # that no later frame has judged yet
    closed: list[Event] = field(default_factory=list)

    @property
    def events(self) -> tuple[Event, ...]:
        """All events so far, in the order of frames."""
        return tuple(sorted([*self.closed, *self.open], key=lambda e: (e.frame, e.site)))

    def see(self, frame: Frame, vacant: set[Site], pixel: float) -> tuple[Event, ...]:
        """Return the events of a frame.

        vacant: sites well inside the image that hold no atoms; pixel: Å.
        """
        if frame.refused:
            return ()
        new: list[Event] = []
        shown: dict[Site, int] = {
            (int(k), int(i), int(j)): n for n, (k, i, j) in enumerate(frame.site) if frame.inside[n]
        }
        for site, n in shown.items():
            now = tuple(int(v) for v in frame.counts[n])
            before = self.counts.get(site)
            if before is not None and before != now:
                kind = "appears" if not any(before) else _change(before, now)
                new.append(Event(frame.number, kind, site, float(frame.p_changed[n]), before, now))
                self.places.pop(site, None)
            self.counts[site] = now
            moved = self._moved(site, frame.displacement_A[n], frame.sigma_px[n][::-1] * pixel)
            if moved is not None:
                probability, by = moved
                new.append(Event(frame.number, "moves", site, probability, now, now, by))
        for site in vacant:
            before = self.counts.get(site)
            if before is not None and any(before):
                none = (0,) * len(before)
                new.append(Event(frame.number, "leaves", site, 1 - RATE, before, none))
                self.counts[site] = none
                self.places.pop(site, None)
            elif before is None and frame.counts.shape[1]:
                self.counts[site] = (0,) * frame.counts.shape[1]
        new = [e for e in new if e.probability >= LIKELY]
        self._judge({s: tuple(frame.counts[n].tolist()) for s, n in shown.items()}, vacant, new)
        self.open += new
        return tuple(new)

    def _moved(self, site: Site, place: Floats, sigma: Floats) -> tuple[float, tuple[float, float]] | None:
        """Return probability and size (x, y, Å) of a jump, None where none is likely; learn the place."""
        if not np.isfinite(sigma).all() or not np.isfinite(place).all():
            return None
        variance = sigma**2 + COMMON_A**2
        known = self.places.get(site)
        if known is not None:
            step, wide = place - known.mean, variance + 1 / known.weight
            odds = RATE / (1 - RATE) * math.exp(min(float(_log_ratio(step, wide)), 500.0))
            if odds / (1 + odds) >= LIKELY:
                self.places[site] = _Place(place.copy(), 1 / variance)
                return odds / (1 + odds), (float(step[0]), float(step[1]))
            weight = known.weight + 1 / variance
            self.places[site] = _Place((known.mean * known.weight + place / variance) / weight, weight)
        else:
            self.places[site] = _Place(place.copy(), 1 / variance)
        return None

    def _judge(self, now: dict[Site, tuple[int, ...]], vacant: set[Site], new: list[Event]) -> None:
        """Close events whose columns this frame shows; they lasted where nothing came after them."""
        jumped = {e.site for e in new if e.kind == "moves"}
        still: list[Event] = []
        for event in self.open:
            if event.kind == "moves" and event.site in now:
                lasted = event.site not in jumped
            elif event.site in now:
                lasted = now[event.site] == event.after
            elif event.site in vacant:
                lasted = not any(event.after)
            else:
                still.append(event)
                continue
            self.closed.append(replace(event, lasted=lasted))
        self.open = still


def _change(before: tuple[int, ...], now: tuple[int, ...]) -> str:
    return "gains atoms" if sum(now) > sum(before) else "loses atoms"


def _log_ratio(step: Floats, variance: Floats) -> float:
    """Return the log of the Bayes factor of a jump against none; step, variance: along two axes, Å, Å²."""
    wide = variance + JUMP_A**2
    return float(0.5 * (step**2 / variance - step**2 / wide + np.log(variance / wide)).sum())
