"""A picture and the choices it came from: drawn, saved as a PNG that says how, read, and drawn again."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, PngImagePlugin

from dasd_utils import adapters, sampling
from dasd_utils.config import ROOT, Calibration, Config, DasdError, DomainConfig, resolve
from dasd_utils.guidance import ADAPTED, BASE
from dasd_utils.runtime import files

if TYPE_CHECKING:
    from dasd_utils.sampling import DasdPipeline

AUTO = "auto"  # the domain that the classifier finds
KEY = "dasd"  # of the PNG's text
SAMPLERS = {"ddim": "DDIM", "ddpm": "DDPM", "dpm++": "DPM++ 2M", "unipc": "UniPC", "pndm": "PNDM",
            "euler": "Euler"}  # fmt: skip
Settings = dict[str, Any]


@dataclass(frozen=True)
class Choices:
    """What a person chooses in the form."""

    prompt: str
    domain: str | None = AUTO  # a name, AUTO, or None for the base model
    calibration: Calibration = field(default_factory=Calibration)
    seed: int = 0
    beside: bool = False  # the base model's answer too: same prompt, noise and settings, adapter off


@dataclass(frozen=True)
class Drawing:
    """An image with all it can be drawn again from."""

    image: Image.Image
    settings: Settings


class Loaded:
    """A run's pipeline, with what names the run in a drawing's settings."""

    def __init__(self, pipeline: DasdPipeline, run: str | Path) -> None:
        """run: its folder, or that of its adapter."""
        self.pipeline, self.run = pipeline, sampling.run_folder(resolve(run))
        folder = self.run / "adapter" if (self.run / "adapter").is_dir() else self.run
        digest = hashlib.sha256()
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
        self.identity = {"run": name_of(self.run), "adapter": digest.hexdigest()[:16]}
        self._fitting = threading.Lock()  # one thread fits the classifier, another may use it

    @property
    def domains(self) -> tuple[DomainConfig, ...]:
        """The target domains of the run."""
        return self.pipeline.config.domains

    def calibration(self, name: str | None) -> Calibration:
        """Return how a domain, or for None the source, is sampled."""
        config = self.pipeline.config
        return (config.domain(name) if name else config.source).calibration

    def classify(self, prompt: str) -> dict[str, Any]:
        """Return what the pipeline's classifier says, with its "threshold"; DasdError for an empty prompt."""
        with self._fitting:
            classifier = self.pipeline.classifier
        return classifier.classify(prompt) | {"threshold": classifier.threshold}


def load(run: str | Path, config: Config | None = None) -> Loaded:
    """Load a run; raises what `sampling.load_trained_pipeline` does."""
    return Loaded(sampling.load_trained_pipeline(run, config), run)


def find_runs(config: Config, place: str | Path = "data/runs") -> list[Path]:
    """Return the folders of the shipped run and of those under `place` that learned from the config's base.

    The newest of the latter come first; three folders deep are looked into.
    """
    found = [path.parents[1] for depth in ("", "*/", "*/*/")
             for path in resolve(place).glob(f"{depth}*/adapter/{adapters.SUMMARY_FILE}")]  # fmt: skip
    found.sort(key=lambda run: (run / "adapter").stat().st_mtime, reverse=True)
    shipped = [resolve(config.shipped_run)] if config.shipped_run else []
    return [run for run in dict.fromkeys([*shipped, *found]) if _fits(run, config)]


def _fits(run: Path, config: Config) -> bool:
    with contextlib.suppress(DasdError):
        adapters.read_summary(run / "adapter")
        own = Config.load(run / "config.json").model
        return (own.base, own.base_revision, own.resolution) == (
            config.model.base, config.model.base_revision, config.model.resolution
        )  # fmt: skip
    return False


def draw(loaded: Loaded, choices: Choices) -> list[Drawing]:
    """Return one drawing, or with `beside` two, of which the first is the base model's.

    Raises what `DasdPipeline.generate` does.
    """
    name = choices.domain
    if name == AUTO:
        name = loaded.classify(choices.prompt)["best_domain"]
    settings = {"prompt": choices.prompt, "domain": name, **choices.calibration.settings()}
    settings |= {"seed": choices.seed, **loaded.identity}
    models = (BASE, ADAPTED) if choices.beside else (ADAPTED,)
    return [_draw(loaded, settings | {"model": model}) for model in models]


