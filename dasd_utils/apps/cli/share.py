"""The commands that hand a run to others: export, push."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dasd_utils.apps.cli import completion
from dasd_utils.apps.cli.options import SHARE, AsJson, ConfigFile, Profile, open_pipeline, show
from dasd_utils.config import Config, DasdError, resolve

NUM_SAMPLES = 4  # a domain, in the picture of the card
commands = typer.Typer()


@commands.command(rich_help_panel=SHARE)
def export(
    run: Annotated[
        Path,
        typer.Argument(autocompletion=completion.runs, help="A run folder or an adapter folder."),
    ],
    out: Annotated[Path, typer.Argument(help="A folder that is new, empty, or of an earlier export.")],
    kind: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="NAME",
            help="diffusers: LoRA and tokens; a1111, comfyui: for these programs; pipeline: the whole model.",
        ),
    ] = "diffusers",
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Of the LoRA, and before the embeddings' words.", show_default="the run's"
        ),
    ] = None,
    samples: Annotated[bool, typer.Option(help="Draw a picture for the model card.")] = True,
    profile: Profile = "auto",
    config: ConfigFile = None,
    as_json: AsJson = False,
) -> None:
    """Write a run's adapter in the files that other programs read, with a model card."""
    from dasd_utils import sampling
    from dasd_utils.apps import export as files
    from dasd_utils.apps import model_card

    folder = resolve(run)
    adapter = folder / "adapter" if (folder / "adapter").is_dir() else folder
    files.check(adapter, out, kind)
    name = export_name(name or sampling.run_folder(folder).name)
    pipeline = open_pipeline(folder, profile, config, None)
    grid, prompts = draw_samples(pipeline) if samples else (None, ())
    rows = measured(sampling.run_folder(folder))

    def card(exported: Any) -> Any:
        return model_card.card(exported, pipeline.config, adapter, rows, prompts)

    done = files.export(adapter, out, kind, pipeline.config, name, card, grid)
    show({"folder": str(out), **vars(done)}, as_json, "\n".join(str(out / file) for file in done.files))


def export_name(name: str) -> str:
    """Return the name if it can be a file's and a word of a prompt, else raise DasdError."""
    if not name.replace("-", "").replace("_", "").isalnum():
        raise DasdError(f"{name!r} cannot name the files: use letters, digits, - and _ (--name).")
    return name


def measured(run: Path) -> list[dict[str, Any]]:
    """Return the rows of the run's evaluation, none if it has not been evaluated."""
    from dasd_utils import evaluation

    path = run / "evaluation.json"
    return evaluation.load_results(path)["rows"] if path.exists() else []


def draw_samples(pipeline: Any) -> tuple[Any, list[str]]:
    """Return a picture of base and adapted model, same prompts and noise, and the prompts."""
    import io

    from PIL import Image

    from dasd_utils import figures

    config, rows, prompts = pipeline.config, {"base": [], "adapted": []}, []
    for domain in config.domains:
        asked = card_prompts(config, domain.name)
        seeds = list(range(len(asked)))
        with pipeline.base():
            rows["base"] += pipeline.generate(asked, domain=domain.name, seed=seeds)[0]
        rows["adapted"] += pipeline.generate(asked, domain=domain.name, seed=seeds)[0]
        prompts += asked
    buffer = io.BytesIO()
    figures.comparison_grid(rows).savefig(buffer, format="png", dpi=120, bbox_inches="tight")
    return Image.open(buffer), prompts


def card_prompts(config: Config, domain: str) -> list[str]:
    """Return a few evaluation prompts from all over the list; without one, what describes the domain."""
    from dasd_utils import evaluation

    try:
        prompts = evaluation.load_prompts(config, domain)
    except DasdError:
        return list(config.domain(domain).descriptions[:NUM_SAMPLES]) or [domain]
    return prompts[:: max(len(prompts) // NUM_SAMPLES, 1)][:NUM_SAMPLES]


@commands.command(rich_help_panel=SHARE)
def push(
    folder: Annotated[Path, typer.Argument(help="What `dasd export` wrote.")],
    repo_id: Annotated[str, typer.Argument(help="owner/name of a repository on the Hugging Face hub.")],
    private: Annotated[bool, typer.Option(help="Of a repository that is made for it.")] = True,
    revision: Annotated[
        str | None, typer.Option(metavar="NAME", help="A branch.", show_default="main")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry_run", help="Print what would go; ask nothing of the hub.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Upload an export to the Hugging Face hub, in one commit."""
    from dasd_utils.apps import export

    rows = export.planned_files(folder, repo_id)
    total = sum(row["bytes"] for row in rows)
    lines = [f"{row['bytes']:12,}  {row['file']}" for row in rows]
    address = None if dry_run else export.push(folder, repo_id, private, revision)
    done = f"{len(rows)} files, {total / 1e6:.1f} MB: " + (address or f"would go to {repo_id}")
    show({"repo_id": repo_id, "url": address, "files": rows}, as_json, "\n".join([*lines, done]))
