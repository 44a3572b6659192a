"""The phantoms of the benchmark: crystals, zones, doses, tilts and wrong calibrations."""

from __future__ import annotations

from unseen.phantoms import Cell, Spec

PBTIO3 = Cell(
    "PbTiO3",
    "P 4 m m",
    (3.904, 3.904, 4.152, 90, 90, 90),
    (("Pb", 0, 0, 0), ("Ti", 0.5, 0.5, 0.538), ("O", 0.5, 0.5, 0.112), ("O", 0.5, 0.0, 0.612)),
    {"Pb": 0.8, "Ti": 0.5, "O": 0.75},
)
BATIO3 = Cell(
    "BaTiO3",
    "P 4 m m",
    (3.9945, 3.9945, 4.0335, 90, 90, 90),
    (("Ba", 0, 0, 0), ("Ti", 0.5, 0.5, 0.5215), ("O", 0.5, 0.5, -0.0233), ("O", 0.5, 0.0, 0.4892)),
    {"Ba": 0.45, "Ti": 0.5, "O": 0.75},
)
SRTIO3 = Cell(
    "SrTiO3",
    "P m -3 m",
    (3.905, 3.905, 3.905, 90, 90, 90),
    (("Sr", 0, 0, 0), ("Ti", 0.5, 0.5, 0.5), ("O", 0.5, 0.5, 0.0)),
    {"Sr": 0.6, "Ti": 0.5, "O": 0.75},
)
LAALO3 = Cell(
    "LaAlO3",
    "P m -3 m",
    (3.79, 3.79, 3.79, 90, 90, 90),
    (("La", 0, 0, 0), ("Al", 0.5, 0.5, 0.5), ("O", 0.5, 0.5, 0.0)),
    {"La": 0.45, "Al": 0.4, "O": 0.7},
)
MGO = Cell(
    "MgO",
    "F m -3 m",
    (4.212, 4.212, 4.212, 90, 90, 90),
    (("Mg", 0, 0, 0), ("O", 0.5, 0.5, 0.5)),
    {"Mg": 0.35, "O": 0.4},
)
CEO2 = Cell(
    "CeO2",
    "F m -3 m",
    (5.411, 5.411, 5.411, 90, 90, 90),
    (("Ce", 0, 0, 0), ("O", 0.25, 0.25, 0.25)),
    {"Ce": 0.35, "O": 0.6},
)
GOLD = Cell("Au", "F m -3 m", (4.078, 4.078, 4.078, 90, 90, 90), (("Au", 0, 0, 0),), {"Au": 0.6})
SILICON = Cell(
    "Si", "F d -3 m", (5.431, 5.431, 5.431, 90, 90, 90), (("Si", 0, 0, 0),), {"Si": 0.46}, origin=":1"
)

SUITE = (
    Spec("pto_110", PBTIO3, (1, 1, 0), 101, mistilt=(3.0, -2.0), stated_pixel=1.02, off_centre={"Ti": -0.08}),
    Spec("mgo_110", MGO, (1, 1, 0), 102, mistilt=(-2.0, 3.0), rotation_deg=-17.0, thickness_A=28.0, c1=48.0),
    Spec("ceo2_110", CEO2, (1, 1, 0), 103, rotation_deg=31.0, stated_pixel=0.97, c1=62.0, b2=(-150.0, 60.0)),
    Spec("sto_001", SRTIO3, (0, 0, 1), 104, rotation_deg=12.0, mistilt=(0.5, 2.0), pixel_A=0.12),
    Spec("lao_110", LAALO3, (1, 1, 0), 105, rotation_deg=-8.0, dose=1e4, thickness_A=45.0, a1=(-9.0, 12.0)),
    Spec("bto_110_lowdose", BATIO3, (1, 1, 0), 106, dose=3e3, mistilt=(-4.0, 3.0), off_centre={"Ti": 0.06}),
    # Through finer waves and more foci: rigid heavy atoms scatter beyond what 0.07 Å and 7 foci hold.
    Spec(
        "au_110_fine",
        GOLD,
        (1, 1, 0),
        107,
        rotation_deg=3.0,
        thickness_A=24.0,
        wedge_A=14.0,
        c1=70.0,
        sampling_A=0.04,
        foci=21,
    ),
    Spec("bto_100_shear", BATIO3, (1, 0, 0), 108, rotation_deg=95.0, shear=0.006, mistilt=(2.0, 1.0)),
    Spec(
        "si_110",
        SILICON,
        (1, 1, 0),
        109,
        rotation_deg=-40.0,
        thickness_A=40.0,
        dose=4e4,
        c1=50.0,
        pixel_A=0.1,
    ),
)
