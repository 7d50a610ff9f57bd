"""The commands of the study: calibrate, ladder, front, adapt, sweep."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Annotated, Any

import typer

from dasd_utils.apps.cli import completion
from dasd_utils.apps.cli.options import (
    CONFIGS,
    COUNT,
    STUDY,
    AsJson,
    Checkpoint,
    ConfigFile,
    OutputDir,
    Profile,
    fail,
    open_pipeline,
    read_config,
    show,
)
from dasd_utils.config import Config, DasdError, resolve

EPOCHS = 20  # as `probe.EPOCHS`, whose import would load torch

commands = typer.Typer()
log = logging.getLogger(__name__)
Workers = Annotated[
    int, typer.Option(min=1, metavar=COUNT, help="Processes that share the work and the cores.")
]
Seeds = Annotated[str, typer.Option(metavar="N,N,...", help="Training seeds, one run each.")]
StudyDir = Annotated[
    Path | None,
    typer.Option(
        "--output_dir",
        metavar="FOLDER",
        autocompletion=completion.folders,
        help="Where runs, samples and the table are.",
        show_default="that of --config, else data/runs/<command>",
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option(metavar="ADDRESS", help="A dask scheduler, tcp://host:8786: its workers do the work."),
]


@commands.command(rich_help_panel=STUDY)
def calibrate(
    checkpoint: Checkpoint = None,
    profile: Profile = "auto",
    config: ConfigFile = None,
    output_dir: OutputDir = None,
    budget: Annotated[int, typer.Option(min=1, metavar=COUNT, help="Most denoising steps an image.")] = 30,
    num_images: Annotated[
        int, typer.Option("--num_images", min=10, metavar=COUNT, help="Images of each candidate.")
    ] = 64,
    again: Annotated[bool, typer.Option("--again", help="Search anew where a calibration is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Search each domain's guidance, scheduler and steps; write calibration.json."""
    from dasd_utils import evaluation
    from dasd_utils.study import calibration

    pipeline = open_pipeline(checkpoint, profile, config, output_dir)
    run = checkpoint or Path(pipeline.config.output_dir)
    path = calibration.calibration_file(run)
    calibration.calibrate(pipeline, evaluation.load_scorer(pipeline.config), path, budget, num_images, again)
    found = json.loads(path.read_text(encoding="utf8"))
    lines = [f"{name}: {', '.join(f'{k} {v}' for k, v in each.items())}" for name, each in found.items()]
    show({"calibration": str(path), "domains": found}, as_json, "\n".join([*lines, str(path)]))


@commands.command(rich_help_panel=STUDY)
def ladder(
    profile: Profile = "auto",
    config: ConfigFile = None,
    output_dir: StudyDir = None,
    seeds: Seeds = "0,1,2",
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="RUNG", help="Only this rung; may be given again.", show_default="DASD's"),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="RUNG", help="What all are compared with.", show_default="DASD"),
    ] = None,
    workers: Workers = 1,
    scheduler: Scheduler = None,
    table: Annotated[bool, typer.Option("--table/--no-table", help="Write ladder.json at the end.")] = True,
    as_json: AsJson = False,
) -> None:
    """Compare methods: train, sample and judge what is missing; write ladder.json."""
    from dasd_utils.study import ladder as rungs

    place = output_dir or (None if config else Path("data/runs/ladder"))
    settings, wanted = read_config(profile, config, output_dir=place), find(only)
    numbers = read_seeds(seeds)
    if against and find([against])[0].name not in {rung.name for rung in wanted}:
        raise DasdError(
            f"--against is {against!r}, which is not among the rungs asked for: add it by --only."
        )
    judging = rungs.Scoring(settings)
    if climb(judging, numbers, wanted, workers, scheduler, as_json, table):
        write_table(judging, numbers, wanted, against or rungs.DASD, as_json)


