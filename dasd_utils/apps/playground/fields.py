"""The playground's fields: what each holds, how they lie on the page, and the pictures in it."""

from __future__ import annotations

import base64
import dataclasses
import html
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from dasd_utils.apps.playground import drawings
from dasd_utils.apps.playground.drawings import AUTO, Choices, Drawing, Loaded
from dasd_utils.config import Calibration
from dasd_utils.guidance import BASE

RULES = {"classifier-free": "cfg", "Domain Guidance": "domain", "decoupled": "decoupled",
         "unconditional": "unconditional"}  # fmt: skip
SHOWN, THUMB = 300, 84  # pixels on the screen, whatever an image has
FOUND, OTHER = "#0072b2", "#9aa5b1"
_numbers = itertools.count()


class Fields:
    """The widgets by name, and the settings they hold."""

    def __init__(self, loaded: Loaded, runs: Sequence[Path], prompt: str, seed: int) -> None:
        self.runs, wide = list(runs), {"width": "100%"}
        self.prompt = widgets.Textarea(
            prompt, placeholder="what the picture should show", rows=2, layout=wide
        )
        self.scores, self.said = widgets.HTML(layout=wide), widgets.HTML(layout=wide)
        self.domain = widgets.Dropdown(options=_domains(loaded), **_named("domain"))
        self.guidance = widgets.Dropdown(options=RULES, **_named("guidance"))
        self.scale = widgets.FloatSlider(4, min=0, max=12, step=0.25, **_named("to the prompt"))
        self.domain_scale = widgets.FloatSlider(2.5, min=0, max=8, step=0.25, **_named("to the domain"))
        self.steps = widgets.IntSlider(15, min=1, max=100, **_named("steps"))
        self.scheduler = widgets.Dropdown(options=list(drawings.SAMPLERS), **_named("scheduler"))
        self.seed = widgets.BoundedIntText(seed, min=0, max=2**31 - 1, **_named("seed"))
        self.dice = widgets.Button(description="another", tooltip="another seed", layout={"flex": "0 0 96px"})
        options = [(drawings.name_of(run), run) for run in self.runs]
        self.run = widgets.Dropdown(options=options, value=loaded.run, **_named("adapter"))
        self.beside = widgets.Checkbox(False, description="base model beside it", indent=False, layout=wide)
        self.generate = widgets.Button(description="Generate", button_style="primary")
        self.save = widgets.Button(description="Save", disabled=True, tooltip="PNG with its settings inside")
        self.folder = widgets.Text(drawings.place_for(loaded), **_named("save in"))
        flow = {"display": "flex", "flex_flow": "row wrap", "width": "100%"}
        self.pictures, self.history = widgets.Box(layout=flow), widgets.Box(layout=flow)
        self.guidance.observe(lambda _change: self._show_scales(), names="value")
        self.calibrate(loaded.calibration(None))

    def layout(self) -> widgets.Widget:
        """Return the page: the form at the left, pictures at the right, or below where it is narrow."""
        rows = [self.prompt, self.scores, self.domain, self.guidance, self.scale, self.domain_scale]
        rows += [self.steps, self.scheduler, widgets.HBox([self.seed, self.dice]), self.run, self.beside]
        rows += [widgets.HBox([self.generate, self.save]), self.said, self.folder]
        form = widgets.VBox(rows, layout={"flex": "1 1 320px", "max_width": "430px", "padding": "0 16px 0 0"})
        beside = [self.pictures, self.history]
        view = widgets.VBox(beside, layout={"flex": "2 1 320px", "min_width": "0"})
        both = {"display": "flex", "flex_flow": "row wrap", "width": "100%"}
        return widgets.Box([form, view], layout=both)

    def choices(self) -> Choices:
        """Return what is chosen in the form."""
        values = (self.prompt.value, self.domain.value, self.calibration(), self.seed.value)
        return Choices(*values, beside=self.beside.value)

    def calibration(self) -> Calibration:
        """Return how the form samples; a browser sends the 5 of a slider as 5.000000000000001."""
        scale, domain_scale = (round(slider.value, 6) for slider in (self.scale, self.domain_scale))
        return Calibration(scale, self.steps.value, self.scheduler.value, self.guidance.value, domain_scale)

    def calibrate(self, calibration: Calibration) -> None:
        """Set how to sample; sliders grow where a value is beyond their ends."""
        values = (calibration.guidance_scale, calibration.domain_scale, calibration.num_inference_steps)
        for slider, value in zip((self.scale, self.domain_scale, self.steps), values, strict=True):
            slider.max = max(slider.max, value)
            slider.value = value
        self.scheduler.value, self.guidance.value = calibration.scheduler, calibration.guidance
        self._calibrated = self.calibration()
        self._show_scales()

    def is_calibrated(self) -> bool:
        """Return whether how to sample is as it was set."""
        return self.calibration() == self._calibrated

    def put_back(self, settings: Mapping[str, Any]) -> None:
        """Put the settings of a drawing into the form."""
        names = {field.name for field in dataclasses.fields(Calibration)} & settings.keys()
        known = {value for _, value in self.domain.options}
        self.prompt.value, self.seed.value = settings["prompt"], settings["seed"]
        self.domain.value = settings["domain"] if settings["domain"] in known else None
        self.calibrate(Calibration(**{name: settings[name] for name in names}))

    def take(self, loaded: Loaded) -> None:
        """Offer the domains of another run; the prompt, and a domain that it knows, stay."""
        before, options = self.domain.value, _domains(loaded)
        self.domain.options = options
        self.domain.value = before if before in dict(options).values() else AUTO
        self.folder.value = drawings.place_for(loaded)

    def busy(self, busy: bool) -> None:
        """Disable what starts work while some is being done."""
        self.generate.disabled = self.run.disabled = busy

    def _show_scales(self) -> None:
        rule = self.guidance.value
        self.scale.layout.display = "none" if rule == "unconditional" else None
        self.domain_scale.layout.display = None if rule == "decoupled" else "none"


