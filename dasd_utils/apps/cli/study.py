"""The commands of the study: calibrate, ladder, front, adapt, sweep."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from dasd_utils.apps.cli import options
from dasd_utils.apps.cli.options import option
from dasd_utils.config import ROOT, Config, DasdError, resolve

EPOCHS = 20  # as `small_cnn.EPOCHS`, whose import would load torch

commands = typer.Typer()
log = logging.getLogger(__name__)
Workers = option(int, "Processes that share the work and the cores.", min=1)
Scheduler = option(
    str | None, "A dask scheduler, tcp://host:8786: its workers do the work.", metavar="ADDRESS"
)
Seeds = option(str, "Training seeds, one run each.", metavar="N,N,...")
StudyDir = option(
    Path | None,
    "Where runs, samples and the table are.",
    "--output_dir",
    metavar="FOLDER",
    show_default="that of --config, else data/runs/<command>",
)
Budget = option(int, "Most denoising steps an image.", min=1)
NumImages = option(int, "Images of each candidate.", "--num_images", min=10)
Again = option(bool, "Search anew where there is a calibration.", "--again")
Methods = option(
    list[str] | None, "Only this method; may be given again.", metavar="METHOD", show_default="DASD's"
)
Against = option(str | None, "What all are compared with.", metavar="METHOD", show_default="DASD")
LadderTable = option(bool, "Write ladder.json at the end.", "--table/--no-table")
Curves = option(list[str] | None, "Only this curve; may be given again.", metavar="CURVE", show_default="all")
Target = option(str, "Target domain: toyworld:NAME, a folder or a hub id.", metavar="DATA")
Labelled = option(
    int | None, "Labelled images to translate.", "--num_images", min=2, show_default=options.CONFIGS
)
Epochs = option(int, "Epochs of the small classifiers.", min=1)
AdaptTable = option(bool, "Write adaptation.json at the end.", "--table/--no-table")
Cells = Annotated[
    Path, typer.Argument(metavar="FILE", help="JSON list of objects: the parameters of each run.")
]
Notebook = option(
    str,
    "The notebook to run for each: how its name begins.",
    complete=lambda: [path.name[:2] for path in ROOT.glob("notebooks/[0-9]*.ipynb")],
)
SweepDir = option(Path, "Where executed notebooks and the table are.", "--output_dir", metavar="FOLDER")


def study_config(profile: str, config: Path | None, output_dir: Path | None, command: str) -> Config:
    """Return the config of a study; without a file and a folder its folder is `data/runs/<command>`."""
    place = output_dir or (None if config else Path("data/runs") / command)
    return options.read_config(profile, config, output_dir=place)


def read_seeds(text: str) -> list[int]:
    """Read "0,1,2"; DasdError for what is no list of different seeds."""
    words = text.split(",")
    if not all(word.strip().isdecimal() for word in words) or len(set(words)) < len(words):
        raise DasdError(f"--seeds is {text!r}; it must be different whole numbers with commas: 0,1,2.")
    return [int(word) for word in words]


def run_missing(
    work: Callable[[], list[Any]], words: Callable[[], list[list[str]]], workers: int, scheduler: str | None
) -> list[Any]:
    """Do the work, with several workers first by the commands of `words`; return what other processes do."""
    from dasd_utils.apps import workers as pool

    if workers > 1 or scheduler:
        pool.run_all(words(), workers, scheduler)
    try:
        return work()
    except KeyboardInterrupt:  # a training that was stopped has saved
        options.fail("Stopped. The same command goes on from here.", 130)


def show_progress(busy: list[Any], as_json: bool, what: str) -> None:
    """Print what other processes still do, [(name, seed)], instead of a table."""
    names = ", ".join(f"{name} (seed {seed})" for name, seed in busy)
    text = f"Other processes are at work on: {names}" if busy else f"All {what} are done."
    options.show(busy, as_json, text)


@commands.command(rich_help_panel=options.STUDY)
def calibrate(
    checkpoint: options.Checkpoint = None,
    profile: options.Profile = "auto",
    config: options.ConfigFile = None,
    output_dir: options.OutputDir = None,
    budget: Budget = 30,
    num_images: NumImages = 64,
    again: Again = False,
    as_json: options.AsJson = False,
) -> None:
    """Search each domain's guidance, scheduler and steps; write calibration.json."""
    from dasd_utils import evaluation
    from dasd_utils.study import calibration

    pipeline = options.open_pipeline(checkpoint, profile, config, output_dir)
    run = checkpoint or Path(pipeline.config.output_dir)
    path = calibration.calibration_file(run)
    calibration.calibrate(pipeline, evaluation.load_scorer(pipeline.config), path, budget, num_images, again)
    found = json.loads(path.read_text(encoding="utf8"))
    lines = [f"{name}: {', '.join(f'{k} {v}' for k, v in each.items())}" for name, each in found.items()]
    options.show({"calibration": str(path), "domains": found}, as_json, "\n".join([*lines, str(path)]))