def draw_again(source: str | Path | Settings, loaded: Loaded | None = None) -> Image.Image:
    """Return the image of a saved PNG, or of a drawing's settings: on the same machine bit for bit.

    `loaded` saves the time to load the run. Raises DasdError if the run is missing or is not the one that
    drew.
    """
    settings = source if isinstance(source, dict) else read(source)
    loaded = loaded or load(settings["run"])
    here = loaded.identity["adapter"]
    if here != settings["adapter"]:
        raise DasdError(f"The adapter {settings['adapter']} of {settings['run']} drew the image, and in "
                        f"{loaded.run} is another one, {here}: load the run as it was.")  # fmt: skip
    return _draw(loaded, settings).image


def _draw(loaded: Loaded, settings: Settings) -> Drawing:
    fields = {each.name for each in dataclasses.fields(Calibration)}
    calibration = Calibration(**{name: settings[name] for name in fields & settings.keys()})
    pipeline = loaded.pipeline
    with pipeline.base() if settings["model"] == BASE else contextlib.nullcontext():
        image, found, used = pipeline.generate(
            settings["prompt"], domain=settings["domain"], seed=settings["seed"], settings=calibration
        )
    model = ADAPTED if found in {domain.name for domain in loaded.domains} else BASE
    model = BASE if settings["model"] == BASE else model
    return Drawing(image, settings | {"domain": found, "model": model, "token": used["token"]})


def save(drawing: Drawing, folder: str | Path) -> Path:
    """Write the image as a PNG that holds its settings, under a name that is free; return the path.

    The text "dasd" is JSON; "parameters" is what image viewers of the Stable Diffusion web interfaces read.
    Raises DasdError where the folder cannot be written.
    """
    settings = drawing.settings
    info = PngImagePlugin.PngInfo()
    info.add_text(KEY, json.dumps(settings))
    info.add_text("parameters", parameters(drawing))
    name = f"{settings['domain'] or 'none'}_{settings['model']}_{settings['seed']}"
    numbers = (resolve(folder) / f"{name}_{number}.png" for number in itertools.count())
    path = next(path for path in numbers if not path.exists())
    with files.atomic_write(path, "The image") as temporary:
        drawing.image.save(temporary, format="PNG", pnginfo=info)
    return path


def parameters(drawing: Drawing) -> str:
    """Return the settings in the two lines that AUTOMATIC1111's web interface writes into its images."""
    settings, (width, height) = drawing.settings, drawing.image.size
    prompt = settings["prompt"]
    token = settings["token"]
    if token and token not in prompt:
        prompt = f"{token} {prompt}"
    model = settings["run"] if settings["model"] == ADAPTED else "base"
    values = {"Steps": settings["num_inference_steps"], "Sampler": SAMPLERS[settings["scheduler"]]}
    values |= {"CFG scale": settings["guidance_scale"], "Seed": settings["seed"], "Size": f"{width}x{height}"}
    values |= {"Model": model, "Guidance": settings["guidance"]}
    return f"{prompt}\n{', '.join(f'{name}: {value}' for name, value in values.items())}"


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
    complete = isinstance(settings, dict) and settings.keys() >= needed
    if not complete or not isinstance(settings["run"], str):
        raise DasdError(f"{path} does not say how it was drawn: only images that the playground saved do.")
    return settings


def place_for(loaded: Loaded) -> str:
    """Return the folder for saved images: `generated` in the run, outside of it for one that is shipped."""
    shipped = loaded.pipeline.config.shipped_run
    if shipped and loaded.run == resolve(shipped):
        return "data/runs/playground"
    inside = loaded.run.is_relative_to(ROOT)
    return str(Path(name_of(loaded.run) if inside else loaded.run) / "generated")


def name_of(run: Path) -> str:
    """Return a run's folder as an image may name it: without a path of this machine."""
    return run.relative_to(ROOT).as_posix() if run.is_relative_to(ROOT) else run.name
