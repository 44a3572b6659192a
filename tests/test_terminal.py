"""What the terminal shows: the best χ² so far, the time, one line where there is no terminal."""

import io

from rich.console import Console

from qhrtem.model.twin import Step
from qhrtem.terminal import Progress, clock, print_error


def console(terminal):
    return Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None)


def text_of(screen, thing):
    with screen.capture() as captured:
        screen.print(thing)
    return captured.get()


def test_clock_counts_minutes():
    assert [clock(s) for s in (0.0, 59.9, 60.0, 754.2)] == ["0:00", "0:59", "1:00", "12:34"]


def test_error_stays_one_line_however_long_and_whatever_it_holds():
    screen = console(terminal=False)
    print_error(screen, "plan.toml: [image] path\nis [red]odd[/red] " + "x" * 300)
    shown = screen.file.getvalue()
    assert shown.count("\n") == 1
    assert "[image] path is [red]odd[/red]" in shown


def test_table_keeps_the_best_chi2_of_each_stage_and_its_time():
    now = iter(float(t) for t in range(100))
    progress = Progress(console(terminal=False), now=lambda: next(now))
    for stage, chi2, seconds in [
        ("imaging", float("nan"), 0.0),
        ("imaging", 1.5, 10.0),
        ("imaging", 2.5, 20.0),
        ("counts", 1.2, 61.0),
    ]:
        progress(Step(stage, 7, chi2, seconds))
    lines = text_of(console(terminal=True), progress.table()).splitlines()
    imaging = next(line for line in lines if "imaging" in line)
    assert "1.5000" in imaging
    assert "2.5000" in imaging
    assert "1:01" in imaging
    assert "1.2000" in next(line for line in lines if "counts" in line)


def test_without_a_terminal_lines_come_at_new_stages_and_now_and_then():
    screen = console(terminal=False)
    moment = [0.0]
    with Progress(screen, now=lambda: moment[0]) as progress:
        for i in range(25):
            moment[0] = float(i)
            progress(Step("imaging", i, 2.0 - 0.01 * i, float(i)))
        progress(Step("counts", 0, 1.5, 25.0))
    lines = screen.file.getvalue().splitlines()
    assert 3 <= len(lines) <= 5
    assert "counts" in lines[-1]
