"""The commands that look after the course and the runs: from `dasd notebooks` to `dasd pretrain`."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Annotated, Any

import typer

from dasd_utils.apps.cli import options
from dasd_utils.apps.cli.options import option
from dasd_utils.config import Config, DasdError, resolve

commands = typer.Typer()
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}  # -p NAME VALUE
CourseDir = option(Path, "Of executed copies, runs, figures and results.", "--output_dir", metavar="FOLDER")
Only = option(str | None, "Comma-separated beginnings of names: 03,04", metavar="NAMES")
Stale = option(bool, "Only those that `dasd fresh` lists.", "--stale")
Update = option(bool, "Make the copies the tracked notebooks, with their stamp.", "--update")
Notebooks = Annotated[
    list[Path] | None, typer.Argument(help="Notebooks to look at.", show_default="all of them")
]
Check = option(bool, "Write nothing; status 1 if one is old.", "--check")
Steps = option(int, "First steps to do again.", min=1)
Stage = option(
    list[str] | None,
    "Only this stage; may be given again.",
    metavar="NAME",
    show_default="all that is missing",
)
BaseDir = option(str, "Where the base is, or will be.", "--output_dir", metavar="FOLDER")
PretrainSeed = option(int, "Seed of everything that is random.")
Threads = option(int | None, "CPU threads of this process.", min=1, show_default="PyTorch's")
Evaluate = option(bool, "Measure the finished base instead.", "--evaluate")
NumImages = option(int, "Samples of each domain to measure.", "--num_images", min=2)


@commands.command(rich_help_panel=options.UPKEEP, context_settings=PASS_ON)
def notebooks(
    context: typer.Context,
    profile: options.Profile = "auto",
    output_dir: CourseDir = Path("data/runs/course"),
    only: Only = None,
    seed: options.Seed = None,
    stale: Stale = False,
    update: Update = False,
    as_json: options.AsJson = False,
) -> None:
    """Run the notebooks in order through papermill; `-p NAME VALUE` sets a parameter."""
    lessons = load_notebooks_module()
    values = {"profile": options.read_config(profile, None).profile, **read_parameters(context.args)}
    values |= {"seed": seed} if seed is not None else {}
    paths = lessons.find_notebooks(only.split(",") if only else None)
    paths = [path for path in paths if lessons.stale(path)] if stale else paths

    def report(one: Any) -> None:
        typer.echo(f"{one.name}: {one.seconds:.0f} s", err=True)

    done = lessons.run_notebooks(paths, output_dir, values, report=report, to_store=update) if paths else []
    if update:
        lessons.store_outputs(done)
    rows = [{"notebook": one.name, "path": str(one.path), "seconds": round(one.seconds, 1)} for one in done]
    total = sum(one.seconds for one in done)
    options.show(rows, as_json, f"{len(done)} notebooks in {total:.0f} s: {Path(output_dir).resolve()}")


def load_notebooks_module() -> Any:
    """Return `dasd_utils.apps.notebooks`; DasdError where the packages are missing that it needs."""
    missing = [name for name in ("nbformat", "papermill") if importlib.util.find_spec(name) is None]
    if missing:
        raise DasdError(f"{' and '.join(missing)} is missing here: pip install papermill nbformat ipykernel "
                        "(or dasd-utils[batch]).")  # fmt: skip
    from dasd_utils.apps import notebooks

    return notebooks


def read_parameters(words: list[str]) -> dict[str, Any]:
    """Read `-p NAME VALUE` triples; a value that is JSON (a number, true, a list) is read as such."""
    values, rest = {}, list(words)
    while rest:
        if rest[0] not in ("-p", "--parameter") or len(rest) < 3:
            raise DasdError(f"Unknown option {rest[0]!r}. Parameters are given as: -p NAME VALUE")
        _, name, text = rest[:3]
        rest = rest[3:]
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text
    return values


@commands.command(rich_help_panel=options.UPKEEP)
def fresh(files: Notebooks = None, only: Only = None, as_json: options.AsJson = False) -> None:
    """List the notebooks whose stored outputs were not made, or not completely, by the present code.

    Exit status 1 if there are any: `dasd notebooks --stale --update` renews them.
    """
    lessons = load_notebooks_module()
    paths = files or lessons.find_notebooks(only.split(",") if only else None)
    for path in paths:
        if not path.is_file():
            raise DasdError(f"There is no notebook {path}.")
    rows = [{"notebook": p.stem, "faults": lessons.faults(p), "changed": lessons.stale(p)} for p in paths]
    wrong = [row for row in rows if row["faults"] or row["changed"]]
    lines = [f"{row['notebook']}: {', '.join([*row['faults'], *row['changed']])}" for row in wrong]
    options.show(rows, as_json, "\n".join(lines) or f"{len(rows)} notebooks are fresh.")
    if wrong:
        raise DasdError(f"{len(wrong)} of {len(rows)} notebooks are to be run again: `make notebooks` "
                        "runs all, `dasd notebooks --profile tiny --stale --update` these.")  # fmt: skip


@commands.command(rich_help_panel=options.UPKEEP)
def badges(check: Check = False, as_json: options.AsJson = False) -> None:
    """Write Colab badges and setup cells of the notebooks, from address and version in pyproject.toml."""
    lessons = load_notebooks_module()
    paths = lessons.find_notebooks()
    found = [path.name for path in (lessons.outdated_badges if check else lessons.write_badges)(paths)]
    where = ", ".join(lessons.repository())
    text = f"{len(found)} of {len(paths)} notebooks {'are old' if check else 'changed'}"
    options.show(found, as_json, "\n".join([*found, f"{text}: {where}"]))
    if check and found:
        raise DasdError(f"{text}: `dasd badges` writes them anew.")


@commands.command(rich_help_panel=options.UPKEEP)
def encode(
    profile: options.Profile = "auto", config: options.ConfigFile = None, as_json: options.AsJson = False
) -> None:
    """Fill the latent cache. Processes that share it, here or elsewhere, divide the work."""
    from dasd_utils import latents, models
    from dasd_utils.runtime import latent_cache, processes

    settings = options.read_config(profile, config)
    parts = models.load_parts(settings)
    models.add_domain_tokens(parts, settings.domains)  # captions are counted with them
    *_, sampler = latents.create_datasets(settings, parts.tokenizer)
    sampler.encode(parts.vae, processes.default_device())
    show_cache(settings, latent_cache.stored(settings), "There are", as_json)


@commands.command(rich_help_panel=options.UPKEEP)
def verify(run: options.Run, steps: Steps = 3, as_json: options.AsJson = False) -> None:
    """Check a run: its files by their hashes, its first steps by doing them again."""
    from dasd_utils.apps import verify

    rows = verify.verify(run, steps)
    lines = [f"{'ok' if row['ok'] else 'NOT OK':6}  {row['what']}: {row['found']}" for row in rows]
    options.show(rows, as_json, "\n".join(lines))
    if not all(row["ok"] for row in rows):
        raise DasdError(f"{run} does not agree with what it says of itself.")


@commands.command(rich_help_panel=options.UPKEEP)
def clean(
    profile: options.Profile = "auto", config: options.ConfigFile = None, as_json: options.AsJson = False
) -> None:
    """Remove every cached latent, and nothing else."""
    from dasd_utils.runtime import latent_cache

    settings = options.read_config(profile, config)
    show_cache(settings, latent_cache.clear(settings), "Removed", as_json)


def show_cache(config: Config, found: tuple[int, int], verb: str, as_json: bool) -> None:
    """Print shards and bytes of the latent cache."""
    place = str(resolve(config.data.cache_dir))
    count, size = found
    text = f"{verb} {count} shards, {size / 1e6:.1f} MB: {place}"
    options.show({"cache_dir": place, "shards": count, "bytes": size}, as_json, text)


@commands.command(rich_help_panel=options.UPKEEP)
def pretrain(
    stage: Stage = None,
    output_dir: BaseDir = "data/tiny-sd",
    seed: PretrainSeed = 0,
    threads: Threads = None,
    evaluate: Evaluate = False,
    num_images: NumImages = 500,
    as_json: options.AsJson = False,
) -> None:
    """Build the embedded base model from the toy world, in hours; or measure it."""
    import torch

    from dasd_utils.pretrain import build

    if threads:
        torch.set_num_threads(threads)
    if evaluate and stage:
        raise DasdError("--evaluate measures a finished base; it takes no --stage.")
    if not evaluate:
        settings = build.PretrainConfig(seed=seed, output_dir=output_dir)
        made = str(build.pretrain(settings, tuple(stage) if stage else build.STAGES))
        options.show({"base": made}, as_json, made)
        return
    from dasd_utils.pretrain.evaluate import measure_base

    path, rows = measure_base(output_dir, seed, num_images)
    options.show_rows(path, rows, as_json, "\n".join(map(_line, rows)))


def _line(row: dict[str, Any]) -> str:
    interval = f"{row['value']:8.3f} [{row['low']:.3f}, {row['high']:.3f}] n = {row['n']}"
    return f"{row['metric']:26} {row['domain']:18} {interval}"
