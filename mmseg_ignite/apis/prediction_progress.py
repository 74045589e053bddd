"""Progress of a prediction on the terminal: windows, area and time left."""

import sys
from collections.abc import Callable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from ..files import printable


class _Rates(ProgressColumn):
    """Windows and mm2 per second."""

    def __init__(self, window_mm2: float) -> None:
        super().__init__()
        self.window_mm2 = window_mm2

    def render(self, task: Task) -> Text:
        """Return the text of the column."""
        speed = task.speed or 0.0
        return Text(f'{speed:.1f}/s  {speed * self.window_mm2:.3g} mm²/s')


class WindowProgress:
    """A progress bar of windows on the terminal, for an input of several windows.

    Args:
        windows: number of windows.
        name: of the input.
        mm2: area that they cover together.

    Example:
        >>> with WindowProgress(120, 'slide.svs', 3.1) as on_progress:
        ...     on_progress(4)
    """

    def __init__(self, windows: int, name: str, mm2: float = 0.0) -> None:
        self.bar = Progress(
            TextColumn('{task.description}', markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn('windows'),
            _Rates(mm2 / max(windows, 1)),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            disable=windows < 2 or not sys.stderr.isatty(),
        )
        self.task = self.bar.add_task(printable(name), total=windows)

    def __enter__(self) -> Callable[[int], object]:
        self.bar.start()
        return self.advance

    def advance(self, windows: int) -> None:
        """Count finished windows."""
        self.bar.advance(self.task, windows)
        if self.bar.tasks[0].finished:
            self.bar.update(
                self.task, description=f'{self.bar.tasks[0].description.removesuffix(", writing")}, writing'
            )

    def __exit__(self, *_: object) -> None:
        self.bar.stop()
