"""What a user sees while a fit runs, and the one line that explains why it stopped."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

if TYPE_CHECKING:
    from qhrtem.model.twin import Step

QUIET_SECONDS = 10.0  # between lines where the output is not a terminal


def print_error(console: Console, message: str) -> None:
    """Print a message as one red line, however long it is."""
    line = " ".join(message.split())
    console.print(f"[bold red]error:[/] [red]{escape(line)}[/]", soft_wrap=True, highlight=False)


def print_warning(console: Console, message: str) -> None:
    """Print a message as one yellow line."""
    line = " ".join(message.split())
    console.print(f"[yellow]{escape(line)}[/]", soft_wrap=True, highlight=False)


def clock(seconds: float) -> str:
    """Return a duration as minutes and seconds, m:ss."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"


class Progress:
    """Live table of the stages of a fit: iteration, χ² now, best χ² and time; call it with each Step.

    Where the console is no terminal, it prints one line at each new stage and every few seconds instead.
    """

    def __init__(self, console: Console, now: Callable[[], float] = time.monotonic) -> None:
        """Show on `console`; `now` is the clock in seconds."""
        self._console = console
        self._now = now
        self._latest: dict[str, Step] = {}  # by stage, in the order they were entered
        self._best: dict[str, float] = {}
        self._since: dict[str, float] = {}  # seconds of the run at which a stage began
        self._printed = -QUIET_SECONDS
        self._begin = now()
        self._live = Live(get_renderable=self.table, console=console, refresh_per_second=4, transient=False)

    def __enter__(self) -> Self:
        self._begin = self._now()
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live.is_started:
            self._live.stop()

    def __call__(self, step: Step) -> None:
        """Take in one step of the fit."""
        new = step.stage not in self._latest
        self._latest[step.stage] = step
        self._since.setdefault(step.stage, step.seconds)
        # A first NaN must not hide what follows: the comparison with inf drops it.
        self._best[step.stage] = min(self._best.get(step.stage, float("inf")), step.chi2)
        if not self._console.is_terminal and (new or self._now() - self._printed > QUIET_SECONDS):
            self._printed = self._now()
            self._console.print(self._line(step), soft_wrap=True, highlight=False)

    def _line(self, step: Step) -> str:
        best = self._best[step.stage]
        note = f"  {escape(step.note)}" if step.note else ""
        left = self._left(step.seconds)
        when = f"{clock(step.seconds):>6}  {step.stage:<10} {step.iteration:>5}"
        return f"{when}  best χ² {best:.4f}{note}{left}"

    def _left(self, elapsed: float) -> str:
        """Time left if the rest goes at the pace so far, once a tenth is done."""
        if not self._latest:
            return ""
        step = max(self._latest.values(), key=lambda s: s.seconds)
        if not step.done >= 0.1:  # also where no estimate came
            return ""
        total = step.seconds / step.done
        return f", about {clock(max(total - elapsed, 0.0))} left"

    def table(self) -> Table:
        """Return the stages so far as a table."""
        table = Table(box=None, pad_edge=False)
        for name, side in (("stage", "left"), ("trial", "right"), ("χ²", "right"), ("best χ²", "right")):
            table.add_column(name, justify="right" if side == "right" else "left")
        table.add_column("time", justify="right")
        table.add_column("", overflow="ellipsis", no_wrap=True)
        stages = list(self._latest)
        for place, stage in enumerate(stages):
            step = self._latest[stage]
            last = place == len(stages) - 1
            end = self._now() - self._begin if last else self._since[stages[place + 1]]
            table.add_row(
                f"[bold]{stage}[/]" if last else stage,
                str(step.iteration),
                f"{step.chi2:.4f}",
                f"{self._best[stage]:.4f}",
                clock(max(end - self._since[stage], 0.0)),
                escape(step.note),
            )
        elapsed = self._now() - self._begin
        table.add_row("", "", "", "", "", f"[dim]elapsed {clock(elapsed)}{self._left(elapsed)}[/]")
        return table
