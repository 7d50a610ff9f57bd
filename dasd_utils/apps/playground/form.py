"""A form for trying prompts: for a person at the keyboard, no lesson depends on it."""

from __future__ import annotations

import json
import os
import secrets
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from dasd_utils import sampling
from dasd_utils.apps.monitor import RED, note
from dasd_utils.apps.playground import drawings, fields
from dasd_utils.apps.playground.drawings import AUTO, Drawing, Loaded
from dasd_utils.apps.playground.server import SETTINGS
from dasd_utils.config import Config, DasdError
from dasd_utils.runtime import checkpoints

KEPT = 24  # drawings in the history
SEEDS = 10_000  # from which another is drawn: short enough to remember
PAUSE = 0.25  # seconds without a key before the prompt is classified
Work = Callable[[Callable[[], None]], Any]


class Playground:
    """The form, its drawings and what happens at a click; `widget` is what a notebook displays.

    Drawing and loading happen in one thread beside the page's own, so that typing is answered meanwhile.
    """

    def __init__(
        self,
        loaded: Loaded,
        prompt: str = "an aerial view of an airport",
        seed: int = 0,
        work: Work | None = None,
        pause: float = PAUSE,
    ) -> None:
        """work: runs a function, by default in a thread of its own; pause: see PAUSE."""
        self.loaded, self.found, self.shown = loaded, None, []
        self._work, self._pause = work or ThreadPoolExecutor(1).submit, pause
        self._waiting: threading.Timer | None = None
        self._classifying = threading.Lock()
        places = list(dict.fromkeys([loaded.run, *drawings.find_runs(loaded.pipeline.config)]))
        self.fields = fields.Fields(loaded, places, prompt, seed)
        self.widget = self.fields.layout()
        self._connect()
        self.show_scores()

    def _connect(self) -> None:
        fields = self.fields
        fields.prompt.observe(self._typed, names="value")
        fields.domain.observe(lambda change: self._domain_chosen(change["new"]), names="value")
        fields.run.observe(lambda change: self._run_chosen(change["new"]), names="value")
        fields.generate.on_click(lambda _button: self.generate())
        fields.dice.on_click(lambda _button: setattr(fields.seed, "value", secrets.randbelow(SEEDS)))
        fields.save.on_click(lambda _button: self.save())

    def _typed(self, _change: Any) -> None:
        """Classify the prompt once no key was pressed for a moment."""
        if not self._pause:
            self.show_scores()
            return
        if self._waiting:
            self._waiting.cancel()
        self._waiting = threading.Timer(self._pause, self.show_scores)
        self._waiting.daemon = True
        self._waiting.start()

    def show_scores(self) -> None:
        """Draw the classifier's score of each domain for the prompt as it stands.

        If the form is to find the domain, it takes its calibration, unless one was chosen by hand.
        """
        with self._classifying:
            try:
                answer = self.loaded.classify(self.fields.prompt.value)
                self.found, text = answer["best_domain"], fields.bars(answer)
            except DasdError as error:
                self.found, text = None, note(str(error))
            if self.fields.domain.value == AUTO and self.fields.is_calibrated():
                self.fields.calibrate(self.loaded.calibration(self.found))
            self.fields.scores.value = text

    def _domain_chosen(self, name: str | None) -> None:
        found = self.found if name == AUTO else name
        self.fields.calibrate(self.loaded.calibration(found))

    def generate(self) -> None:
        """Draw what the form says, in the working thread."""
        choices = self.fields.choices()
        self._do("Drawing …", lambda: self._drawn(drawings.draw(self.loaded, choices)))

    def _drawn(self, made: Sequence[Drawing]) -> str:
        self._show(made)
        for each in made:
            button = fields.thumbnail(each, lambda each=each: self.put_back(each))
            self.fields.history.children = (button, *self.fields.history.children)[:KEPT]
        return fields.describe(made[-1].settings)

    def _show(self, made: Sequence[Drawing]) -> None:
        self.shown = list(made)
        self.fields.pictures.children = fields.pictures(made)
        self.fields.save.disabled = False

    def put_back(self, drawing: Drawing) -> None:
        """Show a drawing of the history, and put its settings into the form; its run is loaded if need be."""
        self._show([drawing])
        named = {drawings.name_of(run): run for run in self.fields.runs}
        run = named.get(drawing.settings["run"], self.loaded.run)

        def task() -> str:
            if run != self.loaded.run:
                self._load(run)
            self.fields.put_back(drawing.settings)
            return fields.describe(drawing.settings)

        self._do("…", task)

    def save(self) -> None:
        """Write the images on show into the folder that the form names."""
        try:
            paths = [drawings.save(each, self.fields.folder.value) for each in self.shown]
            self._say("Saved: " + ", ".join(map(str, paths)))
        except DasdError as error:
            self._say(str(error), RED)

    def _run_chosen(self, run: Path) -> None:
        if run != self.loaded.run:
            self._do(f"Loading {run.name} …", lambda: self._load(run))

    def _load(self, run: Path) -> str:
        try:
            self.loaded = drawings.load(run)
        finally:  # the old one stays where the new one cannot be loaded
            self.fields.run.value = self.loaded.run
        self.fields.take(self.loaded)
        self.show_scores()
        return f"{drawings.name_of(run)} is loaded."

    def _do(self, doing: str, task: Callable[[], str | None]) -> None:
        """Run a task beside the page; an error is shown in the form, which stays usable."""
        self._say(doing)
        self.fields.busy(True)

        def run() -> None:
            try:
                self._say(task() or "")
            except DasdError as error:
                self._say(str(error), RED)
            except Exception as error:  # of a thread that nobody watches
                self._say(f"A fault of the program: {type(error).__name__}: {error}", RED)
            finally:
                self.fields.busy(False)

        self._work(run)

    def _say(self, text: str, colour: str = "inherit") -> None:
        self.fields.said.value = note(text, colour)


def playground(pipeline: sampling.DasdPipeline, run: str | Path, **options: Any) -> widgets.Widget:
    """Return the form for a pipeline and the run it was loaded from; options: `prompt` and `seed`."""
    return Playground(Loaded(pipeline, run), **options).widget


def served() -> widgets.Widget:
    """Return the form of a served page, or an error: its run and config are in DASD_PLAYGROUND."""
    try:
        given = json.loads(os.environ.get(SETTINGS, "{}"))
        config = Config.from_dict(given["config"]) if "config" in given else Config.setup("auto")
        return Playground(drawings.load(given.get("run") or checkpoints.find_run(config), config)).widget
    except DasdError as error:
        return widgets.HTML(note(str(error), RED))
