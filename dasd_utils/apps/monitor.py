"""Training that is watched while it runs: curves, pictures, and a button that stops it.

A kernel handles most clicks only between two cells, so a watched run trains in a thread beside them. Nothing
of its randomness depends on that: the weights are the same in every bit, as long as no other cell uses the
model meanwhile.
"""

from __future__ import annotations

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
from PIL import Image
from tqdm import tqdm

from dasd_utils import figures, training
from dasd_utils.config import Config, DasdError
from dasd_utils.runtime import bars

EVERY = 2.0  # seconds at least between two drawings of the curves
SHARE = 0.02  # of the time, at most, that drawing them may take
GRACE = 30.0  # seconds that a run has to end in, when the kernel does
LINE = 0.3  # seconds between two updates of the line of numbers
RED = "#c0392b"  # of what went wrong
log = logging.getLogger(__name__)


class Monitor:
    """What a page shows of a run: `widget`, fed by the loop's callbacks. `stop` is set by its button."""

    def __init__(self, steps: int) -> None:
        """steps: of the complete run."""
        self.stop = threading.Event()
        self.rows: list[training.HistoryRow] = []
        self._first: tuple[int, float] | None = None  # step and time of the first row
        self._line_due = self._curves_due = 0.0
        self.bar = widgets.IntProgress(0, 0, steps, layout={"width": "220px"})
        self.button = widgets.Button(description="Stop", icon="stop", button_style="warning")
        self.button.tooltip = "ends the present step and writes a checkpoint"
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
        if self.stop.is_set():
            return
        self.stop.set()
        self.button.disabled = True
        self.said.value = note("Stopping after this step …")

    def on_step(self, row: training.HistoryRow) -> None:
        """Add a history row; draw what is due, so seldom that the run hardly slows down."""
        self.rows.append(row)
        now = time.monotonic()
        self._first = self._first or (row["step"], now)
        if now >= self._line_due or row["step"] == self.bar.max:
            self._line_due = now + LINE
            self.bar.value = row["step"]
            self.numbers.value = note(self._line(row, now))
        if now >= self._curves_due and len(self.rows) > 1:
            self.draw_curves()
            cost = time.monotonic() - now
            self._curves_due = now + max(EVERY, cost / SHARE)

    def _line(self, row: training.HistoryRow, now: float) -> str:
        first, begun = self._first
        text = f"step {row['step']} of {self.bar.max}"
        text += f", loss {row['loss']:.4f}" if row.get("loss") is not None else ""
        if row["step"] == first:
            return text
        speed = (row["step"] - first) / max(now - begun, 1e-9)
        left = tqdm.format_interval((self.bar.max - row["step"]) / speed)
        return f"{text}, {speed:.2g} steps a second, {left} left"

    def draw_curves(self) -> None:
        """Draw the curves of all rows so far."""
        if self.rows:
            self.curves.value = figures.loss_curves(self.rows).encode("png", dpi=70)
            self.curves.layout.display = None

    def on_sample(self, step: int, made: Any) -> None:
        """Show what a sampling callback returned: images, by name or not, one image, or a figure; or None."""
        if made is None:
            return
        if isinstance(made, Mapping):
            made = figures.comparison_grid(made, title=f"step {step}")
        if isinstance(made, Sequence):
            made = figures.image_grid(made, title=f"step {step}")
        self.pictures.value = made._repr_png_() if isinstance(made, Image.Image) else made.encode("png")
        self.pictures.layout.display = None

    def behind(
        self, on_step: Callable[[training.HistoryRow], None] | None, on_sample: Callable[[int], Any] | None
    ) -> dict[str, Any]:
        """Return the caller's callbacks, each followed by the monitor's."""

        def step(row: training.HistoryRow) -> None:
            if on_step:
                on_step(row)
            _show(self.on_step, row)

        def sample(number: int) -> Any:
            made = on_sample(number)
            _show(self.on_sample, number, made)
            return made

        return {"on_step": step, "on_sample": sample if on_sample else None}

    def end(self, text: str, error: bool = False) -> None:
        """Draw the last state and say how the run ended."""
        _show(self.draw_curves)
        self.bar.bar_style = "danger" if error else "success"
        self.button.disabled = True
        self.button.layout.display = "none"
        self.said.value = note(text, RED if error else "inherit")


