"""Settings of the process: matrix algebra takes as many threads as asked for."""

import subprocess
import sys

PROGRAM = """
import numpy, scipy.linalg
from qhrtem.run.process import algebra_threads, prepare
prepare()
before = algebra_threads()
prepare(1)
print(before >= 1, algebra_threads())
"""


def test_matrix_algebra_takes_the_threads_of_an_earlier_process():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "1"]