@commands.command(rich_help_panel=STUDY)
def front(
    profile: Profile = "auto",
    config: ConfigFile = None,
    output_dir: StudyDir = None,
    seeds: Seeds = "0,1,2",
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="LINE", help="Only this line; may be given again.", show_default="all"),
    ] = None,
    workers: Workers = 1,
    scheduler: Scheduler = None,
    as_json: AsJson = False,
) -> None:
    """Compare guidance at all its scales: fit against control; write front.json."""
    from dasd_utils import evaluation
    from dasd_utils.study import ladder as rungs
    from dasd_utils.study import tradeoff

    place = output_dir or (None if config else Path("data/runs/front"))
    lines, numbers = tradeoff.find_curves(only), read_seeds(seeds)
    judging = rungs.Scoring(read_config(profile, config, output_dir=place))
    tradeoff.check_curves(judging.config, lines)
    if climb(judging, numbers, tradeoff.points(lines), workers, scheduler, as_json):
        rows = tradeoff.tradeoff_rows(judging, numbers, lines)
        path = resolve(judging.config.output_dir) / "front.json"
        evaluation.save_results(path, judging.config, rows)
        if len(numbers) < 2:
            log.info("One seed: what a line gains at equal fit takes two or more.")
        table = evaluation.ladder_table([row for row in rows if "against" not in row])
        show({"results": str(path), "rows": rows}, as_json, f"{table}\n\n{path}")


@commands.command(rich_help_panel=STUDY)
def adapt(
    target: Annotated[
        str,
        typer.Option(metavar="DATA", help="Target domain: toyworld:NAME, a folder or a hub id."),
    ],
    profile: Profile = "auto",
    config: ConfigFile = None,
    output_dir: StudyDir = None,
    seeds: Seeds = "0,1,2",
    num_images: Annotated[
        int | None,
        typer.Option(
            "--num_images", min=2, metavar=COUNT, help="Labelled images to translate.", show_default=CONFIGS
        ),
    ] = None,
    epochs: Annotated[
        int, typer.Option(min=1, metavar=COUNT, help="Epochs of the small classifiers.")
    ] = EPOCHS,
    workers: Workers = 1,
    scheduler: Scheduler = None,
    table: Annotated[
        bool, typer.Option("--table/--no-table", help="Write adaptation.json at the end.")
    ] = True,
    as_json: AsJson = False,
) -> None:
    """Translate a labelled domain by words; test classifiers that learned from it."""
    from dasd_utils import evaluation
    from dasd_utils.papers.diffusionclip import adaptation

    place = output_dir or (None if config else Path("data/runs/adapt"))
    numbers = read_seeds(seeds)
    study = adaptation.Study(read_config(profile, config, output_dir=place), target, num_images, epochs)
    study.check()
    if workers > 1 or scheduler:
        run_together(adapt_words(study, numbers), workers, scheduler)
    try:
        busy = adaptation.run_study(study, numbers)
    except KeyboardInterrupt:  # a training that was stopped has saved
        fail("Stopped. The same command goes on from here.", 130)
    if busy or not table:
        said = f"Other processes are at work on seeds {busy}" if busy else "All seeds are done."
        show(busy, as_json, said)
        return
    rows = adaptation.table(study, numbers)
    path = resolve(study.config.output_dir) / "adaptation.json"
    asked = {"target": target, "num_images": study.source.num_images, "epochs": epochs}
    evaluation.save_results(path, study.config.to_dict() | {"study": asked}, rows)
    looks = evaluation.ladder_table([row for row in rows if row["metric"] in evaluation.LADDER])
    tables = [adaptation.summary(rows), looks] if study.source.label_column else [looks]
    show({"results": str(path), "rows": rows}, as_json, "\n\n".join([*tables, str(path)]))


def adapt_words(study: Any, seeds: list[int]) -> list[list[str]]:
    """Return a command for each seed."""
    from dasd_utils.runtime import checkpoints

    path = study.config.save(checkpoints.writable(study.config.output_dir) / "adapt_config.json")
    common = ["adapt", "--config", str(path), "--output_dir", study.config.output_dir, "--no-table"]
    common += ["--target", study.target.data, "--epochs", str(study.epochs)]
    common += ["--num_images", str(study.source.num_images)]
    return [[*common, "--seeds", str(seed)] for seed in seeds]


def find(names: list[str] | None) -> list[Any]:
    """Return the rungs of these names, those of papers and the points of fronts too; None: DASD's ladder."""
    from dasd_utils.study import ladder, tradeoff

    return ladder.find_methods(names, (*ladder.METHODS, *ladder.PAPER_METHODS, *tradeoff.points()))


