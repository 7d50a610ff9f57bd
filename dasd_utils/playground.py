"""A small form for trying prompts: only for a person at the keyboard, no lesson depends on it."""

from __future__ import annotations

import dataclasses
import html
import io
from typing import TYPE_CHECKING, Any

from PIL import Image

from dasd_utils.bars import is_live
from dasd_utils.config import Calibration, DasdError

if TYPE_CHECKING:
    import ipywidgets

    from dasd_utils.sampling import DasdPipeline

__all__ = ["is_live", "playground"]

AUTO, BASE = "auto", "none (base model)"
SHOWN_WIDTH = 320  # pixels on the screen, whatever the image has


def playground(
    pipeline: DasdPipeline, prompt: str = "an aerial view of an airport", seed: int = 0
) -> ipywidgets.Widget:
    """Return a form: prompt, domain ("auto" asks the classifier), guidance, seed, a button and the image.

    Choosing a domain sets the slider to its calibrated guidance scale. What the pipeline refuses is said in
    the line below the image.
    """
    import ipywidgets as widgets  # only a live session needs it

    names = [AUTO, *pipeline.domain_tokens, BASE]
    first = pipeline.config.domains[0].calibration.guidance_scale
    form = {
        "prompt": widgets.Text(prompt, description="prompt", layout={"width": "480px"}),
        "domain": widgets.Dropdown(options=names, description="domain"),
        "guidance": widgets.FloatSlider(first, min=1.0, max=10.0, step=0.5, description="guidance"),
        "seed": widgets.BoundedIntText(seed, min=0, max=2**31 - 1, description="seed"),
    }
    button = widgets.Button(description="Generate", button_style="primary")
    picture = widgets.Image(format="png", layout={"width": f"{SHOWN_WIDTH}px", "visibility": "hidden"})
    said = widgets.HTML()

    def choose_domain(change: dict[str, Any]) -> None:
        if change["new"] != AUTO:
            form["guidance"].value = _calibration(pipeline, _named(change["new"])).guidance_scale

    def generate(_button: Any) -> None:
        button.disabled, said.value = True, "…"
        try:
            image, said.value = draw(pipeline, **{name: field.value for name, field in form.items()})
            picture.value, picture.layout.visibility = _png(image), "visible"
        except DasdError as error:
            said.value = html.escape(str(error))
        finally:
            button.disabled = False

    form["domain"].observe(choose_domain, names="value")
    button.on_click(generate)
    return widgets.VBox([*form.values(), button, picture, said])


def draw(
    pipeline: DasdPipeline, prompt: str, domain: str, guidance: float, seed: int
) -> tuple[Image.Image, str]:
    """Return the image that the form asks for, and a line of HTML on how it was made."""
    name = pipeline.classify_prompt(prompt)["best_domain"] if domain == AUTO else _named(domain)
    settings = dataclasses.replace(_calibration(pipeline, name), guidance_scale=guidance)
    image, found, used = pipeline.generate(prompt, domain=name, seed=seed, settings=settings)
    facts = f"{used['scheduler']}, {used['num_inference_steps']} steps, guidance {guidance:g}, seed {seed}"
    return image, html.escape(f"{found or 'base model'} (token {used['token'] or 'none'}), {facts}")


def _named(choice: str) -> str | None:
    return None if choice == BASE else choice


def _calibration(pipeline: DasdPipeline, name: str | None) -> Calibration:
    return (pipeline.config.domain(name) if name else pipeline.config.source).calibration


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()
