"""What the commands share: how one is made, their options, the run they use, and how they end."""

import contextlib
import copy
import dataclasses
import functools
import gc
import inspect
import itertools
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, get_type_hints

import typer
from typer.models import OptionInfo

from dasd_utils.config import Config, DasdError, portable, read_json, resolve
from dasd_utils.profiles import PROFILES, SIZE_FIELDS

DEBUG = {"on": False}
PROCESS = int(os.environ.get("RANK", 0))  # of those that `accelerate launch` started
CONFIGS = "the config's"  # shown as a default
TRAINED = ("method", "seed", "lora", "alignment", "training")  # what of a config decides the weights
METAVARS = {int: "N", str: "NAME", Path: "FOLDER", float: "X"}  # unless an option has its own
METAVARS |= {kind | None: name for kind, name in METAVARS.items()}
Completion = Callable[[], Iterable[str]] | None

START = "Start here"
RUNS = "Train a model and use it"
SHARE = "Hand it to others"
STUDY = "Study methods"
UPKEEP = "Build and look after"

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"token_normalize_func": lambda name: name.replace("-", "_")},  # --output-dir as well
    epilog="Exit status: 0 done, 1 an error that you can fix, 2 a fault of the program, 130 stopped.",
)


def option(default: Any, text: str, *names: str, complete: Completion = None, **settings: Any) -> Any:
    """Return an option for typer: its help, its spellings if others, and what the Tab key offers."""
    return typer.Option(default, *names, help=text, autocompletion=complete, **settings)


def argument(text: str, default: Any = ..., complete: Completion = None, **settings: Any) -> Any:
    """Return an argument for typer, as `option` does."""
    return typer.Argument(default, help=text, autocompletion=complete, **settings)


def path(text: str | Path) -> Path:
    """Return a path of the command line: a relative one starts at the present folder."""
    if not str(text).strip():
        raise typer.BadParameter("It is empty: name a file or a folder.")
    return resolve(text if str(text).startswith("~") else Path.cwd() / text)


def folder_or_name(text: str) -> str:
    """Return the path of what is a folder here; anything else, a hub id for example, as it is."""
    return portable(path(text)) if os.path.isdir(text) else text


def run_folders() -> list[str]:
    """Return the run folders below data/runs, newest first."""
    places = ("*/config.json", "*/*/config.json", "*/*/*/config.json")
    found = [file.parent for place in places for file in Path("data/runs").glob(place)]
    return [str(run) for run in sorted(found, key=lambda run: run.stat().st_mtime, reverse=True)]


AUTO = "tiny, sd15 or auto: sd15 where a GPU has 8 GB or more, else tiny."
LOGGED = """Where losses, pictures and scores are logged: auto (TensorBoard where it is installed), none, or \
names with commas, as tensorboard,wandb."""
BASE = "A base model in the place of the config's: a folder in the layout of diffusers, or a hub id."
DATA = "A folder, or a hub id, in the place of that domain's data; may be given again."
JSON_OF = "JSON of the fields that differ from the profile's; its paths start at the repository."
RUN_OR = "A run folder or an adapter folder."
DOMAINS = dict.fromkeys(domain["name"] for profile in PROFILES.values() for domain in profile["domains"])
KNOWN_PROFILES = ("auto", *PROFILES)
PROFILE = option("auto", AUTO, complete=lambda: KNOWN_PROFILES)
SEED = option(None, "Seed of everything that is random.", show_default=CONFIGS)
LOGS = ("auto", "none", "tensorboard", "wandb", "mlflow", "trackio")
TRACKING = option(None, LOGGED, metavar="NAMES", show_default=CONFIGS, complete=lambda: LOGS)
WANTED = "What the picture should show."
RUN = argument(RUN_OR, metavar="RUN", complete=run_folders)
WORKERS = option(1, "Processes that share the work and the cores.", min=1)
SCHEDULER = option(None, "A dask scheduler, tcp://host:8786: its workers do the work.", metavar="ADDRESS")
FORCE = option(False, "Replace what is there.")
AS_JSON = option(False, "Print the result as JSON, for a script.", "--json")


