#!/usr/bin/env python3
# Copied unchanged, below this note, from the data set of phantoms that the truth in examples/truth belongs to, so
# that the demo and the tests need nothing outside this repository.
"""Score a run against a phantom's ground truth.

    python score.py RUN/columns.csv TRUTH.npz [--pixel-size 0.112] [--image-shape 268 268] [--json]

columns.csv: one row per atomic column, with at least
    row, col          position of the column's heaviest element in image pixels (pixel centres at integers)
    n_<El>            atoms of each element in the column (integers)
and, for calibration of the claimed uncertainties,
    sigma_row, sigma_col   one standard deviation, pixels
    p_exact                claimed probability that all n_<El> of the row are exact

TRUTH.npz holds kind, row, col, elements, counts[column, element], positions[column, element, (row, col)].
Positions are scored after removing one rigid shift (reported as position_bias_pm).
Only truth columns at least MARGIN A inside the image are scored. A row matches the nearest truth column
within MATCH A (one to one). Needs numpy and scipy alone.
"""

import argparse, csv, json, sys
import numpy as np
from scipy.optimize import linear_sum_assignment

MARGIN, MATCH = 6.0, 0.7
Z = {
    "H": 1,
    "C": 6,
    "N": 7,
    "O": 8,
    "Mg": 12,
    "Al": 13,
    "Si": 14,
    "Ca": 20,
    "Ti": 22,
    "Sr": 38,
    "Zr": 40,
    "La": 57,
    "Ba": 56,
    "Ce": 58,
    "Pb": 82,
    "Au": 79,
    "Pt": 78,
}


def heaviest_positions(truth):
    elements, counts, positions = list(truth["elements"]), truth["counts"], truth["positions"]
    order = sorted(range(len(elements)), key=lambda k: -Z[str(elements[k])])
    out = np.full((len(counts), 2), np.nan)
    for i in range(len(counts)):
        for k in order:
            if counts[i, k] > 0:
                out[i] = positions[i, k]
                break
    return out


def score(rows, truth, pixel, shape):
    pos = heaviest_positions(truth)
    m = MARGIN / pixel
    inner = (
        (pos[:, 0] > m) & (pos[:, 0] < shape[0] - 1 - m) & (pos[:, 1] > m) & (pos[:, 1] < shape[1] - 1 - m)
    )
    elements = [str(e) for e in truth["elements"]]
    got = np.array([[float(r["row"]), float(r["col"])] for r in rows]).reshape(-1, 2)
    if not len(got):
        return {"columns_true": int(inner.sum()), "found": 0.0}
    cost = np.hypot(*(pos[:, None] - got[None]).transpose(2, 0, 1)) * pixel
    ti, gi = linear_sum_assignment(np.minimum(cost, 2 * MATCH))
    ok = cost[ti, gi] < MATCH
    pair = {int(t): int(g) for t, g in zip(ti[ok], gi[ok])}
    matched_rows = set(pair.values())
    t = [i for i in np.flatnonzero(inner) if i in pair]
    g = [pair[i] for i in t]
    gm = (got[:, 0] > m) & (got[:, 0] < shape[0] - 1 - m) & (got[:, 1] > m) & (got[:, 1] < shape[1] - 1 - m)
    invented = sum(1 for j in np.flatnonzero(gm) if j not in matched_rows)
    n = np.array([[int(round(float(rows[j].get(f"n_{e}") or 0))) for e in elements] for j in g]).reshape(
        -1, len(elements)
    )
    d = n - truth["counts"][t]
    exact, within1 = (d == 0).all(1), (np.abs(d) <= 1).all(1)
    err = (got[g] - pos[t]) * pixel * 100  # pm
    bias = np.median(
        err, axis=0
    )  # a rigid shift is a matter of convention (mistilt, coma): reported, not scored
    err = err - bias
    out = {
        "columns_true": int(inner.sum()),
        "found": round(len(t) / max(inner.sum(), 1), 4),
        "invented": invented,
        "exact_counts": round(float(exact.sum() / max(inner.sum(), 1)), 4),
        "within_one": round(float(within1.sum() / max(inner.sum(), 1)), 4),
        "count_error_total": int(d.sum()),
        "position_rms_pm": round(float(np.sqrt((err**2).mean())), 3),
        "position_median_pm": round(float(np.median(np.hypot(*err.T))), 3),
        "position_bias_pm": [round(float(x), 3) for x in bias],
    }
    kinds = truth["kind"][t]
    out["by_element"] = {
        e: round(float((d[:, k] == 0)[truth["counts"][t][:, k] > 0].mean()), 3)
        for k, e in enumerate(elements)
        if (truth["counts"][t][:, k] > 0).any()
    }
    out["by_kind"] = {
        str(k): {
            "n": int((kinds == k).sum()),
            "exact": round(float(exact[kinds == k].mean()), 3),
            "rms_pm": round(float(np.sqrt((err[kinds == k] ** 2).mean())), 3),
        }
        for k in sorted(set(kinds))
    }
    if rows and rows[0].get("sigma_row") not in (None, ""):
        s = np.array([[float(rows[j]["sigma_row"]), float(rows[j]["sigma_col"])] for j in g]) * pixel * 100
        z = np.abs(err / s)
        out["coverage_68"], out["coverage_95"] = (
            round(float((z < 1).mean()), 3),
            round(float((z < 1.96).mean()), 3),
        )
        out["sigma_median_pm"] = round(float(np.median(s)), 3)
    if rows and rows[0].get("p_exact") not in (None, ""):
        p = np.array([float(rows[j]["p_exact"]) for j in g])
        out["p_exact_mean"] = round(float(p.mean()), 4)
        out["brier"] = round(float(((p - exact) ** 2).mean()), 4)
        bins = np.clip((p * 5).astype(int), 0, 4)
        out["calibration_error"] = round(
            float(
                sum(
                    abs(p[bins == b].mean() - exact[bins == b].mean()) * (bins == b).mean() for b in set(bins)
                )
            ),
            4,
        )
    return out


def main():
    a = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    a.add_argument("columns")
    a.add_argument("truth")
    a.add_argument(
        "--pixel-size", type=float, default=None, help="A; default from the truth's json beside it"
    )
    a.add_argument("--image-shape", type=int, nargs=2, default=None)
    a.add_argument("--json", action="store_true")
    o = a.parse_args()
    truth = np.load(o.truth)
    spec = None
    if o.pixel_size is None:
        spec = json.load(open(o.truth.replace(".npz", ".json")))["spec"]
    pixel = o.pixel_size or spec["pixel_A"]
    shape = o.image_shape or truth["clean"].shape
    rows = list(csv.DictReader(open(o.columns, newline="")))
    r = score(rows, truth, pixel, shape)
    print(json.dumps(r) if o.json else "\n".join(f"{k}: {v}" for k, v in r.items()))


if __name__ == "__main__":
    sys.exit(main())
