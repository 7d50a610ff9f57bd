"""A picture and the choices it came from: drawn, saved as a PNG that says how, read, and drawn again."""

import contextlib
import dataclasses
import hashlib
import itertools
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, PngImagePlugin

from dasd_utils import sampling
from dasd_utils.config import ROOT, Calibration, Config, DasdError, resolve
from dasd_utils.runtime import files

AUTO = "auto"  # the domain that the classifier finds
BASE, ADAPTED = "base", "adapted"  # the model, in the settings
KEY = "dasd"  # of the PNG's text
SAMPLERS = {"ddim": "DDIM", "ddpm": "DDPM", "dpm++": "DPM++ 2M", "unipc": "UniPC", "pndm": "PNDM",
            "euler": "Euler"}  # fmt: skip
Settings = Mapping[str, Any]


class Drawing(NamedTuple):
    """An image with all it can be drawn again from."""

    image: Image.Image
    settings: Settings


class Loaded:
    """A run's pipeline, with what names the run (its folder, or its adapter's) in a drawing's settings."""

    def __init__(self, pipeline: sampling.DasdPipeline, run: str | Path) -> None:
        self.pipeline = pipeline
        self.run, folder = sampling.run_places(run)
        parts = sorted(path for name in sampling.adapters.FILES for path in folder.glob(name))
        digests = b"".join(hashlib.sha256(path.read_bytes()).digest() for path in parts)
        inside = self.run.is_relative_to(ROOT)
        name = self.run.relative_to(ROOT).as_posix() if inside else self.run.name  # no path of this machine
        self.identity = {"run": name, "adapter": hashlib.sha256(digests).hexdigest()[:16]}
        self._lock = threading.Lock()  # one thread fits the classifier, another may use it

    def calibration(self, name: str | None) -> Calibration:
        """Return how a domain, or for None the source, is sampled."""
        config = self.pipeline.config
        return (config.domain(name) if name else config.source).calibration

    def classify(self, prompt: str) -> dict[str, Any]:
        """Return what the pipeline's classifier says, with its "threshold"; DasdError for an empty prompt."""
        with self._lock:
            classifier = self.pipeline.classifier
        return classifier.classify(prompt) | {"threshold": classifier.threshold}


def load(run: str | Path, config: Config | None = None) -> Loaded:
    """Load a run as `sampling.load_trained_pipeline` does."""
    return Loaded(sampling.load_trained_pipeline(run, config), run)


def draw(
    loaded: Loaded, prompt: str, domain: str | None, calibration: Calibration, seed: int, beside: bool = False
) -> list[Drawing]:
    """Return a drawing, with `beside` the base's before it; domain: a name, AUTO, or None for the base."""
    if domain == AUTO:
        domain = loaded.classify(prompt)["best_domain"]
    settings = {"prompt": prompt, "domain": domain, **calibration.settings(), "seed": seed}
    drawn = ADAPTED if domain else BASE  # where the prompt has a learned token, too
    models = (BASE, drawn) if beside else (drawn,)
    return [_draw(loaded, {**settings, **loaded.identity, "model": model}) for model in models]


def draw_again(source: str | Path | Settings, loaded: Loaded | None = None) -> Image.Image:
    """Return the image of a saved PNG or a drawing's settings, bit for bit; DasdError for another adapter."""
    settings = source if isinstance(source, Mapping) else read(source)
    loaded = loaded or load(settings["run"])
    if loaded.identity["adapter"] != settings["adapter"]:
        raise DasdError(f"The adapter {settings['adapter']} of {settings['run']} drew the image, and in "
                        f"{loaded.run} is another one: load the run as it was.")  # fmt: skip
    return _draw(loaded, settings).image


def _draw(loaded: Loaded, settings: Settings) -> Drawing:
    pipeline = loaded.pipeline
    given = {name: settings[name] for name in ("domain", "seed")} | {"settings": calibration(settings)}
    with pipeline.base() if settings["model"] == BASE else contextlib.nullcontext():
        image, found, used = pipeline.generate(settings["prompt"], **given)
    is_target = found in {domain.name for domain in pipeline.config.domains}
    model = settings["model"] if is_target else BASE
    return Drawing(image, {**settings, "domain": found, "model": model, "token": used["token"]})


def calibration(settings: Settings) -> Calibration:
    """Return how a drawing was sampled."""
    names = {field.name for field in dataclasses.fields(Calibration)} & settings.keys()
    return Calibration(**{name: settings[name] for name in names})


def save(drawing: Drawing, folder: str | Path) -> Path:
    """Write a PNG with its settings, as JSON and as A1111 writes them, under a free name; return the path."""
    image, settings = drawing
    prompt, token = settings["prompt"], settings["token"]
    prompt = f"{token} {prompt}" if token and token not in prompt else prompt
    values = {
        "Steps": settings["num_inference_steps"],
        "Sampler": SAMPLERS[settings["scheduler"]],
        "CFG scale": settings["guidance_scale"],
        "Seed": settings["seed"],
        "Size": f"{image.width}x{image.height}",
        "Model": settings["run"] if settings["model"] == ADAPTED else BASE,
        "Guidance": settings["guidance"],
    }
    listed = ", ".join(f"{name}: {value}" for name, value in values.items())
    info = PngImagePlugin.PngInfo()
    info.add_text(KEY, json.dumps(settings))
    info.add_text("parameters", f"{prompt}\n{listed}")
    name = f"{settings['domain'] or 'none'}_{settings['model']}_{settings['seed']}"
    numbers = (resolve(folder) / f"{name}_{number}.png" for number in itertools.count())
    path = next(path for path in numbers if not path.exists())
    with files.atomic_write(path, "The image") as temporary:
        image.save(temporary, format="PNG", pnginfo=info)
    return path


def read(path: str | Path) -> Settings:
    """Return the settings that `save` wrote into a PNG; DasdError if it is none or holds none."""
    try:
        with Image.open(path) as image:
            image.load()  # text may follow the pixels
            settings = json.loads(getattr(image, "text", {})[KEY])
    except OSError as error:
        raise DasdError(f"The image {path} cannot be read: {error.strerror or error}.") from None
    except (KeyError, ValueError, RecursionError):
        settings = None
    needed = {"prompt", "domain", "seed", "model", "run", "adapter", "guidance", "scheduler"}
    if not isinstance(settings, dict) or not settings.keys() >= needed:
        raise DasdError(f"{path} does not say how it was drawn: only images that the playground saved do.")
    return settings