def command(panel: str, called: str | None = None, **settings: Any) -> Callable[..., Callable[..., None]]:
    """Return a decorator that makes a function a command of `dasd`.

    It returns its result, which `--json` prints, the text for a person and, if any, an error to end with; one
    that returns nothing has no `--json`. A parameter whose type is a dataclass stands for an option a field.
    """

    def decorate(work: Callable[..., Any]) -> Callable[..., None]:
        groups = {name: kind for name, kind in get_type_hints(work).items() if dataclasses.is_dataclass(kind)}
        parameters = []
        for name, each in inspect.signature(work).parameters.items():
            group = inspect.signature(groups[name]).parameters.values() if name in groups else [each]
            kinds = get_type_hints(groups.get(name, work))
            parameters += [_parameter(one.name, kinds[one.name], one.default) for one in group]
        if inspect.signature(work).return_annotation != "None":
            parameters.append(_parameter("as_json", bool, AS_JSON))
        defaults = {each.name: getattr(each.default, "default", None) for each in parameters}

        @functools.wraps(work)
        def run(**given: Any) -> None:
            given = defaults | given
            as_json = given.pop("as_json", False)
            for group, kind in groups.items():
                given[group] = kind(**{each.name: given.pop(each.name) for each in dataclasses.fields(kind)})
            result, text, *wrong = work(**given) or (None, None)
            if PROCESS == 0 and text is not None:
                typer.echo(json.dumps(result, indent=2, default=str) if as_json else text)
            if any(wrong):
                raise DasdError(*wrong)

        run.__signature__ = inspect.Signature(parameters)
        return app.command(called, rich_help_panel=panel, **settings)(run)

    return decorate


def _parameter(name: str, kind: Any, default: Any) -> inspect.Parameter:
    """Return typer's parameter; an option without name and metavar has the parameter's, and its type's."""
    info = copy.copy(default)
    if "Path" in str(kind):  # a path, None or one, a list of them
        info.parser = path
    if isinstance(info, OptionInfo):
        name_of = f"--{name}/--no-{name}" if default.default is True else f"--{name}"
        info.param_decls = info.param_decls or (name_of,)
        info.metavar = info.metavar or METAVARS.get(kind)
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=info, annotation=kind)


@dataclass
class Settings:
    """The options that name a config."""

    profile: str = PROFILE
    config: Path | None = option(None, JSON_OF, metavar="FILE")
    base: str | None = option(None, BASE, metavar="BASE", show_default=CONFIGS)
    data: list[str] | None = option(None, DATA, metavar="DOMAIN=FOLDER", show_default=CONFIGS)

    def __post_init__(self) -> None:
        for name, value in vars(self).items():  # those that were not given
            setattr(self, name, getattr(value, "default", value))

    def read(self, method: str | None = None, **changes: Any) -> Config:
        """Return the file's config, or the profile's, with the command line's changes (None: none)."""
        named = {"profile": self.profile} | ({} if method is None else {"method": method})
        config = Config.load(self.config, **named) if self.config else Config.setup(**named)
        if self.profile not in ("auto", config.profile):
            raise DasdError(f"{self.config} is of the profile {config.profile}: leave out --profile.")
        config = config.replace(**{name: portable(value) if isinstance(value, Path) else value
                                   for name, value in changes.items() if value is not None})  # fmt: skip
        return config.replace(**self.places(config))

    def by_auto(self) -> bool:
        """Return whether "auto" chose the profile, and with it the batch sizes, which the file leaves out."""
        given = read_json(self.config, "The config file") if self.config else {}
        named = {*given, *given.get("training", {}), *given.get("model", {})}
        return self.profile == given.get("profile", "auto") == "auto" and not named & SIZE_FIELDS

    def places(self, config: Config) -> dict[str, Any]:
        """Return the fields that `base` and `data` change; the revision of what they replace is dropped."""
        changes: dict[str, Any] = {}
        if self.base is not None:
            base, variant = folder_or_name(self.base), config.model.base_variant
            has_variant = any(resolve(base).glob(f"unet/*.{variant}.safetensors"))
            changes = {"base": base, "base_revision": None, "base_variant": variant if has_variant else None}
        for text in self.data or ():
            name, _, place = text.partition("=")
            if not place.strip():
                raise DasdError(f"--data is {text!r}; it must be DOMAIN=FOLDER, like satellite=photos.")
            was = config.domain(name)
            now = dataclasses.replace(was, data=folder_or_name(place), revision=None)
            domains = tuple(now if each is was else each for each in config.domains)
            config = config.replace(source=now if was is config.source else config.source, domains=domains)
            changes |= {"source": config.source, "domains": config.domains}
        return changes


