"""A form for trying prompts, in a notebook or as a page that Voilà serves on this machine alone."""

import base64
import contextlib
import html
import http.client
import itertools
import json
import os
import secrets
import socket
import sys
import threading
import time
import typing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from dasd_utils.apps.playground import drawings
from dasd_utils.apps.playground.drawings import AUTO, BASE, Drawing, Loaded
from dasd_utils.config import Calibration, Config, DasdError, Scheduler, resolve

HOST, PORT = "127.0.0.1", 8866
PAGE = Path(__file__).with_name("playground.ipynb")
SETTINGS = "DASD_PLAYGROUND"  # the environment variable that holds the page's run and config, as JSON
RULES = {"classifier-free": "cfg", "Domain Guidance": "domain", "decoupled": "decoupled",
         "unconditional": "unconditional"}  # fmt: skip
WIDE = {"width": "100%"}
WRAPPED = {"display": "flex", "flex_flow": "row wrap", "width": "100%"}
KEPT = 24  # drawings in the history
PAUSE = 0.25  # seconds without a key before the prompt is classified
THUMB = 84  # pixels of a small picture on the screen
_numbers = itertools.count()


class Playground:
    """The form, as `widget`; a thread beside the page's own draws, so that typing is answered meanwhile."""

    def __init__(self, loaded: Loaded, prompt: str = "an aerial view of an airport", seed: int = 0) -> None:
        self.loaded, self.found, self.shown = loaded, None, []
        self._working = ThreadPoolExecutor(1)
        self._waiting = threading.Timer(PAUSE, self.show_scores)
        self._make_fields(prompt, seed)
        self.widget = self._layout()
        self.calibrate(loaded.calibration(None))
        self.prompt.observe(self._typed, names="value")
        self.domain.observe(self._domain_chosen, names="value")
        self.guidance.observe(lambda _change: self._show_scales(), names="value")
        self.generate.on_click(lambda _button: self._generate())
        self.dice.on_click(lambda _button: setattr(self.seed, "value", secrets.randbelow(10_000)))
        self.save.on_click(lambda _button: self._save())
        self.show_scores()

    def _make_fields(self, prompt: str, seed: int) -> None:
        config = self.loaded.pipeline.config
        is_shipped = config.shipped_run and self.loaded.run == resolve(config.shipped_run)
        place = "data/runs/playground" if is_shipped else str(self.loaded.run / "generated")
        named = [(domain.name, domain.name) for domain in config.domains]
        domains = [("find it for me", AUTO), *named, ("none: the base model", None)]
        hint = "what the picture should show"
        self.prompt = widgets.Textarea(prompt, placeholder=hint, rows=2, layout=WIDE)
        self.scores, self.said = widgets.HTML(layout=WIDE), widgets.HTML(layout=WIDE)
        self.domain = widgets.Dropdown(options=domains, **_named("domain"))
        self.guidance = widgets.Dropdown(options=RULES, **_named("guidance"))
        self.scale = widgets.FloatSlider(4, min=0, max=12, step=0.25, **_named("to the prompt"))
        self.domain_scale = widgets.FloatSlider(2.5, min=0, max=8, step=0.25, **_named("to the domain"))
        self.steps = widgets.IntSlider(15, min=1, max=100, **_named("steps"))
        self.scheduler = widgets.Dropdown(options=typing.get_args(Scheduler), **_named("scheduler"))
        self.seed = widgets.BoundedIntText(seed, min=0, max=2**31 - 1, **_named("seed"))
        self.dice = widgets.Button(description="another", tooltip="another seed", layout={"flex": "0 0 96px"})
        self.beside = widgets.Checkbox(False, description="base model beside it", indent=False, layout=WIDE)
        self.generate = widgets.Button(description="Generate", button_style="primary")
        self.save = widgets.Button(description="Save", disabled=True, tooltip="PNG with its settings inside")
        self.folder = widgets.Text(place, **_named("save in"))
        self.pictures, self.history = widgets.Box(layout=WRAPPED), widgets.Box(layout=WRAPPED)

    def _layout(self) -> widgets.Widget:
        """Return the page: the form at the left, pictures at the right, or below where it is narrow."""
        rows = [self.prompt, self.scores, self.domain, self.guidance, self.scale, self.domain_scale]
        rows += [self.steps, self.scheduler, widgets.HBox([self.seed, self.dice]), self.beside]
        rows += [widgets.HBox([self.generate, self.save]), self.said, self.folder]
        form = widgets.VBox(rows, layout={"flex": "1 1 320px", "max_width": "430px", "padding": "0 16px 0 0"})
        view = widgets.VBox([self.pictures, self.history], layout={"flex": "2 1 320px", "min_width": "0"})
        return widgets.Box([form, view], layout=WRAPPED)

    def calibration(self) -> Calibration:
        """Return how the form samples; a browser sends the 5 of a slider as 5.000000000000001."""
        scale, domain_scale = (round(slider.value, 6) for slider in (self.scale, self.domain_scale))
        how = (scale, self.steps.value, self.scheduler.value, "cfg", domain_scale, self._interval)
        return Calibration(*how).with_guidance(self.guidance.value)

    def calibrate(self, calibration: Calibration) -> None:
        """Set how to sample; sliders grow where a value is beyond their ends."""
        sliders = {"guidance_scale": self.scale, "domain_scale": self.domain_scale}
        for name, slider in (sliders | {"num_inference_steps": self.steps}).items():
            slider.max = max(slider.max, getattr(calibration, name))
            slider.value = getattr(calibration, name)
        self._interval = calibration.guidance_interval
        self.scheduler.value = calibration.scheduler
        self.guidance.value = calibration.guidance
        self._calibrated = self.calibration()
        self._show_scales()

    def _show_scales(self) -> None:
        rule = self.guidance.value
        self.scale.layout.display = "none" if rule == "unconditional" else None
        self.domain_scale.layout.display = None if rule == "decoupled" else "none"

    def _typed(self, _change: Any) -> None:
        """Classify the prompt once no key was pressed for a moment."""
        self._waiting.cancel()
        self._waiting = threading.Timer(PAUSE, self.show_scores)
        self._waiting.daemon = True
        self._waiting.start()

    def show_scores(self) -> None:
        """Draw the classifier's scores of the prompt; take the domain's calibration if the form finds it."""
        prompt, found = self.prompt.value, None
        try:
            answer = self.loaded.classify(prompt)
            found, text = answer["best_domain"], bars(answer)
        except DasdError as error:
            text = note(str(error))
        if prompt != self.prompt.value:  # the next key's answer follows
            return
        self.found, self.scores.value = found, text
        if self.domain.value == AUTO and self.calibration() == self._calibrated:  # none chosen by hand
            self.calibrate(self.loaded.calibration(found))

    def _domain_chosen(self, change: Any) -> None:
        self.calibrate(self.loaded.calibration(self.found if change["new"] == AUTO else change["new"]))

    def _generate(self) -> None:
        """Draw what the form says, in the working thread; an error is shown and the form stays usable."""
        chosen = (self.prompt.value, self.domain.value, self.calibration(), self.seed.value)
        beside = self.beside.value
        self._say("Drawing …")
        self.generate.disabled = True

        def draw() -> None:
            try:
                made = drawings.draw(self.loaded, *chosen, beside=beside)
                self._show(made)
                for each in made:
                    button = thumbnail(each, lambda each=each: self._put_back(each))
                    self.history.children = (button, *self.history.children)[:KEPT]
            except Exception as error:  # of a thread that nobody watches
                self._say(
                    str(error) if isinstance(error, DasdError) else f"A fault of the program: {error!r}"
                )
            finally:
                self.generate.disabled = False

        self._working.submit(draw)

    def _show(self, made: Sequence[Drawing]) -> None:
        layout = {"width": f"calc({100 / len(made):g}% - 8px)", "max_width": "300px", "margin": "0 8px 0 0"}
        boxes = []
        for drawing in made:
            image = widgets.Image(value=drawing.image._repr_png_(), format="png", layout={"width": "100%"})
            below = widgets.HTML(html.escape(_who(drawing.settings)))
            boxes.append(widgets.VBox([image, below], layout=layout))
        self.shown, self.pictures.children = list(made), boxes
        self.save.disabled = False
        self._say(describe(made[-1].settings))

    def _put_back(self, drawing: Drawing) -> None:
        """Show a drawing again and put its settings into the form."""
        settings = drawing.settings
        known = {value for _, value in self.domain.options}
        self.prompt.value = settings["prompt"]
        self.seed.value = settings["seed"]
        self.domain.value = settings["domain"] if settings["domain"] in known else None
        self.calibrate(drawings.calibration(settings))
        self._show([drawing])

    def _save(self) -> None:
        try:
            paths = [drawings.save(each, self.folder.value) for each in self.shown]
            self._say("Saved: " + ", ".join(map(str, paths)))
        except DasdError as error:
            self._say(str(error))

    def _say(self, text: str) -> None:
        self.said.value = note(text)


