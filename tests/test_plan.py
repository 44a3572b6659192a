"""PLAN.toml: what is accepted, how it is explained, and that a dumped plan is the same plan."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qhrtem.errors import PlanError
from qhrtem.plan import MtfFormula, MtfTable, dump_plan, load_plan, plan_from_tables

BUNDLED = Path(__file__).parents[1] / "src" / "qhrtem" / "data" / "bto_edge_small.toml"


def tables(**changes):
    """The least a plan needs, with changes written as table__key=value."""
    out = {
        "image": {"path": "image.tif"},
        "microscope": {"high_tension_kV": 300.0},
        "structure": {"path": "crystal.cif", "zone_axis": [1, 1, 0]},
    }
    for name, value in changes.items():
        table, key = name.split("__")
        out.setdefault(table, {})[key] = value
    return out


def refusal(**changes):
    with pytest.raises(PlanError) as caught:
        plan_from_tables(tables(**changes), "my.toml")
    message = str(caught.value)
    assert message.startswith("my.toml: ")
    assert "\n" not in message
    return message


def test_bundled_plan_holds_what_its_author_wrote():
    plan = load_plan(BUNDLED)
    assert plan.image.path == BUNDLED.parent / "bto_edge_small.tif"
    assert plan.image.path.is_file()
    assert plan.structure.path.is_file()
    assert (plan.image.pixel_size_A, plan.image.vacuum_counts, plan.image.readout_counts) == (
        0.112,
        3110.56,
        None,
    )
    assert plan.image.mtf == MtfFormula(a=0.35, b=0.28)
    assert (plan.microscope.c3_um, plan.microscope.c1_nm) == (-15.0, None)
    assert plan.structure.zone_axis == (1, 1, 0)
    assert (plan.run.seed, plan.run.device) == (0, "auto")


def test_the_least_plan_and_its_defaults():
    plan = plan_from_tables(tables())
    assert plan.image.offset_counts is None
    assert plan.image.pixel_size_A is None
    assert plan.run.seed == 0


def test_plan_is_frozen():
    plan = plan_from_tables(tables())
    with pytest.raises(ValueError, match="frozen"):
        plan.run.seed = 3


def test_paths_follow_the_plan_and_overrides_the_working_folder(tmp_path, monkeypatch):
    (tmp_path / "plans").mkdir()
    file = tmp_path / "plans" / "a.toml"
    file.write_text(dump_plan(load_plan(BUNDLED)).replace(str(BUNDLED.parent) + "/", ""))
    monkeypatch.chdir(tmp_path)
    assert load_plan(file).image.path == tmp_path / "plans" / "bto_edge_small.tif"
    plan = load_plan(file, {"image": {"path": "b.tif"}, "run": {"seed": 7}})
    assert plan.image.path == tmp_path / "b.tif"
    assert plan.structure.path == tmp_path / "plans" / "BaTiO3.cif"
    assert plan.image.pixel_size_A == 0.112
    assert plan.run.seed == 7


@given(
    path=st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=30),
    pixel=st.none() | st.floats(0.02, 1.0),
    c1=st.none() | st.floats(-1000, 1000),
    a1=st.none() | st.tuples(st.floats(-5000, 5000), st.floats(-5000, 5000)),
    zone=st.tuples(*[st.integers(-9, 9)] * 3).filter(any),
    seed=st.integers(0, 2**63 - 1),
)
def test_dump_and_load_give_the_same_plan(tmp_path_factory, path, pixel, c1, a1, zone, seed):
    changes = {"image__path": f"x{path}", "structure__zone_axis": list(zone), "run__seed": seed}
    optional = {"image__pixel_size_A": pixel, "microscope__c1_nm": c1, "microscope__a1_nm": a1}
    plan = plan_from_tables(tables(**changes, **{k: v for k, v in optional.items() if v is not None}))
    file = tmp_path_factory.mktemp("plan") / "plan.toml"
    file.write_text(dump_plan(plan), encoding="utf-8")
    assert load_plan(file) == plan


def test_mtf_may_be_a_file_of_values(tmp_path):
    file = tmp_path / "camera.mtf"
    file.write_text("# q, MTF\n0, 1\n0.25 0.6\n0.5, 0.3  # Nyquist\n")
    plan = plan_from_tables(tables(image__mtf=str(file)))
    assert plan.image.mtf == MtfTable(path=file, q=(0.0, 0.25, 0.5), value=(1.0, 0.6, 0.3))
    assert f'mtf = "{file}"' in dump_plan(plan)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("0 1\n0.5\n", "two columns"),
        ("q mtf\n0 1\n", "two columns"),
        ("", "two columns"),
        ("0 1\n0.25 0.5\n", "0.5 cycles/pixel"),
        ("0 1\n0.5 0.2\n0.3 0.4\n", "must rise"),
        ("0 0.5\n0.5 0.2\n", "must be 1 at q = 0"),
        ("0 100\n0.5 20\n", "must be 1 at q = 0"),
    ],
)
def test_unusable_mtf_file_is_explained(tmp_path, content, words):
    file = tmp_path / "camera.mtf"
    file.write_text(content)
    with pytest.raises(PlanError, match="camera.mtf.*" + words):
        plan_from_tables(tables(image__mtf=str(file)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"microscope__c3": -15.0}, ["'c3'", "[microscope]", "did you mean 'c3_um'"]),
        ({"microscope__C3_um": -15.0}, ["did you mean 'c3_um'"]),
        ({"microscope__focal_spread": 3.0}, ["did you mean 'focal_spread_nm'"]),
        ({"image__pixelsize": 0.1}, ["did you mean 'pixel_size_A'"]),
        ({"microscope__pixel_size_A": 0.1}, ["it belongs under [image]"]),
        ({"image__zzz": 0.1}, ["'zzz'", "known here: path"]),
        ({"image__mtf": {"a": 0.3, "c": 0.2}}, ["'mtf.c'", "a and b"]),
        ({"imag__path": "a"}, ["'imag'", "did you mean 'image'"]),
    ],
)
def test_unknown_key_names_the_nearest_known_one(changes, words):
    message = refusal(**changes)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"microscope__semi_convergence_mrad": 0.0003}, "mrad, got 0.0003; was it given in rad?"),
        ({"microscope__high_tension_kV": 300000}, "kV, got 300000; was it given in V?"),
        ({"microscope__c3_um": -150000.0}, "µm, got -150000; was it given in nm or Å?"),
        ({"microscope__focal_spread_nm": 30.0}, "nm, got 30; was it given in Å?"),
        ({"image__pixel_size_A": 0.0112}, "Å, got 0.0112; was it given in nm?"),
        ({"image__pixel_size_A": 11.2}, "Å, got 11.2; was it given in pm?"),
        ({"microscope__a1_nm": [1.0, 1e6]}, "nm, got 1e+06"),
        ({"image__gain_counts_per_electron": 0.0}, "counts per electron, got 0"),
        ({"image__mtf": {"a": 1.5, "b": 0.2}}, "mtf.a must be 0 to 1"),
    ],
)
def test_value_out_of_physical_range_is_explained_with_unit_and_guess(changes, words):
    assert words in refusal(**changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"microscope__high_tension_kV": "300"}, "high_tension_kV"),
        ({"microscope__high_tension_kV": True}, "high_tension_kV"),
        ({"microscope__c3_um": float("nan")}, "finite"),
        ({"microscope__a1_nm": [1.0]}, "a1_nm must be a pair [x, y], got [1.0]"),
        ({"image__frame": -1}, "frame"),
        ({"image__mtf": 0.5}, "mtf must be a table"),
        (
            {"image__offset_counts": 200.0, "image__vacuum_counts": 150.0},
            "vacuum_counts must exceed offset_counts",
        ),
        ({"structure__zone_axis": [0, 0, 0]}, "zone_axis must be a direction"),
        ({"structure__zone_axis": [1, 1]}, "three integers"),
        ({"structure__zone_axis": [1.0, 1, 0]}, "three integers"),
        ({"structure__zone_axis": "110"}, "three integers"),
        ({"run__device": "gpu"}, "auto, cpu, cuda or cuda:N"),
        ({"run__seed": 1.5}, "seed"),
    ],
)
def test_wrong_kind_of_value_is_refused(changes, words):
    assert words in refusal(**changes)


@pytest.mark.parametrize(
    ("table", "key"), [("image", "path"), ("microscope", "high_tension_kV"), ("structure", "zone_axis")]
)
def test_required_keys_are_named(table, key):
    given_tables = tables()
    del given_tables[table][key]
    with pytest.raises(PlanError, match=rf"\[{table}\] {key} is required"):
        plan_from_tables(given_tables)
    del given_tables[table]
    with pytest.raises(PlanError, match=rf"\[{table}\] is required"):
        plan_from_tables(given_tables)


def test_a_misspelt_required_key_is_told_as_such():
    given_tables = tables(microscope__high_tension=300.0)
    del given_tables["microscope"]["high_tension_kV"]
    with pytest.raises(PlanError, match="did you mean 'high_tension_kV'"):
        plan_from_tables(given_tables)


def test_zone_axis_is_reduced_to_the_primitive_direction():
    assert plan_from_tables(tables(structure__zone_axis=[2, -2, 0])).structure.zone_axis == (1, -1, 0)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[image\n", "not valid TOML"),
        (b"\xff\xfe\x00binary", "not valid TOML"),
        (b"image = 3\n", r"\[image\] must be a table"),
        (None, "cannot be read"),
    ],
)
def test_unreadable_plan_file_is_explained(tmp_path, content, words):
    file = tmp_path / "broken.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(PlanError, match="broken.toml: .*" + words):
        load_plan(file)


def test_simulate_has_defaults_and_survives_a_dump(tmp_path):
    file = tmp_path / "plan.toml"
    given = {
        "shape": "wedge",
        "wedge_mrad": 300,
        "field_nm": [5, 4.5],
        "thickness_slices": 12,
        "c1_nm": 6.0,
        "a1_nm": [1.0, -2.0],
        "phonon_configurations": 8,
        "mode": "full",
    }
    plan = plan_from_tables({**tables(), "simulate": given})
    assert plan.simulate.field_nm == (5.0, 4.5)
    assert plan.simulate.dose_e_per_A2 == 1e4
    assert (plan.simulate.engine, plan.simulate.seed) == ("qhrtem", None)
    file.write_text(dump_plan(plan), encoding="utf-8")
    assert load_plan(file) == plan
    assert plan_from_tables(tables()).simulate is None
    assert "[simulate]" not in dump_plan(plan_from_tables(tables()))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"shape": "cube"}, "[simulate] shape must be 'slab', 'edge' or 'wedge', got 'cube'"),
        ({"shape": "wedge"}, "wedge_mrad is required for the shape wedge"),
        ({"wedge_mrad": 300.0}, 'wedge_mrad needs shape = "wedge"'),
        ({"thickness_nm": 3.0, "thickness_slices": 8}, "thickness_nm or thickness_slices, got both"),
        ({"thickness_nm": 400.0}, "thickness_nm must be 0.2 to 100 nm, got 400; was it given in Å?"),
        ({"shape": "slab", "vacuum_nm": 1.0}, "vacuum_nm needs shape"),
        ({"vacuum_nm": 3.9}, "must leave 0.5 nm of the field"),
        ({"field_nm": [40.0]}, "field_nm must be a pair [x, y]"),
        ({"thickness_slices": 0}, "thickness_slices must be greater than or equal to 1, got 0"),
        ({"dose_e_per_A2": -1.0}, "dose_e_per_A2 must be 0 to 1e+08 electrons/Å²"),
        ({"defocus_nm": 3.0}, "unknown key 'defocus_nm' in [simulate]"),
        ({"engine": "jems"}, "engine must be 'qhrtem', 'abtem' or 'drprobe'"),
        ({"c1_nm": "6"}, "c1_nm must be a valid number"),
    ],
)
def test_simulate_refuses_what_it_cannot_mean(given, words):
    with pytest.raises(PlanError) as caught:
        plan_from_tables({**tables(), "simulate": given}, "my.toml")
    message = str(caught.value)
    assert message.startswith("my.toml: [simulate]") or message.startswith("my.toml: unknown key")
    assert words in message
    assert "\n" not in message


def test_the_example_of_a_phantom_is_a_valid_plan():
    plan = load_plan(Path(__file__).parents[1] / "examples" / "phantom.toml")
    assert plan.structure.path.is_file()
    assert plan.simulate.shape == "wedge"


def test_further_images_are_found_beside_the_plan_and_survive_a_dump(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(
        """[image]