class Running(futures.Future):
    """A run that trains in a thread of its own, or one that is done."""

    def __init__(self, stop: threading.Event | None = None) -> None:
        """stop: what ends the run early, where there is a thread."""
        super().__init__()
        self._stop = stop

    def run(self, task: Callable[[], Sequence[training.HistoryRow]]) -> None:
        """Do the task and keep what it returns or raises."""
        try:
            self.set_result(task())
        except BaseException as error:  # Ctrl-C and a stop are KeyboardInterrupt
            self.set_exception(error)

    def result(self) -> list[training.HistoryRow]:
        """Wait for the end and return the history; raise what the run raised.

        A stop is a KeyboardInterrupt, as of `training.train`. An interrupt of the kernel while this waits
        stops the run as its button does; a second one does not wait for the end of the step.
        """
        try:
            return self._wait()
        except KeyboardInterrupt:
            if self._stop is None or self.done():
                raise
            self._stop.set()
            return self._wait()

    def _wait(self) -> list[training.HistoryRow]:
        while not futures.wait([self], timeout=0.2).done:  # with a timeout, so that signals are seen
            pass
        return super().result()


def train(
    config: Config,
    parts: Any,
    sampler: Any,
    token_ids: Any = None,
    *,
    on_step: Callable[[training.HistoryRow], None] | None = None,
    on_sample: Callable[[int], Any] | None = None,
    **options: Any,
) -> Running:
    """Train as `training.train` does; return what `.result()` gives the history of.

    In a live session a widget is displayed and the call returns at once: the run goes on in a thread, with
    curves, a button that stops it, and the pictures (images or a figure) that `on_sample` returns. Elsewhere
    it trains before it returns, and nothing is displayed.
    """
    callbacks = {"on_step": on_step, "on_sample": on_sample}
    if not bars.is_live():
        running = Running()
        options.setdefault("progress", False)
        history = training.train(config, parts, sampler, token_ids, **callbacks, **options)
        running.run(lambda: history)
        return running
    return _watched(Monitor(config.training.max_train_steps), (config, parts, sampler, token_ids),
                    callbacks, options)  # fmt: skip


def _watched(
    monitor: Monitor, what: tuple[Any, ...], callbacks: dict[str, Any], options: dict[str, Any]
) -> Running:
    display(monitor.widget)
    running = Running(monitor.stop)
    options = {**options, **monitor.behind(**callbacks), "stop": monitor.stop, "progress": False}

    def task() -> list[training.HistoryRow]:
        try:
            history = training.train(*what, **options)
        except KeyboardInterrupt as stop:
            monitor.end(str(stop) or "Stopped.")
            raise
        except Exception as error:
            kind = "" if isinstance(error, DasdError) else f"{type(error).__name__}: "
            monitor.end(f"{kind}{error}", error=True)
            raise
        monitor.end(f"Trained {len(history)} steps.")
        return history

    thread = threading.Thread(target=running.run, args=(task,), name="training", daemon=True)
    atexit.register(_finish, thread, monitor.stop)
    thread.start()
    return running


def _finish(thread: threading.Thread, stop: threading.Event) -> None:
    """Let a run that is still at work when the kernel ends write its checkpoint first."""
    stop.set()
    thread.join(GRACE)


def _show(how: Callable[..., None], *what: Any) -> None:
    """Draw, and log what goes wrong: a picture that cannot be drawn must not end a run."""
    try:
        how(*what)
    except Exception:
        log.exception("The monitor cannot show this step.")


def note(text: str, colour: str = "inherit") -> str:
    """Return a line of plain text as HTML that a screen reader speaks when it changes."""
    return f'<div role="status" style="line-height:1.4;color:{colour}">{html.escape(text)}</div>'