def _named(text: str) -> dict[str, Any]:
    return {"description": text, "layout": WIDE, "style": {"description_width": "95px"}}


def note(text: str) -> str:
    """Return a line of plain text as HTML that a screen reader speaks when it changes."""
    return f'<div role="status" style="line-height:1.4">{html.escape(text)}</div>'


def bars(answer: Mapping[str, Any]) -> str:
    """Return the classifier's answer as HTML: a bar for each domain, a line at the threshold, a verdict."""
    threshold, best = answer["threshold"], answer["best_domain"]
    rows = []
    for name, score in answer["all_similarities"].items():
        share, line = (f"{100 * min(max(value, 0), 1):.1f}%" for value in (score, threshold))
        fill = f"linear-gradient(90deg, {'#0072b2' if name == best else '#9aa5b1'} {share}, #8883 0)"
        mark = f"linear-gradient(90deg, #0000 {line}, currentColor 0 calc({line} + 2px), #0000 0)"
        name = html.escape(name)
        rows.append(
            f'<div style="display:flex;gap:8px;margin:2px 0" data-domain="{name}">'
            f'<span style="flex:0 0 95px;text-align:right">{name}</span>'
            f'<span style="flex:1;background:{mark},{fill}"></span><span>{score:.2f}</span></div>'
        )
    verdict = f"<b>{html.escape(best)}</b>" if best else "<b>none</b>: no domain reaches the line"
    return f"{''.join(rows)}<div>{verdict} (the line is at {threshold:.2f})</div>"