@dataclass
class OfRun(Settings):
    """The options that name the config of a run: its own, unless they say another."""

    profile: str = option("auto", AUTO, show_default="the run's, else auto", complete=lambda: KNOWN_PROFILES)


@dataclass
class ChosenRun(OfRun):
    """The options that name a run."""

    checkpoint: Path | None = option(None, RUN_OR, show_default="--output_dir", complete=run_folders)
    output_dir: Path | None = option(
        None, "The run folder.", show_default="that of --checkpoint, else the config's", complete=run_folders
    )

    def find(self, **changes: Any) -> tuple[Path, Config]:
        """Return the run's folder and its config with `changes`; a given file replaces all but TRAINED."""
        from dasd_utils import sampling

        folder = self.checkpoint or self.output_dir or resolve(self.read(**changes).output_dir)
        run, adapter = sampling.run_places(folder)
        changes["output_dir"] = self.output_dir or run
        if not (run / "config.json").exists():
            if adapter.is_dir() and self.config is None and self.profile == "auto":
                raise DasdError(f"{run} holds no config.json, which names the base model: give its config by "
                                "--config, or its profile by --profile.")  # fmt: skip
            return folder, self.read(**changes)
        stored = Settings(config=run / "config.json", base=self.base, data=self.data)
        own = stored.read()
        if self.config:
            kept = {name: getattr(own, name) for name in TRAINED if changes.get(name) is None}
            return folder, self.read(**changes | kept)
        if self.profile not in ("auto", own.profile):
            raise DasdError(f"{run} is of the profile {own.profile}: leave out --profile, or give --config.")
        return folder, stored.read(**changes)

    def open(self, **changes: Any) -> Any:
        """Load the run's pipeline, which lets each of several processes sample its part of the prompts."""
        with garbage_kept():
            from dasd_utils import sampling
            from dasd_utils.runtime import processes

            pipeline = sampling.load_trained_pipeline(*self.find(**changes))
        pipeline.shared = processes.count() > 1
        return pipeline


def run_folder(place: Path) -> Path:
    """Return the folder of a run, whose adapter's folder may be named instead."""
    from dasd_utils import sampling

    return sampling.run_places(place)[0]


@contextlib.contextmanager
def garbage_kept() -> Iterator[None]:
    """Do not collect garbage inside the `with`, among half a million objects of libraries that stay."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def check_free(path: Path, force: bool) -> Path:
    """Return the path; DasdError where something stands there, unless it may be replaced."""
    if path.exists() and not force:
        raise DasdError(f"{path} is there already: replace it by --force, or name another place.")
    return path


def free_path(path: Path) -> Path:
    """Make an empty file of that path, with a number behind its name where something is there; return it."""
    names = itertools.chain([path], (path.with_stem(f"{path.stem}-{n}") for n in itertools.count(1)))
    while True:
        with contextlib.suppress(FileExistsError):
            free = next(names)
            free.touch(exist_ok=False)
            return free


def with_rows(path: Path, rows: list[dict[str, Any]], *tables: str) -> tuple[dict[str, Any], str]:
    """Return the result and the text of a command that wrote rows to a file."""
    return {"results": str(path), "rows": rows}, "\n\n".join([*tables, str(path)])


def fail(message: str, status: int) -> NoReturn:
    """Leave with one line on standard error, and with the traceback after `dasd --debug`."""
    if DEBUG["on"]:
        traceback.print_exc()
    name = "dasd" if PROCESS == 0 else f"dasd, process {PROCESS}"
    with contextlib.suppress(OSError):  # where this stream is full too
        typer.echo(f"{name}: {message}", err=True)
    sys.exit(status)


def leave() -> None:
    """End together with the other processes: one that only exits breaks the connection of the others."""
    from dasd_utils.runtime import processes

    processes.end()
