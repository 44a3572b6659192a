"""Reading micrographs: right numbers and pixel sizes from each format, one clear line for a broken file."""

import gc
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qhrtem.errors import InputError, ResourceError
from qhrtem.io.micrograph import READERS, read_image

FORMATS = Path(__file__).parents[1] / "data" / "formats"
SHAPE = (20, 30)


@pytest.fixture(autouse=True)
def readers_close_what_they_left_open():
    """A reader that failed can leave a file to the garbage collector: collect here, not in a later test."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


@pytest.fixture
def image():
    return np.random.default_rng(1).poisson(50.0, SHAPE).astype(np.float32)


def refusal(path, **options):
    with pytest.raises(InputError) as caught:
        read_image(path, **options)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    return message


@pytest.mark.parametrize(
    ("name", "frame", "shape", "total", "pitch"),
    [
        ("dmTest_float32_nonSquare_diffPixelSize.dm3", None, (64, 128), 520192, (2.0, 10.0)),
        ("dmTest_float32_nonSquare_diffPixelSize.dm4", None, (64, 128), 520192, (2.0, 10.0)),
        ("test_STEM_image.dm3", None, (68, 68), 150998555, (2.48538, 2.48538)),
        ("64x64_TEM_images_acquire.emi", None, (64, 64), 165050961, (62.8183, 62.8183)),
        ("64x64_TEM_images_acquire_1.ser", None, (64, 64), 165050961, (62.8183, 62.8183)),
        ("64x64_TEM_images_acquire.npy", None, (64, 64), 165050961, None),
        ("fei_example_tem_stack.emd", 1, (3, 3), 81, (0.08172883, 0.08172883)),
        ("example_image.emd", None, (3, 3), 36, None),
        ("temp.mrc", 2, (128, 128), None, (2.0, 2.0)),
        ("test_loading_image_saved_with_DM.tif", None, (68, 68), 15422830, (1686.747, 1686.747)),
        ("test_loading_image_saved_with_imageJ.tif", None, (68, 68), 15422830, (1686.747, 1686.747)),
    ],
)
def test_formats_give_the_published_numbers(name, frame, shape, total, pitch):
    raw = read_image(FORMATS / name, frame=frame)
    assert raw.counts.shape == shape
    assert raw.counts.dtype == np.float64
    if total is not None:
        assert raw.counts.sum() == pytest.approx(total, rel=1e-6)
    assert raw.pixel_size_A == (pitch if pitch is None else pytest.approx(pitch, rel=1e-5))


def test_frames_of_a_series_add_up_to_the_published_sum():
    frames = [read_image(FORMATS / "64x64x5_TEM_preview_1.ser", frame=i).counts for i in range(5)]
    assert sum(f.sum() for f in frames) == pytest.approx(42890461.5, rel=1e-6)
    assert len({f.sum() for f in frames}) == 5


def test_series_must_be_chosen_from():
    path = FORMATS / "64x64x5_TEM_preview_1.ser"
    assert "series of 5 frames; choose one with frame = 0 to 4" in refusal(path)
    assert "frame must be 0 to 4, got 5" in refusal(path, frame=5)


def test_same_pixels_from_ser_and_the_origin_array():
    expected = np.load(FORMATS / "64x64_TEM_images_acquire.npy")
    np.testing.assert_array_equal(read_image(FORMATS / "64x64_TEM_images_acquire_1.ser").counts, expected)


def test_metadata_is_flat_text():
    metadata = read_image(FORMATS / "fei_example_tem_stack.emd", frame=0).metadata
    assert all(isinstance(k, str) and isinstance(v, str) for k, v in metadata.items())
    assert any(v == "300000" for k, v in metadata.items() if k.endswith("AccelerationVoltage"))


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".tif", ".TIF", ".hspy"])
def test_plain_arrays_come_back_unchanged(tmp_path, image, suffix):
    path = tmp_path / f"image{suffix}"
    write(path, image)
    raw = read_image(path)
    np.testing.assert_array_equal(raw.counts, image)
    assert raw.path == str(path)


def write(path, image):
    """Write an array as the format of the suffix says."""
    if path.suffix == ".npy":
        np.save(path, image)
    elif path.suffix == ".npz":
        np.savez(path, image=image)
    elif path.suffix == ".hspy":
        from rsciio.hspy import file_writer

        axes = [
            {"name": n, "size": s, "scale": 0.1, "units": "nm", "navigate": False, "offset": 0.0}
            for n, s in zip("yx", image.shape, strict=True)
        ]
        signal = {"data": image, "axes": axes, "metadata": {"General": {"title": "a"}, "Signal": {}}}
        rest = {"attributes": {"_lazy": False}, "tmp_parameters": {}, "package": "", "package_version": ""}
        rest |= {"original_metadata": {}, "learning_results": {}, "package_info": {}, "models": {}}
        file_writer(str(path), {**signal, **rest})
    else:
        tifffile.imwrite(path, image)


def test_orientation_row_then_column(tmp_path):
    counts = np.zeros(SHAPE, np.float32)
    counts[3, 25] = 7
    for suffix in (".npy", ".tif"):
        write(tmp_path / f"spot{suffix}", counts)
        assert read_image(tmp_path / f"spot{suffix}").counts[3, 25] == 7


def test_one_of_several_images_by_name_or_number(tmp_path, image):
    path = tmp_path / "several.npz"
    np.savez(path, raw=image, gain=image + 1)
    message = refusal(path)
    assert "'raw'" in message
    assert "'gain'" in message
    np.testing.assert_array_equal(read_image(path, dataset="gain").counts, image + 1)
    np.testing.assert_array_equal(read_image(path, dataset="0").counts, image)
    assert "no image called 'dark'" in refusal(path, dataset="dark")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: np.where(a == a.max(), np.nan, a), "NaN or infinite"),
        (lambda a: np.where(a == a.max(), np.inf, a), "NaN or infinite"),
        (lambda a: np.full_like(a, 5), "constant, every pixel is 5"),
        (lambda a: np.fft.fft2(a), "complex"),
        (lambda a: a[0], "no image of two dimensions"),
        (lambda a: a[:0], "no image of two dimensions"),
        (lambda a: np.array([["a", "b"]]), "real numbers"),
        (lambda a: np.array([{}, {}], dtype=object).reshape(1, 2), "cannot be read"),
    ],
)
def test_unusable_pixels_are_refused(tmp_path, image, change, words):
    path = tmp_path / "bad.npy"
    np.save(path, change(image), allow_pickle=True)
    assert words in refusal(path)


def test_colour_picture_is_refused(tmp_path):
    path = tmp_path / "screen.tif"
    picture = np.random.default_rng(2).integers(0, 255, (*SHAPE, 3), dtype=np.uint8)
    tifffile.imwrite(path, picture, photometric="rgb")
    assert "colour picture" in refusal(path)


def test_diffraction_pattern_is_refused(tmp_path, image, monkeypatch):
    axes = [{"scale": 0.1, "units": "1/nm", "navigate": False, "index_in_array": i} for i in (0, 1)]
    monkeypatch.setattr("rsciio.tiff.file_reader", lambda path: [{"data": image, "axes": axes}])
    path = tmp_path / "saed.tif"
    tifffile.imwrite(path, image)
    assert "diffraction pattern" in refusal(path)


def test_missing_file_folder_and_unknown_format(tmp_path):
    assert "does not exist" in refusal(tmp_path / "none.dm3")
    (tmp_path / "folder.tif").mkdir()
    assert "is a folder" in refusal(tmp_path / "folder.tif")
    assert ".dm3" in refusal(tmp_path / "image.docx")


def test_emi_without_its_ser_says_so(tmp_path):
    path = tmp_path / "alone.emi"
    path.write_bytes((FORMATS / "64x64_TEM_images_acquire.emi").read_bytes())
    assert ".ser" in refusal(path)


@pytest.mark.parametrize("suffix", list(READERS))
@pytest.mark.parametrize("content", [b"", b"not an image at all"])
def test_foreign_content_is_one_line_whatever_the_reader_raises(tmp_path, suffix, content):
    path = tmp_path / f"foreign{suffix}"
    path.write_bytes(content)
    refusal(path)


@pytest.mark.parametrize(
    "name",
    [
        "dmTest_float32_nonSquare_diffPixelSize.dm3",
        "64x64_TEM_images_acquire_1.ser",
        "example_image.emd",
        "temp.mrc",
        "test_loading_image_saved_with_imageJ.tif",
    ],
)
@pytest.mark.parametrize("part", [0.05, 0.5, 0.95])
def test_truncated_file_is_refused(tmp_path, name, part):
    data = (FORMATS / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(data[: int(part * len(data))])
    refusal(path, frame=0)


def test_mrc_header_that_promises_too_much_is_refused_at_once(tmp_path):
    data = (FORMATS / "temp.mrc").read_bytes()
    path = tmp_path / "huge.mrc"
    path.write_bytes(struct.pack("<i", 2**30) + data[4:])
    assert "more than the file holds" in refusal(path, frame=0)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(
        [
            "test_loading_image_saved_with_imageJ.tif",
            "64x64_TEM_images_acquire_1.ser",
            "64x64_TEM_images_acquire.npy",
        ]
    ),
    damage=st.lists(st.tuples(st.integers(0, 500), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_damaged_header_gives_an_image_or_an_explanation(tmp_path, name, damage):
    data = bytearray((FORMATS / name).read_bytes())
    for place, byte in damage:
        data[place] = byte
    path = tmp_path / name
    path.write_bytes(data)
    try:
        raw = read_image(path, frame=0)
    except (InputError, ResourceError) as error:  # a header may promise more than memory holds
        assert str(error).startswith(f"{path}: ")
    else:
        assert np.isfinite(raw.counts).all()
        assert raw.counts.ndim == 2


def test_reading_leaves_logging_and_warnings_as_they_were(tmp_path):
    import logging
    import warnings

    before = logging.root.manager.disable, list(warnings.filters)
    (tmp_path / "bad.tif").write_bytes(b"II*\0garbage")
    refusal(tmp_path / "bad.tif")
    assert (logging.root.manager.disable, list(warnings.filters)) == before