def _domains(loaded: Loaded) -> list[tuple[str, str | None]]:
    names = [(domain.name, domain.name) for domain in loaded.domains]
    return [("find it for me", AUTO), *names, ("none: the base model", None)]


def _named(text: str) -> dict[str, Any]:
    return {"description": text, "layout": {"width": "100%"}, "style": {"description_width": "95px"}}


def bars(answer: Mapping[str, Any]) -> str:
    """Return the classifier's answer as HTML: a bar for each domain, a line at the threshold, a verdict."""
    threshold = answer["threshold"]
    best = answer["best_domain"]
    rows = []
    for name, score in answer["all_similarities"].items():
        fill = f"width:{_percent(score)};background:{FOUND if name == best else OTHER}"
        rows.append(
            f'<div style="display:flex;align-items:center;gap:8px" data-domain="{html.escape(name)}">'
            f'<span style="flex:0 0 95px;text-align:right">{html.escape(name)}</span>'
            '<span style="flex:1;position:relative;height:12px;background:rgba(127,127,127,.18)">'
            f'<span style="position:absolute;inset:0 auto 0 0;{fill}"></span>'
            f'<span style="position:absolute;top:-2px;bottom:-2px;left:{_percent(threshold)};'
            'border-left:2px solid currentColor"></span></span>'
            f'<span style="flex:0 0 40px">{score:.2f}</span></div>'
        )
    verdict = f"<b>{html.escape(best)}</b>" if best else "<b>none</b>: no domain reaches the line"
    label = f"{verdict} (the line is at {threshold:.2f})"
    return f'<div style="line-height:1.5">{"".join(rows)}<div style="padding-left:103px">{label}</div></div>'


def _percent(score: float) -> str:
    """A cosine as a share of the bar; below 0 it is as unlike as any prompt."""
    return f"{100 * min(max(score, 0.0), 1.0):.1f}%"


def describe(settings: Mapping[str, Any]) -> str:
    """Return a drawing's settings as a line to read."""
    who = "base model" if settings["model"] == BASE else settings["domain"]
    scales = [f"{settings[name]:g}" for name in ("guidance_scale", "domain_scale") if name in settings]
    how = f"{settings['guidance']} {' + '.join(scales)}"
    steps = f"{settings['num_inference_steps']} steps of {settings['scheduler']}"
    return f"{who} · {how} · {steps} · seed {settings['seed']} · {settings['run']}"


def pictures(made: Sequence[Drawing]) -> list[widgets.Widget]:
    """Return drawings that lie side by side, each with its model below it."""
    layout = {"width": f"calc({100 / len(made):g}% - 8px)", "max_width": f"{SHOWN}px", "margin": "0 8px 0 0"}
    found = []
    for drawing in made:
        image = widgets.Image(value=drawing.image._repr_png_(), format="png", layout={"width": "100%"})
        below = widgets.HTML(f'<div style="text-align:center">{html.escape(_who(drawing))}</div>')
        found.append(widgets.VBox([image, below], layout=layout))
    return found


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
    below = f"{html.escape(_who(drawing))}<br>seed {drawing.settings['seed']}"
    caption = f'<style>{look}</style><div style="font-size:11px;line-height:1.3">{below}</div>'
    return widgets.VBox([button, widgets.HTML(caption)], layout={"width": f"{THUMB + 8}px"})


def _who(drawing: Drawing) -> str:
    return "base model" if drawing.settings["model"] == BASE else drawing.settings["domain"]