path = "a.tif"
frames = [0, 2]
focus_step_nm = -4.0
[[image.also]]
path = "b.tif"
mask = "mask.npy"
c1_nm = 9.0
drift_px = [3, -2.5]
[[image.also]]
frame = 4
exclude = [[[0, 0], [0, 9], [9, 9]]]
[microscope]
high_tension_kV = 300.0
[structure]
path = "c.cif"
zone_axis = [1, 1, 0]
""",
        "utf-8",
    )
    plan = load_plan(path)
    first, second = plan.image.also
    assert first.path == tmp_path / "b.tif" and first.mask == tmp_path / "mask.npy"
    assert (first.c1_nm, first.drift_px, second.frame, second.path) == (9.0, (3.0, -2.5), 4, None)
    (tmp_path / "again.toml").write_text(dump_plan(plan), "utf-8")
    assert load_plan(tmp_path / "again.toml") == plan


@pytest.mark.parametrize(
    ("image", "said"),
    [
        ({"also": [{"c1_nm": 5.0}]}, "needs a path, a dataset or a frame of its own"),
        ({"also": [{"path": "b.tif", "c1": 5.0}]}, "unknown key 'also.0.c1' in [image]; known here: path, "),
        ({"also": [{"path": "b.tif", "c1_nm": 5e4}]}, "also.0.c1_nm must be -1000 to 1000 nm, got 50000"),
        ({"frames": "all", "frame": 1}, "takes frame (one) or frames (fitted together), got both"),
        ({"frames": [1, 1]}, "frames must differ, got [1, 1]"),
        ({"focus_step_nm": 4.0}, "focus_step_nm needs frames"),
    ],
)
def test_contradictions_of_further_images_are_refused(image, said):
    with pytest.raises(PlanError) as caught:
        plan_from_tables({**tables(), "image": {"path": "image.tif", **image}}, "my.toml")
    assert said in str(caught.value)


def test_a_series_is_followed_or_its_frames_are_fitted_together():
    given = {**tables(), "image": {"path": "image.tif", "frames": "all"}, "series": {"interval_s": 0.5}}
    with pytest.raises(PlanError, match=r"takes \[series\], which follows changes .* got both"):
        plan_from_tables(given, "my.toml")
