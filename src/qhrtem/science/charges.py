"""Born effective charges of perovskites, in units of the elementary charge, from published calculations.

Charges are those of the cubic phase. Z*(O∥) is for motion along the B–O bond, Z*(O⊥) across it. They differ
by some per cent between functionals and between the cubic and the distorted phase, which no error bar of a
fit includes; residual violations of the acoustic sum rule are spread evenly.
"""

from __future__ import annotations

from dataclasses import dataclass

from qhrtem.errors import PlanError


@dataclass(frozen=True)
class BornCharges:
    """Charges of an ABO3 perovskite; multiples of the elementary charge."""

    a: str  # element of the A site
    b: str  # element of the B site
    anion: str
    z_a: float
    z_b: float
    z_parallel: float  # anion, along the B–O bond
    z_perpendicular: float  # anion, across it
    source: str

    def neutral(self) -> BornCharges:
        """Return the charges with the acoustic sum rule restored, the excess shared by the five atoms."""
        excess = (self.z_a + self.z_b + self.z_parallel + 2 * self.z_perpendicular) / 5
        return BornCharges(
            self.a, self.b, self.anion, self.z_a - excess, self.z_b - excess,
            self.z_parallel - excess, self.z_perpendicular - excess, self.source,
        )  # fmt: skip


ZHONG = "Zhong, King-Smith, Vanderbilt, Phys. Rev. Lett. 72, 3618 (1994)"
GHOSEZ = "Ghosez, Michenaud, Gonze, Phys. Rev. B 58, 6224 (1998)"
TABLE: tuple[BornCharges, ...] = (
    BornCharges("Ba", "Ti", "O", 2.77, 7.25, -5.71, -2.15, GHOSEZ),
    BornCharges("Sr", "Ti", "O", 2.54, 7.12, -5.66, -2.00, ZHONG),
    BornCharges("Pb", "Ti", "O", 3.90, 7.06, -5.83, -2.56, ZHONG),
    BornCharges("Ca", "Ti", "O", 2.58, 7.08, -5.65, -2.00, ZHONG),
    BornCharges("Ba", "Zr", "O", 2.73, 6.03, -4.74, -2.01, ZHONG),
    BornCharges("Pb", "Zr", "O", 3.92, 5.85, -4.81, -2.48, ZHONG),
    BornCharges("K", "Nb", "O", 1.14, 9.23, -7.01, -1.68, ZHONG),
    BornCharges("Na", "Nb", "O", 1.13, 9.11, -7.01, -1.61, ZHONG),
)


def charges_of(elements: tuple[str, ...]) -> BornCharges | None:
    """Return the tabulated charges of the perovskite made of these elements, None where there is no entry."""
    for entry in TABLE:
        if set(elements) == {entry.a, entry.b, entry.anion}:
            return entry
    return None


def own_charges(
    a: str, b: str, z_a: float, z_b: float, z_parallel: float, z_perpendicular: float, anion: str = "O"
) -> BornCharges:
    """Return charges given by the user; raises PlanError where they are far from neutral."""
    entry = BornCharges(a, b, anion, z_a, z_b, z_parallel, z_perpendicular, "given by the user")
    total = z_a + z_b + z_parallel + 2 * z_perpendicular
    if abs(total) > 0.5:
        raise PlanError(
            f"Born charges of {a}{b}{anion}3 must sum to 0 within 0.5 e, got {total:+.2f} e; Z*(A) + Z*(B) + "
            "Z*(anion, along) + 2 Z*(anion, across)"
        )
    return entry