def describe(settings: Mapping[str, Any]) -> str:
    """Return a drawing's settings as a line to read."""
    scales = [f"{settings[name]:g}" for name in ("guidance_scale", "domain_scale") if name in settings]
    how = f"{settings['guidance']} {' + '.join(scales)}"
    if "guidance_interval" in settings:
        how += " from {:g} to {:g} of the way".format(*settings["guidance_interval"])
    steps = f"{settings['num_inference_steps']} steps of {settings['scheduler']}"
    return f"{_who(settings)} · {how} · {steps} · seed {settings['seed']} · {settings['run']}"


def _who(settings: Mapping[str, Any]) -> str:
    return "base model" if settings["model"] == BASE else settings["domain"]


def thumbnail(drawing: Drawing, on_click: Callable[[], None]) -> widgets.Widget:
    """Return a small picture that can be clicked, with its settings as tooltip."""
    small = drawing.image.copy()
    small.thumbnail((2 * THUMB, 2 * THUMB))
    name = f"dasd-thumbnail-{next(_numbers)}"
    text = f"{describe(drawing.settings)}: {drawing.settings['prompt']}"
    square = {"width": f"{THUMB}px", "height": f"{THUMB}px", "padding": "0"}
    button = widgets.Button(tooltip=text, layout=square)
    button.add_class("dasd-thumbnail").add_class(name)
    button.on_click(lambda _button: on_click())
    data = base64.b64encode(small._repr_png_()).decode()
    look = f'.{name} {{background: url("data:image/png;base64,{data}") center / cover !important;}}'
    below = f"{html.escape(_who(drawing.settings))}<br>seed {drawing.settings['seed']}"
    caption = f'<style>{look}</style><div style="font-size:11px;line-height:1.3">{below}</div>'
    return widgets.VBox([button, widgets.HTML(caption)], layout={"width": f"{THUMB + 8}px"})


def playground(pipeline: Any, run: str | Path, **options: Any) -> widgets.Widget:
    """Return the form for a `DasdPipeline` and the run it was loaded from; options: `prompt` and `seed`."""
    return Playground(Loaded(pipeline, run), **options).widget


def served() -> widgets.Widget:
    """Return the form for the run and config that `dasd playground` serves, or an error."""
    try:
        given = json.loads(os.environ[SETTINGS])
        return Playground(drawings.load(given["run"], Config.from_dict(given["config"]))).widget
    except DasdError as error:
        return widgets.HTML(note(str(error)))


def serve(run: Path, config: Config, port: int | None, browser: bool) -> None:
    """Run Voilà until Ctrl-C or SIGTERM; say its address, which opens by a token, once the page answers."""
    from voila.app import Voila  # optional

    port, token = choose_port(port), secrets.token_urlsafe(16)
    given = {"run": str(run.absolute()), "config": config.to_dict()}
    os.environ[SETTINGS] = json.dumps(given)  # kernels inherit it; it is read as data, never run
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    said = f"The playground of {run}: http://{HOST}:{port}/?token={token}\nCtrl-C ends it."
    threading.Thread(target=_say_when_it_answers, args=(port, said), daemon=True).start()
    options = [f"ip={HOST}", "port_retries=0", f"token={token}", "log_level=ERROR"]
    words = [str(PAGE), f"--port={port}", *(f"--Voila.{option}" for option in options)]
    words += ["--VoilaConfiguration.show_tracebacks=False", *([] if browser else ["--no-browser"])]
    Voila.launch_instance(argv=words)


def choose_port(wanted: int | None) -> int:
    """Return the wanted port, or DasdError where it is in use; of none PORT, or another free one."""
    for number in [wanted] if wanted else [PORT, 0]:
        with contextlib.suppress(OSError), socket.create_server((HOST, number)) as trial:
            return trial.getsockname()[1]
    raise DasdError(f"Port {wanted} cannot be used: choose another by --port, or leave it out.")


def _say_when_it_answers(port: int, said: str) -> None:
    while True:
        with contextlib.closing(http.client.HTTPConnection(HOST, port, timeout=60)) as connection:
            try:
                connection.request("HEAD", "/static/none")  # any answer does
                connection.getresponse()
                break
            except (OSError, http.client.HTTPException):
                time.sleep(0.1)
    print(said, file=sys.stderr, flush=True)