@commands.command(rich_help_panel=options.STUDY)
def ladder(
    profile: options.Profile = "auto",
    config: options.ConfigFile = None,
    output_dir: StudyDir = None,
    seeds: Seeds = "0,1,2",
    only: Methods = None,
    against: Against = None,
    workers: Workers = 1,
    scheduler: Scheduler = None,
    table: LadderTable = True,
    as_json: options.AsJson = False,
) -> None:
    """Compare methods: train, sample and score what is missing; write ladder.json."""
    from dasd_utils import evaluation
    from dasd_utils.study import calibration, ladder, tables

    settings = study_config(profile, config, output_dir, "ladder")
    methods = find_methods(only)
    numbers = read_seeds(seeds)
    if against and find_methods([against])[0] not in methods:
        raise DasdError(f"--against is {against!r}, none of the compared methods: add it by --only.")
    scoring = ladder.Scoring(settings)
    busy = run_methods(scoring, numbers, methods, workers, scheduler)
    if busy or not table:
        show_progress(busy, as_json, "methods")
        return
    path = resolve(settings.output_dir) / "ladder.json"
    rows = ladder.ladder_rows(scoring, numbers, methods, against or ladder.DASD)
    evaluation.save_results(path, settings, rows)
    searched = ladder.searches(settings, numbers, methods)
    evaluation.save_results(path.with_name(calibration.SEARCH), settings, searched)
    options.show_rows(path, rows, as_json, tables.ladder_table(rows))


def find_methods(names: list[str] | None) -> list[Any]:
    """Return the methods of these names, those of papers and points of curves too; None: DASD's ladder."""
    from dasd_utils.study import ladder, tradeoff

    return ladder.find_methods(names, (*ladder.METHODS, *ladder.PAPER_METHODS, *tradeoff.points()))


def run_methods(
    scoring: Any, seeds: list[int], methods: list[Any], workers: int, scheduler: str | None
) -> list[Any]:
    """Do what is missing of these methods; return the (name, seed) that other processes do."""
    from dasd_utils.study import ladder

    return run_missing(
        lambda: ladder.run_ladder(scoring, seeds, methods),
        lambda: ladder_words(scoring.config, seeds, methods),
        workers,
        scheduler,
    )


def ladder_words(config: Config, seeds: list[int], methods: list[Any]) -> list[list[str]]:
    """Return a command for each training of each seed, with all methods that share its weights."""
    from dasd_utils.runtime import checkpoints
    from dasd_utils.study import ladder

    path = config.save(checkpoints.writable(config.output_dir) / "ladder_config.json")
    common = ["ladder", "--config", str(path), "--output_dir", config.output_dir, "--no-table"]
    by_run: dict[tuple[int, str], list[str]] = {}
    for seed in seeds:
        for method in methods:
            run = ladder.run_config(config, method, seed).output_dir if method.trained else "base"
            by_run.setdefault((seed, run), []).extend(["--only", method.name])
    return [[*common, "--seeds", str(seed), *names] for (seed, _), names in by_run.items()]


