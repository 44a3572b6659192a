"""Damaged files: each must end in the documented error or in an image, never in a crash, a hang or a flood.

    python benchmarks/fuzzing.py [--data ../shared/data] [--out FILE] [--cuts 200] [--flips 500]

For every format one good file is cut at random places and has random bytes replaced (half of them in the
first and last 4096 bytes, where headers are). Each damaged copy is read in a process of its own, bound
in time and memory. Accepted copies are compared with the good file: another shape that comes without a
word counts as "silent shape". A changed byte of the stated scale cannot be told from a true one; such
copies, with another pixel size and the same shape, are counted apart as "restated".
"""

from __future__ import annotations

import argparse
import os
import pickle
import resource
import select
import signal
import tempfile
from collections import Counter
from importlib import import_module
from pathlib import Path

import numpy as np
from rsciio.hspy import file_writer

from qhrtem.errors import InputError, ResourceError
from qhrtem.io.micrograph import READERS, read_image

# Limits of one read: seconds of the processor, seconds at all, bytes beyond what the process has.
CPU_SECONDS, SECONDS, MEMORY = 20, 300, 3 << 30
FILES = {  # format → file, and the frame to ask for
    "dm3": ("formats/dmTest_float32_nonSquare_diffPixelSize.dm3", None),
    "dm4": ("formats/dmTest_float32_nonSquare_diffPixelSize.dm4", None),
    "emd (Velox)": ("formats/fei_example_tem_stack.emd", 0),
    "emd (NCEM)": ("formats/example_image.emd", None),
    "ser": ("formats/64x64_TEM_images_acquire_1.ser", None),
    "emi": ("formats/64x64_TEM_images_acquire.emi", None),
    "mrc": ("formats/temp.mrc", 0),
    "tif (Gatan)": ("formats/test_loading_image_saved_with_DM.tif", None),
    "tif (ImageJ)": ("formats/test_loading_image_saved_with_imageJ.tif", None),
    "npy": ("formats/64x64_TEM_images_acquire.npy", None),
    "npz": ("made from the npy", None),
    "hspy": ("made from the npy", None),
}
Seen = tuple[str, tuple[int, ...] | str, tuple[float, float] | None]


def read_apart(path: Path, frame: int | None) -> Seen:
    """Return ("image", shape, pitch), ("error", message, None) or what went wrong, read in a child."""
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(out)
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
            resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            try:
                raw = read_image(path, frame=frame)
                said: Seen = ("image", raw.counts.shape, raw.pixel_size_A)
            except (InputError, ResourceError) as error:
                said = ("error", str(error), None)
            except BaseException as error:  # noqa: BLE001 - that is what is looked for
                said = ("escaped", f"{type(error).__name__}: {error}"[:200], None)
            os.write(into, pickle.dumps(said))
        finally:
            os._exit(0)
    os.close(into)
    ready, _, _ = select.select([out], [], [], SECONDS)
    data = os.read(out, 1 << 16) if ready else b""
    os.close(out)
    if not ready:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if not ready:
        return "hang", f"more than {SECONDS} s", None
    if os.WIFSIGNALED(status) or not data:
        return "crash", f"status {status}", None
    return pickle.loads(data)  # noqa: S301 - our own child wrote it


def damaged(good: bytes, how: str, rng: np.random.Generator) -> bytes:
    """Return a damaged copy: cut at a place, or with one to four bytes replaced."""
    if how == "cut":
        return good[: int(rng.integers(0, len(good)))]
    copy = bytearray(good)
    for _ in range(int(rng.integers(1, 5))):
        edge = min(4096, len(good) // 2)
        place = int(rng.integers(0, len(good)))
        if rng.random() < 0.5:
            place = int(rng.integers(-edge, edge)) % len(good)
        copy[place] = int(rng.integers(0, 256))
    return bytes(copy)


def made(suffix: str, data: Path, folder: Path) -> Path:
    """Return a file in a format of which the data hold none, written from the NumPy file among them."""
    counts = np.load(data / FILES["npy"][0])
    path = folder / f"good.{suffix}"
    if suffix == "npz":
        np.savez(path, image=counts)
        return path
    axes = [
        {"size": n, "name": a, "units": "nm", "scale": 0.01, "offset": 0.0, "index_in_array": i,
         "navigate": False, "_type": "UniformDataAxis", "is_binned": False}
        for i, (a, n) in enumerate(zip("yx", counts.shape, strict=True))
    ]  # fmt: skip
    signal = {
        "data": counts, "axes": axes, "metadata": {"General": {"title": "image"}, "Signal": {}},
        "original_metadata": {}, "learning_results": {}, "attributes": {"_lazy": False, "ragged": False},
        "models": {}, "package_info": {}, "tmp_parameters": {},
    }  # fmt: skip
    file_writer(str(path), signal)
    return path


def judge(seen: Seen, good: Seen, path: Path) -> str:
    """Return how a read ended."""
    kind, what, pitch = seen
    if kind == "error":
        return "refused" if str(what).startswith(f"{path}: ") and "\n" not in str(what) else "bad message"
    if kind != "image":
        return kind
    if what != good[1]:
        return "silent shape"
    return "read" if pitch == good[2] else "restated"


def _children() -> float:
    """Seconds of the processor that finished children have used."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Write the table."""
    here = Path(__file__).resolve().parent
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=here.parents[1] / "shared" / "data")
    parser.add_argument("--out", type=Path, default=here / "fuzzing.md")
    parser.add_argument("--cuts", type=int, default=200)
    parser.add_argument("--flips", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="formats whose name holds this text")
    options = parser.parse_args()
    # Loaded once for all children. The parent reads nothing: readers start threads, which a fork loses.
    for module in filter(None, READERS.values()):
        import_module(f"rsciio.{module}")
    ends = ("refused", "read", "restated", "silent shape", "bad message", "escaped", "crash", "hang")
    lines = [
        "# Damaged files",
        "",
        f"Written by `benchmarks/fuzzing.py`, seed {options.seed}; the columns are explained there. A read "
        f"may take {CPU_SECONDS} s of the processor and {MEMORY >> 30} GiB.",
        "",
        "| format | damage | copies | " + " | ".join(ends) + " | slowest (s) |",
        "|" + "---|" * (len(ends) + 4),
    ]
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, (file, frame)) in enumerate(FILES.items()):
            if options.only not in name:
                continue
            source = options.data / file
            if file.startswith("made"):
                source = made(name, options.data, Path(folder))
            good = source.read_bytes()
            if source.suffix == ".emi":  # holds the metadata only; its .ser must lie beside it
                for ser in source.parent.glob(f"{source.stem}_*.ser"):
                    Path(folder, ser.name.replace(source.stem, "damaged")).write_bytes(ser.read_bytes())
            path = Path(folder) / f"damaged{source.suffix}"
            path.write_bytes(good)
            reference = read_apart(path, frame)
            rng = np.random.default_rng([options.seed, number])
            for how, copies in (("cut", options.cuts), ("flip", options.flips)):
                found: Counter[str] = Counter()
                slowest = 0.0
                for _ in range(copies):
                    path.write_bytes(damaged(good, how, rng))
                    begin = _children()
                    seen = read_apart(path, frame)
                    slowest = max(slowest, _children() - begin)
                    end = judge(seen, reference, path)
                    found[end] += 1
                    if end not in ("refused", "read", "restated"):
                        print(name, how, end, seen[1], flush=True)
                row = " | ".join(str(found[e]) for e in ends)
                lines.append(f"| {name} | {how} | {copies} | {row} | {slowest:.1f} |")
                print(lines[-1], flush=True)
                options.out.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
