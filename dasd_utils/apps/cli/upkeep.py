"""The commands that build and look after what runs need: encode, clean, verify, pretrain."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dasd_utils.apps.cli import completion
from dasd_utils.apps.cli.options import COUNT, UPKEEP, AsJson, ConfigFile, Profile, read_config, show
from dasd_utils.config import ROOT, Config, DasdError, resolve

commands = typer.Typer()


@commands.command(rich_help_panel=UPKEEP)
def encode(
    profile: Profile = "auto",
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Fill the latent cache. Processes that share it, here or elsewhere, divide the work."""
    from dasd_utils import latents, models
    from dasd_utils.runtime import latent_cache, precision

    settings = read_config(profile, config)
    parts = models.load_parts(settings)
    models.add_domain_tokens(parts, settings.domains)  # captions are counted with them
    *_, sampler = latents.create_datasets(settings, parts.tokenizer)
    sampler.encode(parts.vae, precision.default_device())
    show_cache(settings, latent_cache.stored(settings), "There are", as_json)


@commands.command(rich_help_panel=UPKEEP)
def verify(
    run: Annotated[Path, typer.Argument(metavar="RUN", autocompletion=completion.runs, help="A run folder.")],
    steps: Annotated[int, typer.Option(min=1, metavar=COUNT, help="First steps to do again.")] = 3,
    as_json: AsJson = False,
) -> None:
    """Check a run: its files by their hashes, its first steps by doing them again."""
    from dasd_utils.apps import verify

    rows = verify.verify(run, steps)
    lines = [f"{'ok' if row['ok'] else 'NOT OK':6}  {row['what']}: {row['found']}" for row in rows]
    show(rows, as_json, "\n".join(lines))
    if not all(row["ok"] for row in rows):
        raise DasdError(f"{run} does not agree with what it says of itself.")


@commands.command(rich_help_panel=UPKEEP)
def clean(profile: Profile = "auto", config: ConfigFile = None, as_json: AsJson = False) -> None:
    """Remove every cached latent, and nothing else."""
    from dasd_utils.runtime import latent_cache

    settings = read_config(profile, config)
    show_cache(settings, latent_cache.clear(settings), "Removed", as_json)


def show_cache(settings: Config, found: tuple[int, int], what: str, as_json: bool) -> None:
    """Print shards and bytes of the latent cache."""
    place, (count, size) = str(resolve(settings.data.cache_dir)), found
    text = f"{what} {count} shards, {size / 1e6:.1f} MB: {place}"
    show({"cache_dir": place, "shards": count, "bytes": size}, as_json, text)


def measure_base(base: str, seed: int, num_images: int) -> tuple[Path, list[dict[str, Any]]]:
    """Measure a base; return where its rows are written, data/results or its own folder, and the rows."""
    from dasd_utils import evaluation
    from dasd_utils.pretrain.evaluate import evaluate as measure

    place, default = resolve(base).resolve(), resolve("data/tiny-sd")
    name = str(place.relative_to(ROOT) if place.is_relative_to(ROOT) else place)
    settings = Config.setup("tiny", seed=seed, base=name, clip=f"{name}/clip")
    rows = measure(settings, num_images)
    file = resolve("data/results/pretrain.json") if place == default else place / "scores.json"
    return evaluation.save_results(file, settings, rows), rows


def _interval(row: dict) -> str:
    return f"{row['value']:8.3f} [{row['low']:.3f}, {row['high']:.3f}] n = {row['n']}"


@commands.command(rich_help_panel=UPKEEP)
def pretrain(
    stage: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Only this stage; may be given again.", show_default="all that is missing"
        ),
    ] = None,
    output_dir: Annotated[
        str, typer.Option("--output_dir", metavar="FOLDER", help="Where the base is, or will be.")
    ] = "data/tiny-sd",
    seed: Annotated[int, typer.Option(metavar=COUNT, help="What all that is random is drawn from.")] = 0,
    threads: Annotated[
        int | None,
        typer.Option(min=1, metavar=COUNT, help="CPU threads of this process.", show_default="PyTorch's"),
    ] = None,
    evaluate: Annotated[bool, typer.Option("--evaluate", help="Measure the finished base instead.")] = False,
    num_images: Annotated[
        int, typer.Option("--num_images", min=2, metavar=COUNT, help="Samples of each domain to measure.")
    ] = 500,
    as_json: AsJson = False,
) -> None:
    """Build the embedded base model from the toy world, in hours; or measure it."""
    import torch

    from dasd_utils import pretrain as stages

    if threads:
        torch.set_num_threads(threads)
    if evaluate and stage:
        raise DasdError("--evaluate measures a finished base; it takes no --stage.")
    if evaluate:
        path, rows = measure_base(output_dir, seed, num_images)
        lines = [f"{row['metric']:26} {row['domain']:18} {_interval(row)}" for row in rows]
        show({"results": str(path), "rows": rows}, as_json, "\n".join([*lines, str(path)]))
        return
    settings = stages.PretrainConfig(seed=seed, output_dir=output_dir)
    made = str(stages.pretrain(settings, tuple(stage) if stage else stages.STAGES))
    show({"base": made}, as_json, made)