@commands.command(rich_help_panel=options.STUDY)
def front(
    profile: options.Profile = "auto",
    config: options.ConfigFile = None,
    output_dir: StudyDir = None,
    seeds: Seeds = "0,1,2",
    only: Curves = None,
    workers: Workers = 1,
    scheduler: Scheduler = None,
    as_json: options.AsJson = False,
) -> None:
    """Compare guidance at all its scales: fit against control; write front.json."""
    from dasd_utils import evaluation
    from dasd_utils.study import ladder, tables, tradeoff

    curves = tradeoff.find_curves(only)
    numbers = read_seeds(seeds)
    settings = study_config(profile, config, output_dir, "front")
    scoring = ladder.Scoring(settings)
    tradeoff.check_curves(settings, curves)
    busy = run_methods(scoring, numbers, tradeoff.points(curves), workers, scheduler)
    if busy:
        show_progress(busy, as_json, "points")
        return
    rows = tradeoff.tradeoff_rows(scoring, numbers, curves)
    path = evaluation.save_results(resolve(settings.output_dir) / "front.json", settings, rows)
    if len(numbers) < 2:
        log.info("One seed: what a curve gains at equal fit takes two or more.")
    scores = [row for row in rows if "against" not in row]
    options.show_rows(path, rows, as_json, tables.ladder_table(scores))


@commands.command(rich_help_panel=options.STUDY)
def adapt(
    target: Target,
    profile: options.Profile = "auto",
    config: options.ConfigFile = None,
    output_dir: StudyDir = None,
    seeds: Seeds = "0,1,2",
    num_images: Labelled = None,
    epochs: Epochs = EPOCHS,
    workers: Workers = 1,
    scheduler: Scheduler = None,
    table: AdaptTable = True,
    as_json: options.AsJson = False,
) -> None:
    """Translate a labelled domain by words; test classifiers that learned from it."""
    from dasd_utils import evaluation, figures
    from dasd_utils.papers.diffusionclip import adaptation
    from dasd_utils.study import tables

    numbers = read_seeds(seeds)
    settings = study_config(profile, config, output_dir, "adapt")
    study = adaptation.Study(settings, target, num_images, epochs)
    study.check()
    busy = run_missing(
        lambda: adaptation.run_study(study, numbers), lambda: adapt_words(study, numbers), workers, scheduler
    )
    if busy or not table:
        text = f"Other processes are at work on seeds {busy}" if busy else "All seeds are done."
        options.show(busy, as_json, text)
        return
    rows = adaptation.table(study, numbers)
    wanted = {"target": target, "num_images": study.source.num_images, "epochs": epochs}
    path = resolve(settings.output_dir) / "adaptation.json"
    evaluation.save_results(path, settings.to_dict() | {"study": wanted}, rows)
    looks = tables.ladder_table([row for row in rows if row["metric"] in figures.METRICS])
    texts = [adaptation.summary(rows), looks] if study.source.label_column else [looks]
    options.show_rows(path, rows, as_json, *texts)


def adapt_words(study: Any, seeds: list[int]) -> list[list[str]]:
    """Return a command for each seed."""
    from dasd_utils.runtime import checkpoints

    path = study.config.save(checkpoints.writable(study.config.output_dir) / "adapt_config.json")
    common = ["adapt", "--config", str(path), "--output_dir", study.config.output_dir, "--no-table"]
    common += ["--target", study.target.data, "--epochs", str(study.epochs)]
    common += ["--num_images", str(study.source.num_images)]
    return [[*common, "--seeds", str(seed)] for seed in seeds]


@commands.command(rich_help_panel=options.STUDY)
def sweep(
    parameters: Cells,
    notebook: Notebook,
    output_dir: SweepDir = Path("data/runs/sweep"),
    workers: Workers = 1,
    scheduler: Scheduler = None,
    as_json: options.AsJson = False,
) -> None:
    """Run one notebook for each entry of a list that is missing; collect its rows."""
    from dasd_utils import evaluation
    from dasd_utils.apps import sweep as sweeps
    from dasd_utils.apps import workers as pool

    cells = sweeps.cells(notebook, sweeps.read(parameters), output_dir)
    left = sweeps.missing(cells)
    log.info("%d of %d cells are to run.", len(left), len(cells))
    pool.run_all([cell.command() for cell in left], workers, scheduler)
    rows = sweeps.rows(cells)
    file = resolve(output_dir) / f"{cells[0].notebook}.json"
    path = evaluation.save_results(file, {"sweep": str(parameters)}, rows)
    options.show_rows(path, rows, as_json, f"{len(cells)} cells, {len(rows)} rows")
