"""What an image tells of its camera where the plan is silent: the offset and the modulation transfer."""

from __future__ import annotations

import math

import numpy as np

from qhrtem.calibrate.noise import EDGES, FEWEST_PIXELS, NoiseSpectrum
from qhrtem.calibrate.vacuum import Transfer, Vacuum
from qhrtem.plan import ImagePlan, MtfFormula, MtfTable

SURE_OFFSET, PRECISE_OFFSET = 3.0, 0.02  # its own σ, and σ as a share of the level, for an offset to be used
GAIN_SIGMA = 0.01  # relative, of a gain that was given
UNKNOWN_OFFSET = 0.05  # share of the vacuum level, where nothing is known of an offset
SURELY, CALIBRATED = 5.0, 0.05  # standard deviations and share by which an MTF contradicts the noise


def seen_offset(
    plan: ImagePlan,
    vacuum: Vacuum | None,
    transfer: Transfer | None,
    spectrum: NoiseSpectrum | None,
    level: float,
) -> tuple[float, float, str]:
    """Return the offset that the noise suggests, its standard deviation in counts, and what was done.

    Shot noise of known gain, or its rise with intensity, tells the counts at which there would be none. Zero
    is kept where the noise does not contradict it, for most programs that export images take the offset off.
    """
    readout, found = plan.readout_counts or 0.0, []
    gain = plan.gain_counts_per_electron
    if gain is not None and vacuum is not None and spectrum is not None and spectrum.transfer is None:
        # A fall of the noise that does not show yet would take as much from the variance of a pixel.
        share = math.hypot(math.sqrt(2 / vacuum.pixels), spectrum.fall_sigma, GAIN_SIGMA)
        shot = (vacuum.variance - readout**2) / gain
        found.append((share * shot, vacuum.level - shot))
    if transfer is not None:
        value = transfer.offset(readout)
        # Slope and the variance at the centre are independent, so the slope alone carries the uncertainty.
        found.append(((transfer.centre - value) * transfer.slope_sigma / transfer.slope, value))
    wrong = "All contrast is wrong by the share of the offset in the vacuum level"
    if not found:
        unknown = f"The detector offset was not given; 0 counts were assumed. {wrong}."
        return 0.0, UNKNOWN_OFFSET * level, unknown
    sigma, value = min(found)
    seen = f"{value:.0f} ± {sigma:.0f} counts of {level:.0f}"
    if value > SURE_OFFSET * sigma and sigma < PRECISE_OFFSET * level:
        return (
            value,
            sigma,
            f"The detector offset was not given; the noise shows {seen}, which were taken off. All contrast "
            f"is uncertain by {100 * sigma / level:.1g} %.",
        )
    return (
        0.0,
        max(abs(value), sigma),
        f"The detector offset was not given; 0 counts were assumed. {wrong}; the noise suggests {seen}.",
    )


def stand_in(plan: ImagePlan, vacuum: Vacuum | None, spectrum: NoiseSpectrum | None) -> tuple[str, ...]:
    """Say what stands for an MTF that was not given, or where a given one contradicts the noise."""
    if plan.mtf is not None:
        return () if spectrum is None else _contradiction(plan.mtf, spectrum)
    assumed = (
        "no blur by the camera was assumed. The fit makes up for it by an isotropic vibration, from which it "
        "cannot be told in one image; give mtf in [image]."
    )
    if vacuum is None:
        return (f"No MTF was given, and without vacuum there is no noise to see it in: {assumed}",)
    if spectrum is None:
        return (
            f"No MTF was given, and the vacuum is too small to show one (squares of {EDGES[-1]} pixels must "
            f"cover {FEWEST_PIXELS} of its pixels): {assumed}",
        )
    if spectrum.transfer is None:
        return (f"No MTF was given. {spectrum.sentence()} So {assumed}",)
    return (
        f"No MTF was given. {spectrum.sentence()} It was taken for the MTF; what it blurs too little, the "
        "fit makes up for by an isotropic vibration. Drift and vibration leave the noise as it is, and a "
        "blur along one direction is told from the MTF.",
    )


def _contradiction(mtf: MtfFormula | MtfTable, spectrum: NoiseSpectrum) -> tuple[str, ...]:
    """Say where a given MTF transfers more than the noise shows, which no camera can."""
    if spectrum.transfer is None:
        return ()  # white noise may come after the camera's blur, as in many simulated images
    q = spectrum.q
    if isinstance(mtf, MtfFormula):
        given = (1 - mtf.a) / (1 + (q / mtf.b) ** 2) + mtf.a
    else:
        given = np.interp(q, mtf.q, mtf.value)
    shot = np.maximum(spectrum.power - spectrum.floor, 1e-9)
    seen = np.sqrt(shot / spectrum.level)
    sigma = 0.5 * seen * np.hypot(spectrum.sigma / shot, spectrum.level_sigma / spectrum.level)
    n = int(np.argmax((given - seen) / sigma))
    if given[n] - seen[n] < SURELY * sigma[n] + CALIBRATED * given[n]:
        return ()
    return (
        f"The given MTF is {given[n]:.2f} at {q[n]:.2f} cycles/pixel, where the noise of the vacuum shows a "
        f"transfer of {seen[n]:.2f} ± {sigma[n]:.1g}; the MTF must lie at or below it. Is it of another "
        "camera, high tension or binning?",
    )
