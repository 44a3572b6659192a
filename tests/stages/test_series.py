"""Series: frames that cannot be used, what is kept of each, what a resumed series takes back."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from evolving import evolution, known_of, lattice, plan
from qhrtem.errors import PlanError
from qhrtem.model.diffuse import Diffuse
from qhrtem.model.micrograph import RawImage
from qhrtem.simulate.evolution import together
from qhrtem.stages.checkpoint import Log, Parts, Snapshot
from qhrtem.stages.series import Exposure, Following, vacant
from qhrtem.stages.series_forms import FittedFrame, FrameForm
from serieses import make_frame
from twins import make_twin


class Shelf:
    """Remembers parts as a run does."""

    def __init__(self):
        self.parts = {}

    def recall(self, part):
        return self.parts.get(part)

    def keep(self, part, snapshot):
        self.parts[part] = snapshot


@pytest.fixture(scope="module")
def it():
    return evolution(together(), np.zeros((2, 2)))


def following(it, shelf):
    parts = Parts(shelf, Log(lambda step: None))
    asked = plan()
    return Following(asked, make_twin(2, 3), lattice(it), asked.image, 3456.0, known_of(it), parts)


def exposure(number, counts, fault=""):
    return Exposure(number, RawImage(counts, f"frame {number}", (0.12, 0.12)), f"digest {number}", fault)


BAD = [
    (exposure(1, np.zeros((1, 1)), "blank.tif: the image is constant"), "constant"),
    (exposure(1, np.random.default_rng(0).poisson(3000, (120, 130)).astype(float)), "150 × 150 pixels"),
    (exposure(1, np.random.default_rng(0).poisson(30, (150, 150)).astype(float)), "vacuum level"),
]


@pytest.mark.parametrize(("bad", "why"), BAD, ids=["blank", "other shape", "no beam"])
def test_a_frame_that_cannot_be_used_claims_nothing_and_changes_nothing(it, bad, why):
    series = following(it, Shelf())
    before = series.known
    frame, events = series.add(bad)
    assert why in frame.refused
    assert len(frame.site) == 0 and events == ()
    assert series.known.state is before.state
    assert series.known.waiting == 1
    assert not series.result(0.5).passed


def test_a_refused_frame_is_taken_back_without_work(it):
    shelf = Shelf()
    first, _ = following(it, shelf).add(BAD[0][0])
    again = following(it, shelf)
    frame, _ = again.add(replace(BAD[0][0], fault="must not be looked at"))
    assert frame.refused == first.refused
    assert again.known.waiting == 1


def test_what_is_known_comes_back_bit_by_bit(it):
    known = replace(known_of(it), drift_A=np.array([1.5, -2.5]), waiting=0)
    state = replace(known.state, diffuse=Diffuse(torch.full((4, 4), 0.25), b_scale=1.5))
    known = replace(known, state=state)
    view = Snapshot({"electrons": 3.0}, {"image": np.ones((2, 2), np.float32)})
    form = FrameForm(known_of(it), "digest")
    saved = form.save(FittedFrame(known, make_frame(3, [0, 2]), view))
    assert saved.facts["view"] == {"electrons": 3.0}  # where those who watch look for it
    assert (saved.arrays["image"] == 1).all()
    back = form.load(saved)
    assert (back.known.drift_A == known.drift_A).all()
    for name in ("anchor", "shift", "first", "last", "cell"):
        for a, b in (
            (back.known.state.columns, known.state.columns),
            (back.known.atlas.columns, known.atlas.columns),
        ):
            assert (getattr(a, name) == getattr(b, name)).all()
    assert (back.known.ends.probability == known.ends.probability).all()
    mine, theirs = back.known.state.diffuse, state.diffuse
    assert torch.equal(mine.image, theirs.image) and (mine.slope, mine.b_scale) == (0.0, 1.5)  # type: ignore[arg-type]
    assert (back.frame.position_px == make_frame(3, [0, 2]).position_px).all()
    assert np.isnan(back.frame.lens_sigma[1])


def test_another_image_under_the_same_number_is_refused(it):
    saved = FrameForm(known_of(it), "one").save(FittedFrame(known_of(it), make_frame(3, [0])))
    with pytest.raises(PlanError, match="put the old file back"):
        FrameForm(known_of(it), "another").load(saved)


def test_vacant_sites_lie_well_inside_and_hold_nothing(it):
    known = known_of(it)
    assert vacant(known) == set()
    columns = known.state.columns
    middle = it.field.to_field(np.array(it.field.image_shape) / 2)
    c = int(np.argmin(np.hypot(*(columns.anchor - middle).T)))
    last = columns.last.copy()
    last[c] = columns.first[c] - 1
    emptied = replace(known, state=replace(known.state, columns=columns.with_ends(columns.first, last)))
    assert vacant(emptied) == {(int(columns.kind[c]), *map(int, columns.cell[c]))}
