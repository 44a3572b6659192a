"""The image as a quadratic model in everything at once: imaging parameters, positions, and whole-atom moves.

Each column acts in its own window, so the normal matrix is assembled from overlapping windows alone and is
sparse but for the imaging parameters. Images of one area add up: each has a lens of its own, columns and what
else belongs to the specimen are the same in all.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse

from qhrtem.model.microscope import INDEX, PARAMETERS, acting_on, parameter
from qhrtem.model.window import Move, Response, SiteChange, Tangent, WindowModel
from qhrtem.specimen.columns import ColumnModel
from qhrtem.stages.bordered import Bordered
from qhrtem.stages.normal_matrix import assemble
from qhrtem.stages.objective import Bench, Misfit, State

Floats = NDArray[np.float64]
# Ends of a column move by up to this many sites in one round.
REACH = 2
EVEN = INDEX["semi_convergence"]  # the image does not tell its sign


@dataclass(frozen=True)
class EndMove:
    """An end of a column, and perhaps the other with it, moved by some sites; positive = along the beam."""

    column: int
    end: int  # 0 = first, 1 = last
    sites: int  # change of the site number
    other: int = 0  # change of the site number at the other end

    @property
    def by(self) -> tuple[int, int]:
        """Sites that the first and the last end move by."""
        return (self.sites, self.other) if self.end == 0 else (self.other, self.sites)


@dataclass(frozen=True)
class Quadratic:
    """Normal equations of the weighted residual: cost change ≈ -2 gᵀz + zᵀNz.

    z holds the imaging parameters (in units of their steps), position shifts (Å), and moves (0 or 1).
    """

    imaging: list[int]  # (P,) numbers of imaging parameters (`microscope.numbered`)
    tangents: list[tuple[int, int, int]]  # (T,) column, group, axis
    moves: list[EndMove]  # (M,)
    matrix: Bordered  # (P+T+M, P+T+M), the imaging parameters in its corner
    gradient: Floats  # (P+T+M,)
    probe: Floats | None = None  # (P+T+M, D) the gradient were the residual one of D draws of white noise

    @property
    def continuous(self) -> int:
        """Number of continuous unknowns P + T."""
        return len(self.imaging) + len(self.tangents)

    def without_moves(self) -> Quadratic:
        """Return the model of the continuous unknowns alone."""
        k = self.continuous
        probe = None if self.probe is None else self.probe[:k]
        return replace(self, moves=[], matrix=self.matrix.leading(k), gradient=self.gradient[:k], probe=probe)


def end_move(columns: ColumnModel, move: EndMove) -> Move:
    """Return the atoms that an end move adds or removes."""
    up, down = move.by
    first, beyond = int(columns.first[move.column]), int(columns.last[move.column]) + 1
    ends = (
        SiteChange(_between(first, first + up), -1 if up > 0 else 1),
        SiteChange(_between(beyond, beyond + down), 1 if down > 0 else -1),
    )
    return Move(tuple(change for change in ends if change.sites))


def _between(a: int, b: int) -> tuple[int, ...]:
    """Return the sites that an end passes on its way from a to b."""
    return tuple(range(min(a, b), max(a, b)))


def possible_moves(columns: ColumnModel, c: int, far: bool = False) -> list[EndMove]:
    """Return the end moves of a column, and its slides, that leave at least one atom in it.

    far: by up to `REACH` sites at either end in every column, and slides by any of these.
    """
    number = int(columns.last[c] - columns.first[c] + 1)
    reach = REACH if far or len(columns.kind_of(c).sites) > 1 else 1
    single = [EndMove(c, end, n) for end in (0, 1) for n in range(-reach, reach + 1) if n]
    moves = [*single, *(EndMove(c, 0, *by) for by in slides(columns, c, far))]
    return [m for m in moves if number + m.by[1] - m.by[0] > 0]


def slides(columns: ColumnModel, c: int, far: bool = False) -> list[tuple[int, int]]:
    """Return by how many sites both ends of a column move the same way: one, or any where sites alternate.

    A column that slides gains at one end nearly what it loses at the other. The sum of two end moves leaves
    out what they do together and is off by a tenth (O) to a third (Ti), by far more where another element
    comes to an end, which decides many a column: slides are moves of their own. far: any where they are
    alike too. One atom more or less at another height may lie behind a barrier: the column that slides first
    loses, and the one that changes its count first loses as well.
    """
    kind = columns.kind_of(c)
    alike = len({site.group for site in kind.sites}) == 1
    lengths = [1] if alike and not far else range(1, REACH + 1)
    return [(sign * a, sign * b) for sign in (-1, 1) for a in lengths for b in lengths]


def linearise(
    bench: Bench,
    state: State,
    imaging: list[int],
    positions: list[int],
    moving: dict[int, list[EndMove]],
    tick: Callable[[float], None] = lambda fraction: None,
    probe: torch.Tensor | None = None,
) -> Quadratic:
    """Return the quadratic model around a state.

    imaging: numbers of imaging parameters (`microscope.numbered`); positions: columns whose element groups
    may shift; moving: the end moves to try, by column; tick: told the finished fraction; probe: (D, N,
    rows, cols) residuals of all images in units of their noise for which the gradient is wanted as well.
    """
    asked = _asked(state.columns, positions, moving)
    p, views = len(imaging), state.views()
    matrix: Bordered | None = None
    gradients = np.zeros((1 if probe is None else 1 + len(probe), p + len(asked.tangents) + len(asked.moves)))
    for n, (view, misfit) in enumerate(zip(views, bench.misfits, strict=True)):
        places = acting_on(imaging, n)
        own = [imaging[a] % len(PARAMETERS) for a in places]

        def finished(fraction: float, n: int = n) -> None:
            tick((n + fraction) / len(views))

        part, pulled = _of_image(
            bench, misfit, view, own, asked, finished, None if probe is None else probe[:, n]
        )
        part = part.among(places, p)
        matrix = part if matrix is None else matrix.plus(part)
        gradients[:, [*places, *range(p, gradients.shape[1])]] += pulled
    assert matrix is not None
    probed = None if probe is None else gradients[1:].T.copy()
    return Quadratic(list(imaging), asked.tangents, asked.moves, matrix, gradients[0], probed)


@dataclass(frozen=True)
class _Asked:
    """The unknowns of the columns: what is to be simulated of each, and which unknown it stands for."""

    tangents: list[tuple[int, int, int]]  # (T,) column, group, axis
    moves: list[EndMove]  # (M,)
    # column; (K,) its unknowns, tangents as themselves, moves as -1 - number; (K) its changes
    tasks: list[tuple[int, NDArray[np.int64], list[Move | Tangent]]]


def _asked(columns: ColumnModel, positions: list[int], moving: dict[int, list[EndMove]]) -> _Asked:
    tangents: list[tuple[int, int, int]] = []
    moves: list[EndMove] = []
    with_position = set(positions)
    tasks: list[tuple[int, NDArray[np.int64], list[Move | Tangent]]] = []
    for c in sorted(with_position | set(moving)):
        changes: list[Move | Tangent] = []
        code: list[int] = []
        if c in with_position and columns.last[c] >= columns.first[c]:
            for group in present_groups(columns, c):
                for axis in (0, 1):
                    changes.append(Tangent(group, axis))
                    code.append(len(tangents))
                    tangents.append((c, group, axis))
        for m in moving.get(c, ()):
            changes.append(end_move(columns, m))
            code.append(-1 - len(moves))
            moves.append(m)
        if changes:
            tasks.append((c, np.array(code, dtype=np.int64), changes))
    return _Asked(tangents, moves, tasks)


def _of_image(
    bench: Bench,
    misfit: Misfit,
    state: State,
    imaging: list[int],
    asked: _Asked,
    tick: Callable[[float], None],
    probe: torch.Tensor | None,
) -> tuple[Bordered, Floats]:
    """Return normal matrix and gradients (1 + D, unknowns) of one image; state: as it alone has it."""
    image = bench.image(state)
    window = WindowModel(bench.model.coarse, state.columns, state.microscope)
    weight = misfit.weight(image).numpy()
    residual = (misfit.measured - image).numpy() * weight
    noise = () if probe is None else probe.numpy() * np.sqrt(weight)
    pulls = np.stack([residual, *noise])
    blocks: list[tuple[NDArray[np.int64], Response]] = []
    # Columns are independent; threads overlap because the transforms release the interpreter lock.
    with torch.inference_mode(), ThreadPoolExecutor(bench.workers) as pool:
        for n, response in enumerate(pool.map(lambda t: bench.respond(window, t[0], t[2]), asked.tasks)):
            blocks.append((asked.tasks[n][1], response))
            tick((n + 1) / len(asked.tasks))
    jacobian = bench.global_jacobian(state, imaging)
    unknowns = len(asked.tangents), len(asked.moves)
    matrix, gradient = assemble(jacobian, blocks, weight, pulls, *unknowns, bench.workers)
    if EVEN in imaging:
        _curve(matrix.corner, gradient[0], imaging.index(EVEN), float(state.microscope.values[EVEN]))
    return matrix, gradient


def _curve(corner: Floats, gradient: Floats, a: int, value: float) -> None:
    """Add the curvature of the image to the normal matrix, for the unknown a that it is even in.

    I(α) ≈ I(0) + kα² has I″ = I′/α; squares of slopes leave it out, vanish towards α = 0, and a step then
    leads far beyond. Where it would lessen the curvature of the cost, it is left out.
    """
    p = PARAMETERS[EVEN]
    middle = max(value, p.low + p.step / 4)  # of the interval that the slope is taken over
    corner[a, a] += max(0.0, -gradient[a] * p.step / middle)


def present_groups(columns: ColumnModel, c: int) -> list[int]:
    """Return the element groups that have at least one atom in a column."""
    sites = columns.kind_of(c).sites
    n = len(sites)
    present = {sites[s % n].group for s in range(int(columns.first[c]), int(columns.last[c]) + 1)}
    return sorted(present)


def prior_normal(
    state: State, quadratic: Quadratic, ideal_sigma: float, group_sigma: float
) -> tuple[Bordered, Floats]:
    """Return the prior precision and its gradient for the continuous unknowns of a quadratic model.

    ideal_sigma: Å, how far columns may stand from the ideal lattice; group_sigma: Å, how far a lighter
    element of a column may shift against its heaviest, beyond the crystal's own offset.
    """
    p, t = len(quadratic.imaging), len(quadratic.tangents)
    (mean, sigma), values, shift = state.prior(), state.values(), state.columns.shift
    gradient = np.zeros(p + t)
    step = np.array([parameter(i).step for i in quadratic.imaging])
    width = step / sigma[quadratic.imaging] if p else np.zeros(0)
    gradient[:p] = width**2 * (mean - values)[quadratic.imaging] / step if p else 0.0
    place = {key: n for n, key in enumerate(quadratic.tangents)}
    entries: list[tuple[int, int, float]] = []
    for (c, group, axis), a in place.items():
        if group == 0 or (c, 0, axis) not in place:
            w = 1 / ideal_sigma**2
            entries.append((a, a, w))
            gradient[p + a] -= w * shift[c, group, axis]
        else:
            b = place[c, 0, axis]
            w = 1 / group_sigma**2
            difference = shift[c, group, axis] - shift[c, 0, axis]
            entries += [(a, a, w), (b, b, w), (a, b, -w), (b, a, -w)]
            gradient[p + a] -= w * difference
            gradient[p + b] += w * difference
    i, j, value = (np.array(part) for part in zip(*entries, strict=True)) if entries else (np.zeros(0),) * 3
    local = sparse.csc_array((value, (i.astype(np.int64), j.astype(np.int64))), shape=(t, t))
    return Bordered(np.diag(width**2), np.zeros((p, t)), local), gradient


def prior_cost(state: State, imaging: list[int], ideal_sigma: float, group_sigma: float) -> float:
    """Return minus twice the log prior of a state, the same terms as `prior_normal`."""
    (mean, sigma), values = state.prior(), state.values()
    i = np.array(imaging, dtype=int)
    cost = float((((values[i] - mean[i]) / sigma[i]) ** 2).sum()) if len(i) else 0.0
    shift = state.columns.shift
    atoms = state.columns.atoms()
    present = np.zeros(shift.shape[:2], dtype=bool)
    present[atoms.column, atoms.group] = True
    cost += float((shift[present[:, 0], 0] ** 2).sum()) / ideal_sigma**2
    for group in range(1, shift.shape[1]):
        beside = present[:, group] & present[:, 0]
        alone = present[:, group] & ~present[:, 0]
        cost += float(((shift[beside, group] - shift[beside, 0]) ** 2).sum()) / group_sigma**2
        cost += float((shift[alone, group] ** 2).sum()) / ideal_sigma**2
    return cost
