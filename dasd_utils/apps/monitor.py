"""Training that is watched while it runs, in a thread beside the cells: curves, pictures, a stop button.

A kernel handles most clicks only between two cells. No other cell should use the model meanwhile.
"""

import atexit
import html
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from typing import Any

import ipywidgets as widgets
from IPython.display import display
from tqdm import tqdm

from dasd_utils import figures, training
from dasd_utils.runtime import files
from dasd_utils.training import Config

EVERY = 2.0  # seconds at least between two drawings of the curves
SHARE = 0.02  # of the time, at most, that drawing them may take
GRACE = 30.0  # seconds that a run has to end in, when the kernel does
log = logging.getLogger(__name__)


class Monitor:
    """What a page shows of a run: `widget`, fed by the loop's callbacks. `stop` is set by its button."""

    def __init__(self, steps: int) -> None:
        self.stop = threading.Event()
        self.rows: list[training.HistoryRow] = []
        self._first: tuple[int, float] | None = None  # step and time of the first row
        self._curves_due = 0.0
        self.bar = widgets.IntProgress(0, 0, steps, layout={"width": "220px"})
        tip = "ends the present step and writes a checkpoint"
        self.button = widgets.Button(description="Stop", icon="stop", button_style="warning", tooltip=tip)
        self.numbers, self.said = widgets.HTML("The first step is prepared …"), widgets.HTML()
        hidden = {"align_self": "flex-start", "max_width": "100%", "display": "none"}
        self.curves = widgets.Image(format="png", layout=hidden)
        self.pictures = widgets.Image(format="png", layout=hidden)
        self.button.on_click(lambda _button: self.ask_to_stop())
        if self.button.comm is not None:  # ipykernel 7 asks this as a message arrives, others never
            self.button.comm._reply_subshell_for = self._arrived
        head = {"display": "flex", "flex_flow": "row wrap", "align_items": "center", "width": "100%"}
        top = widgets.Box([self.button, self.bar, self.numbers], layout=head)
        self.widget = widgets.VBox([top, self.said, self.curves, self.pictures])

    def _arrived(self, data: Any, subshell: str | None) -> str | None:
        """Handle a click as it arrives, also while a cell waits for the run."""
        if isinstance(data, dict) and data.get("method") == "custom":
            self.ask_to_stop()
        return subshell

    def ask_to_stop(self) -> None:
        """Make the run end after its present step."""
        if not self.stop.is_set():
            self.stop.set()
            self.button.disabled = True
            self._say("Stopping after this step …")

    def on_step(self, row: training.HistoryRow) -> None:
        """Add a history row; draw the curves so seldom that the run hardly slows down."""
        self.rows.append(row)
        step, steps, now = row["step"], self.bar.max, time.monotonic()
        self._first = self._first or (step, now)
        begin, started = self._first
        form = {"bar_format": "{rate_fmt}, {remaining} left", "unit": "step", "initial": begin}
        loss = f", loss {row['loss']:.4f}" if row.get("loss") is not None else ""
        meter = tqdm.format_meter(step, steps, now - started, **form)
        self.bar.value, self.numbers.value = step, f"step {step} of {steps}{loss}, {meter}"
        if now >= self._curves_due and len(self.rows) > 1:
            self.draw_curves()
            self._curves_due = now + max(EVERY, (time.monotonic() - now) / SHARE)

    def draw_curves(self) -> None:
        """Draw the curves of all rows so far."""
        if self.rows:
            self.curves.value = figures.loss_curves(self.rows).encode("png", dpi=70)
            self.curves.layout.display = None

    def on_sample(self, step: int, made: Any) -> None:
        """Show what a sampling callback returned: images, rows of them by name, a figure, or None."""
        made = [image for row in made.values() for image in row] if isinstance(made, Mapping) else made
        if isinstance(made, Sequence):
            made = figures.image_grid(made, title=f"step {step}")
        if made is not None:
            self.pictures.value = made.encode("png")
            self.pictures.layout.display = None

    def end(self, text: str) -> None:
        """Draw the last state and say how the run ended."""
        _show(self.draw_curves)
        self.button.disabled = True
        self.button.layout.display = "none"
        self._say(text)

    def _say(self, text: str) -> None:
        """Show a line that a screen reader speaks."""
        self.said.value = f'<div role="status">{html.escape(text)}</div>'


class Running(futures.Future):
    """A run that trains in a thread of its own until `stop` is set, or one that is done."""

    def __init__(self, stop: threading.Event | None = None) -> None:
        super().__init__()
        self._stop = stop

    def result(self) -> list[training.HistoryRow]:
        """Wait for the end and return the history; raise what the run raised, KeyboardInterrupt for a stop.

        An interrupt of the kernel stops the run as its button does, a second one without waiting for it.
        """
        while True:
            try:
                while not futures.wait([self], timeout=0.2).done:  # with a timeout, so that signals are seen
                    pass
                return super().result()
            except KeyboardInterrupt:
                if self.done() or self._stop is None or self._stop.is_set():
                    raise
                self._stop.set()


def train(
    config: Config,
    *what: Any,
    on_step: Callable[[training.HistoryRow], None] | None = None,
    on_sample: Callable[[int], Any] | None = None,
    **options: Any,
) -> Running:
    """Train as `training.train` does, from the same arguments; `.result()` is the history.

    In a live session it returns at once and a widget shows the run, with the pictures (images or a figure)
    of `on_sample`. Elsewhere it trains before it returns.
    """
    options["progress"] = False
    if not files.is_live():
        running = Running()
        running.set_result(training.train(config, *what, on_step=on_step, on_sample=on_sample, **options))
        return running
    monitor = Monitor(config.training.max_train_steps)

    def step(row: training.HistoryRow) -> None:
        if on_step:
            on_step(row)
        _show(monitor.on_step, row)

    def sample(number: int) -> Any:
        made = on_sample(number)
        _show(monitor.on_sample, number, made)
        return made

    options |= {"on_step": step, "on_sample": sample if on_sample else None, "stop": monitor.stop}
    running = Running(monitor.stop)
    work = (running, monitor, lambda: training.train(config, *what, **options))
    thread = threading.Thread(target=_run, args=work, name="training", daemon=True)
    atexit.register(thread.join, GRACE)
    atexit.register(monitor.stop.set)  # called first: at the kernel's end a run writes its checkpoint
    display(monitor.widget)
    thread.start()
    return running


def _run(running: Running, monitor: Monitor, train: Callable[[], list[training.HistoryRow]]) -> None:
    try:
        history = train()
    except BaseException as error:  # a stop is a KeyboardInterrupt
        monitor.end(str(error) or repr(error))
        running.set_exception(error)
    else:
        monitor.end(f"Trained {len(history)} steps.")
        running.set_result(history)


def _show(how: Callable[..., None], *what: Any) -> None:
    """Draw, and log what goes wrong: a picture that cannot be drawn must not end a run."""
    try:
        how(*what)
    except Exception:
        log.exception("The monitor cannot show this step.")
