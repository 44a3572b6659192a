"""JointEstimate: numbers whose errors are known together, so that means of them have honest error bars."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, sparse, stats

from qhrtem.errors import InputError
from qhrtem.model.microscope import INDEX
from qhrtem.model.twin import PositionErrors, Twin

Floats = NDArray[np.float64]
TILTS = ("tilt_x_mrad", "tilt_y_mrad")
TILT_SIGMA_MRAD = 3.0  # where the result does not hold the prior


@dataclass(frozen=True)
class JointEstimate:
    """M numbers of one unit with the covariance local + common·commonᵀ.

    Means of many numbers shrink the local part as usual. The common part, made by errors of the lens, the
    mistilt and the priors, stays.
    """

    value: Floats  # (M,)
    local: Floats  # (M, M) covariance, unit²
    common: Floats  # (M, Q) shift by one standard deviation of each nuisance
    common_name: tuple[str, ...]  # (Q,)
    unit: str

    def __len__(self) -> int:
        return len(self.value)

    @property
    def covariance(self) -> Floats:
        """Covariance (M, M), unit²."""
        return self.local + self.common @ self.common.T

    @property
    def sigma(self) -> Floats:
        """One standard deviation (M,)."""
        return np.sqrt(np.maximum(np.diag(self.local) + (self.common**2).sum(1), 0.0))

    @property
    def common_sigma(self) -> Floats:
        """The part (M,) of the standard deviation that averaging does not reduce."""
        return np.sqrt((self.common**2).sum(1))

    def combined(self, weight: Floats, unit: str | None = None) -> JointEstimate:
        """Return weighted sums, weight (N, M)."""
        w = np.asarray(weight, dtype=float)
        return JointEstimate(
            w @ self.value, w @ self.local @ w.T, w @ self.common, self.common_name, unit or self.unit
        )

    def take(self, index: NDArray[np.int64] | NDArray[np.bool_]) -> JointEstimate:
        """Return some of the numbers."""
        return JointEstimate(
            self.value[index], self.local[index][:, index], self.common[index], self.common_name, self.unit
        )

    def mean(self) -> JointEstimate:
        """Return the mean, weighted by the local variances; nan without any number."""
        weight = 1 / np.maximum(np.diag(self.local), 1e-30)
        total = weight.sum()
        return self.combined((weight / total if total > 0 else weight)[None])

    def chi2(self, expected: Floats | float) -> float:
        """Return the generalised χ² of the numbers against expected ones; M degrees of freedom."""
        difference = self.value - expected
        covariance = self.covariance
        ridge = 1e-9 * np.diag(covariance).mean() if len(self) else 0.0
        factor = linalg.cho_factor(covariance + ridge * np.eye(len(self)), lower=True)
        return float(difference @ linalg.cho_solve(factor, difference))

    def flatness(self) -> tuple[float, float]:
        """Return χ² per degree of freedom of the best constant, and the probability of a larger one."""
        n = len(self)
        if n < 2:
            return float("nan"), float("nan")
        covariance = self.covariance + 1e-9 * np.diag(self.covariance).mean() * np.eye(n)
        precision = linalg.inv(covariance)
        level = float(precision.sum(0) @ self.value / precision.sum())
        chi2 = self.chi2(level)
        return chi2 / (n - 1), float(stats.chi2.sf(chi2, n - 1))


def errors_of(twin: Twin) -> PositionErrors:
    """Return the joint position errors of a twin, with the mistilt as uncertain as it is.

    A fit claims a mistilt given its counts, which lock it in: on images with known answers it was off by up
    to 4 mrad, six times what was claimed. Positions of light and heavy columns follow it differently, each
    by Cov(position, tilt)/Var(tilt) when everything else is fitted again. So what the covariance lacks of the
    prior's width (3 mrad unless the plan knows better), or of a larger claim, is added as a common error.

    Raises InputError where the result holds no joint errors.
    """
    if twin.position_errors is None:
        raise InputError(
            "this result holds no joint position errors (it was written by an older version), which every "
            "derived error bar needs; fit the image again"
        )
    errors, imaging = twin.position_errors, twin.imaging_errors
    if imaging is None or errors.common_A.shape[1] < len(imaging.name):
        return errors
    root = linalg.cholesky(imaging.covariance, lower=True)
    cross = errors.common_A[:, : len(imaging.name)].astype(float) @ root.T  # covariance with each parameter
    claimed = {e.name: e.sigma for e in twin.microscope if np.isfinite(e.sigma)}
    more, names = [], []
    for n, name in enumerate(imaging.name):
        if name in TILTS:
            variance = imaging.covariance[n, n]
            lacking = max(_prior_mrad(twin, name), claimed.get(name, 0.0)) ** 2 - variance
            if lacking > 0:
                more.append(cross[:, n] / variance * np.sqrt(lacking))
                names.append(f"{name} given the counts")
    if not more:
        return errors
    common = np.column_stack([errors.common_A, *more]).astype(np.float32)
    return replace(errors, common_A=common, common_name=(*errors.common_name, *names))


def _prior_mrad(twin: Twin, name: str) -> float:
    """Return the width of the mistilt's prior in mrad."""
    if twin.fitted is None:
        return TILT_SIGMA_MRAD
    return 1e3 * float(twin.fitted.microscope.sigma[INDEX[name.removesuffix("_mrad")]])


def linear(
    twin: Twin, weight: sparse.csr_array, value: Floats, unit: str, scale: float = 1.0
) -> JointEstimate:
    """Return numbers whose derivatives by the refined coordinates are weight·scale (M, K), unit/Å."""
    errors = errors_of(twin)
    local, common = errors.of(weight)
    return JointEstimate(
        np.asarray(value, dtype=float), local * scale**2, common * scale, errors.common_name, unit
    )


def positions_A(twin: Twin) -> Floats:
    """Return x, y in Å of each element of each column (C, E, 2); nan where the element is absent."""
    return np.asarray(twin.columns.element_position_px[..., ::-1] * twin.pixel_size_A)