def climb(
    judging: Any,
    seeds: list[int],
    wanted: list[Any],
    workers: int,
    scheduler: str | None,
    as_json: bool,
    table: bool = True,
) -> bool:
    """Do what is missing of the rungs, by several workers if asked; return whether a table can be written."""
    from dasd_utils.study import ladder

    if workers > 1 or scheduler:
        run_together(ladder_words(judging.config, seeds, wanted), workers, scheduler)
    try:
        busy = ladder.run_ladder(judging, seeds, wanted)
    except KeyboardInterrupt:  # a training that was stopped has saved
        fail("Stopped. The same command goes on from here.", 130)
    if busy or not table:
        left = ", ".join(f"{name} (seed {seed})" for name, seed in busy)
        show(busy, as_json, f"Other processes are at work on: {left}" if busy else "All rungs are done.")
        return False
    return True


def write_table(judging: Any, seeds: list[int], wanted: list[Any], against: str, as_json: bool) -> None:
    """Write ladder.json and what the searches tried into the ladder's folder; show the table."""
    from dasd_utils import evaluation
    from dasd_utils.study import calibration, ladder

    path = resolve(judging.config.output_dir) / "ladder.json"
    rows = ladder.ladder_rows(judging, seeds, wanted, against)
    evaluation.save_results(path, judging.config, rows)
    searched = ladder.searches(judging.config, seeds, wanted)
    evaluation.save_results(path.with_name(calibration.SEARCH), judging.config, searched)
    show({"results": str(path), "rows": rows}, as_json, f"{evaluation.ladder_table(rows)}\n\n{path}")


def read_seeds(text: str) -> list[int]:
    """Read "0,1,2"; DasdError for what is no list of different seeds."""
    words = text.split(",")
    if not all(word.strip().isdecimal() for word in words) or len(set(words)) < len(words):
        raise DasdError(f"--seeds is {text!r}; it must be different whole numbers with commas: 0,1,2.")
    return [int(word) for word in words]


def ladder_words(config: Config, seeds: list[int], wanted: list[Any]) -> list[list[str]]:
    """Return a command for each training of each seed, with all the rungs that share its weights."""
    from dasd_utils.runtime import checkpoints
    from dasd_utils.study import ladder as rungs

    path = config.save(checkpoints.writable(config.output_dir) / "ladder_config.json")
    common = ["ladder", "--config", str(path), "--output_dir", config.output_dir, "--no-table"]
    alike: dict[tuple, list[str]] = {}
    for seed in seeds:
        for rung in wanted:
            place = rungs.run_config(config, rung, seed).output_dir if rung.trained else "base"
            alike.setdefault((seed, place), []).extend(["--only", rung.name])
    return [[*common, "--seeds", str(seed), *names] for (seed, _), names in alike.items()]


def run_together(commands: list[list[str]], workers: int, scheduler: str | None) -> None:
    """Run commands side by side; DasdError with what the first that failed said."""
    from dasd_utils.apps import workers as pool

    failed = [
        (command, said)
        for command, said in zip(commands, pool.run(commands, workers, scheduler), strict=True)
        if said
    ]
    if failed:
        command, said = failed[0]
        raise DasdError(
            f"{len(failed)} of {len(commands)} commands failed, the first: `dasd {' '.join(command)}`: {said}"
        )


@commands.command(rich_help_panel=STUDY)
def sweep(
    parameters: Annotated[
        Path, typer.Argument(metavar="FILE", help="JSON list of objects: the parameters of each run.")
    ],
    notebook: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            autocompletion=completion.notebooks,
            help="The notebook to run for each: how its name begins.",
        ),
    ],
    output_dir: Annotated[
        Path,
        typer.Option("--output_dir", metavar="FOLDER", help="Where executed notebooks and the table are."),
    ] = Path("data/runs/sweep"),
    workers: Workers = 1,
    scheduler: Scheduler = None,
    as_json: AsJson = False,
) -> None:
    """Run one notebook for each entry of a list that is missing; collect its rows."""
    from dasd_utils import evaluation
    from dasd_utils.apps import sweep as sweeps

    cells = sweeps.cells(notebook, sweeps.read(parameters), output_dir)
    left = sweeps.missing(cells)
    log.info("%d of %d cells are to run.", len(left), len(cells))
    run_together([cell.command() for cell in left], workers, scheduler)
    rows = sweeps.rows(cells)
    path = evaluation.save_results(
        resolve(output_dir) / f"{cells[0].notebook}.json", {"sweep": str(parameters)}, rows
    )
    show({"results": str(path), "rows": rows}, as_json, f"{len(cells)} cells, {len(rows)} rows: {path}")
