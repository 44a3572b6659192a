"""The Dr. Probe command line tools as an engine: celslc, msa and wavimg (J. Barthel 2018).

They are looked for in the folder that the environment variable QHRTEM_DRPROBE names, or else on PATH. Each
step runs in a folder of its own that is removed afterwards. celslc uses Weickenmeier–Kohl form factors, so
its waves differ from those of Lobato factors by one to two per cent at 4 nm. Dr. Probe's focal spread is a
1/e half width, √2 times the standard deviation stored here; for units and notation see `drprobe_files`.
"""

from __future__ import annotations

import math
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from torch import Tensor

from qhrtem.engines.drprobe_files import MsaParameters, WavimgParameters, cel_text, read_raw
from qhrtem.engines.protocol import Job
from qhrtem.errors import PlanError, ResourceError
from qhrtem.physics.potential import Thermal

FOLDER_VARIABLE = "QHRTEM_DRPROBE"
TOOLS = ("celslc", "msa", "wavimg")
PIXELS = (32, 2048)  # what celslc takes along an edge
SLICES = 999  # names of slice files have three digits
MODELS = {"focal": 1, "full": 2}
TIMEOUT_S = 6 * 3600


class DrProbe:
    """The tools celslc, msa and wavimg."""

    name = "drprobe"

    def __init__(self, folder: Path | None = None) -> None:
        """folder: where the tools are; default as in the environment, then PATH."""
        chosen = folder or os.environ.get(FOLDER_VARIABLE) or None
        self.folder = None if chosen is None else Path(chosen)

    def available(self) -> str | None:
        """Return None where all three tools are found, else which are missing and where they were sought."""
        missing = [tool for tool in TOOLS if self._program(tool) is None]
        if not missing:
            return None
        where = f"in {self.folder}" if self.folder else "on PATH"
        return (
            f"the engine drprobe needs Dr. Probe's command line tools, not found {where}: "
            f"{', '.join(missing)}; install them (github.com/ju-bar/drprobe_clt) and set {FOLDER_VARIABLE} "
            "to their folder"
        )

    def check(self, job: Job) -> None:
        """Raise `PlanError` for a grid, slices or a thermal model that celslc does not take."""
        low, high = PIXELS
        if not all(low <= n <= high for n in job.grid.shape):
            raise PlanError(
                f"celslc takes {low} to {high} pixels along an edge, the wave needs {job.grid.shape[0]} × "
                f"{job.grid.shape[1]}; simulate a smaller field"
            )
        if len(job.slicing.thickness) > SLICES:
            raise PlanError(
                f"Dr. Probe numbers up to {SLICES} slices, the specimen has {len(job.slicing.thickness)}; "
                "make it thinner"
            )
        if np.ptp(job.slicing.thickness) > 1e-6:
            raise PlanError("celslc cuts slices of equal thickness only; choose equal slices")
        thermal_options(job.thermal)

    def exit_wave(self, job: Job) -> Tensor:
        """Return the wave behind the last slice, by celslc and `msa /ctem`."""
        with tempfile.TemporaryDirectory(prefix="qhrtem_drprobe_") as name:
            folder = Path(name)
            (folder / "cell.cel").write_text(cel_text(job.cell, job.slicing, float(job.thermal.b_scale)))
            rows, cols = job.grid.shape
            slices = len(job.slicing.thickness)
            size = ("-nx", str(cols), "-ny", str(rows), "-nz", str(slices))
            energy = ("-ht", f"{job.lens.energy / 1e3:.6f}")
            options = thermal_options(job.thermal)
            self._run("celslc", folder, "-cel", "cell.cel", "-slc", "slice", *size, *energy, *options)
            written = len(list(folder.glob("slice_*.sli")))
            if written != slices:
                raise ResourceError(
                    f"celslc wrote {written} of {slices} slice files; run it by hand to see why"
                )
            order = list(range(slices)) * job.repeats
            tilt = (math.degrees(job.mistilt[0]), math.degrees(job.mistilt[1]))
            text = MsaParameters(job.lens.energy / 1e3, "slice", slices, order, tilt).text()
            (folder / "msa.prm").write_text(text)
            self._run("msa", folder, "-prm", "msa.prm", "-out", "wave.wav", "/ctem")
            # msa adds the number of the slice to the name.
            found = sorted(folder.glob("wave*.wav"))
            if len(found) != 1:
                raise ResourceError(f"msa wrote {len(found)} waves instead of 1; run it by hand to see why")
            return read_raw(found[0], job.grid.shape, True).to(job.grid.complex_dtype)

    def image(self, wave: Tensor, job: Job) -> Tensor:
        """Return the image of a wave by wavimg, coherence model 1 (focal) or 2 (full)."""
        with tempfile.TemporaryDirectory(prefix="qhrtem_drprobe_") as name:
            folder = Path(name)
            wave.cpu().numpy().astype(np.complex64).tofile(folder / "wave.wav")
            pixel = (job.grid.pixel[0] / 10, job.grid.pixel[1] / 10)
            model = MODELS[job.mode]
            files = ("wave.wav", "image.dat")
            text = WavimgParameters(*files, job.grid.shape, pixel, job.lens, model).text()
            (folder / "wavimg.prm").write_text(text)
            tilt = [f"{1e3 * float(t):.9f}" for t in job.lens.beam_tilt]
            tilted = ("-btx", tilt[0], "-bty", tilt[1]) if any(float(t) for t in tilt) else ()
            self._run("wavimg", folder, "-prm", "wavimg.prm", *tilted)
            return read_raw(folder / "image.dat", job.grid.shape, False).to(job.grid.dtype)

    def _program(self, tool: str) -> str | None:
        return shutil.which(tool, path=None if self.folder is None else str(self.folder))

    def _run(self, tool: str, folder: Path, *arguments: str) -> None:
        """Run a tool in a folder; raise `ResourceError` with its last words where it fails."""
        program = self._program(tool)
        if program is None:
            raise ResourceError(self.available() or f"{tool} is missing")
        try:
            done = subprocess.run(
                [program, *arguments],
                cwd=folder,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=TIMEOUT_S,
                check=False,
            )
        except OSError as error:
            raise ResourceError(
                f"{program} cannot be started ({error.strerror or error}); check that it is a program for "
                "this machine"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise ResourceError(
                f"{tool} did not end within {TIMEOUT_S // 3600} h; simulate a smaller field"
            ) from error
        if done.returncode != 0:
            said = [line.strip() for line in (done.stdout + "\n" + done.stderr).splitlines() if line.strip()]
            last = f": {said[-1][:200]}" if said else ""
            raise ResourceError(f"{tool} ended with status {done.returncode}{last}")


def thermal_options(thermal: Thermal) -> tuple[str, ...]:
    """Return the options of celslc for a thermal model; raise `PlanError` for one it does not have."""
    if thermal.rigid:
        return ()
    damped = () if float(thermal.b_scale) == 0 else ("-dwf",)
    absorption, share = float(thermal.absorption_scale), float(thermal.proportional)
    if share and not absorption:
        return (*damped, "-abf", f"{share:.6f}")
    if not share and absorption in (0.0, 1.0):
        return (*damped, "-abs") if absorption and damped else damped
    raise PlanError(
        f"celslc takes its own thermal absorption once or not at all, or else a fraction, got {absorption:g} "
        f"times thermal absorption and a fraction of {share:g}; use frozen phonons, e.g. --phonons 16"
    )
