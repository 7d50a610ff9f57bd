"""The commands that study methods, from `dasd calibrate`, and that look after the course and its models."""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from dasd_utils.apps.cli import options
from dasd_utils.apps.cli.options import CONFIGS, ChosenRun, Settings, argument, command, option, with_rows
from dasd_utils.config import ROOT, Config, DasdError, portable, read_json, resolve

log = logging.getLogger(__name__)
Answer = tuple[Any, ...]  # what `command` prints
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}  # -p NAME VALUE
AGAIN = "Only this one; may be given again."
TABLE = option(True, "Write the table at the end.")
BASES = "data/tiny-sd; with --strict data/cache/tiny-strict"
NUMBERS = [path.name[:2] for path in ROOT.glob("notebooks/[0-9]*.ipynb")]
NOTEBOOKS = "Where executed notebooks, runs and results are."
STUDY_DIR = "that of --config, else data/runs/<command>"


@dataclass
class Study(Settings):
    """The options of a study of several trainings."""

    output_dir: Path | None = option(None, "Of runs, samples and table.", show_default=STUDY_DIR)
    seeds: str = option("0,1,2", "Training seeds, one run each.", metavar="N,N,...")
    workers: int = options.WORKERS
    scheduler: str | None = options.SCHEDULER

    def settings(self, name: str) -> Config:
        """Return the config; without a file and a folder its folder is `data/runs/<name>`."""
        return self.read(output_dir=self.output_dir or (None if self.config else f"data/runs/{name}"))

    def numbers(self) -> list[int]:
        """Return the seeds; DasdError for what is no list of different ones."""
        words = self.seeds.split(",")
        numbers = [int(word) for word in words if word.strip().isdecimal()]
        if len(set(numbers)) < len(words):
            raise DasdError(f"--seeds is {self.seeds!r}; it must be different numbers with commas: 0,1,2.")
        return numbers

    def run(self, work: Callable[[], list[Any]], commands: Callable[[], list[list[str]]]) -> list[Any]:
        """Do the work, with several workers first by commands; return what other processes still do."""
        from dasd_utils.apps import workers

        if self.workers > 1 or self.scheduler:
            workers.run_all(commands(), self.workers, self.scheduler)
        try:
            return work()
        except KeyboardInterrupt:  # a training that was stopped has saved
            options.fail("Stopped. The same command goes on from here.", 130)


def one_command(name: str, config: Config) -> list[str]:
    """Return the words behind `dasd` of a part of a study, without its seed and methods."""
    path = config.save(resolve(config.output_dir) / f"{name}_config.json")
    return [name, "--config", str(path), "--no-table"]  # the file names the folder, wherever it is read


def progress(busy: list[tuple[str, int]]) -> Answer:
    """Return what stands in the place of a table: what other processes do."""
    names = ", ".join(f"{name} (seed {seed})" for name, seed in busy)
    return busy, f"Other processes are at work on: {names}" if busy else "All is done."


@command(options.STUDY)
def calibrate(
    run: ChosenRun,
    budget: int = option(30, "Most denoising steps an image.", min=1),
    num_images: int = option(64, "Images of each candidate.", min=10),
    again: bool = option(False, "Search anew where there is a calibration."),
    intervals: bool = option(False, "Search the steps that have guidance, too."),
) -> Answer:
    """Search each domain's guidance, scheduler and steps; write calibration.json."""
    from dasd_utils import evaluation
    from dasd_utils.study import calibration

    pipeline = run.open()
    path = calibration.calibration_file(run.checkpoint or pipeline.config.output_dir)
    if path.is_file() and not again:
        log.warning("%s was there already and stays: --again searches anew.", path)
    scorer = evaluation.load_scorer(pipeline.config)
    calibration.calibrate(pipeline, scorer, path, budget, num_images, again, intervals)
    found = read_json(path, "The calibration")
    lines = [f"{name}: {', '.join(f'{k} {v}' for k, v in each.items())}" for name, each in found.items()]
    return {"calibration": str(path), "domains": found}, "\n".join([*lines, str(path)])


@command(options.STUDY)
def ladder(
    study: Study,
    only: list[str] | None = option(None, AGAIN, metavar="METHOD", show_default="DASD's"),
    against: str | None = option(None, "What all are compared with.", metavar="METHOD", show_default="DASD"),
    table: bool = TABLE,
) -> Answer:
    """Compare methods: train, sample and score what is missing; write ladder.json anew."""
    from dasd_utils import evaluation
    from dasd_utils.study import calibration, ladder, tables

    settings = study.settings("ladder")
    methods = find_methods(only)
    numbers = study.numbers()
    if against and find_methods([against])[0] not in methods:
        raise DasdError(f"--against is {against!r}, none of the compared methods: add it by --only.")
    scoring = ladder.Scoring(settings)
    busy = run_methods(study, scoring, methods)
    if busy or not table:
        return progress(busy)
    rows = ladder.ladder_rows(scoring, numbers, methods, against or ladder.DASD)
    path = evaluation.save_results(resolve(settings.output_dir) / "ladder.json", settings, rows)
    searched = ladder.searches(settings, numbers, methods)
    evaluation.save_results(path.with_name(calibration.SEARCH), settings, searched)
    return with_rows(path, rows, tables.ladder_table(rows))


def find_methods(names: list[str] | None) -> list[Any]:
    """Return the methods of these names, those of papers and points of curves too; None: DASD's ladder."""
    from dasd_utils.study import ladder, tradeoff

    return ladder.find_methods(names, (*ladder.METHODS, *ladder.PAPER_METHODS, *tradeoff.points()))


def run_methods(study: Study, scoring: Any, methods: list[Any]) -> list[tuple[str, int]]:
    """Do what is missing of these methods; return the (name, seed) that other processes do."""
    from dasd_utils.study import ladder

    def commands() -> list[list[str]]:
        """Return one for each training of each seed, with all methods that share its weights."""
        common = one_command("ladder", scoring.config)
        by_run: dict[tuple[int, str], list[str]] = {}
        for seed in study.numbers():
            for method in methods:
                run = ladder.run_config(scoring.config, method, seed).output_dir if method.trained else "base"
                by_run.setdefault((seed, run), []).extend(["--only", method.name])
        return [[*common, "--seeds", str(seed), *names] for (seed, _), names in by_run.items()]

    return study.run(lambda: ladder.run_ladder(scoring, study.numbers(), methods), commands)


@command(options.STUDY)
def front(
    study: Study, only: list[str] | None = option(None, AGAIN, metavar="CURVE", show_default="all")
) -> Answer:
    """Compare guidance at all its scales: fit against control; write front.json anew."""
    from dasd_utils import evaluation
    from dasd_utils.study import ladder, tables, tradeoff

    curves = tradeoff.find_curves(only)
    numbers = study.numbers()
    settings = study.settings("front")
    scoring = ladder.Scoring(settings)
    busy = run_methods(study, scoring, tradeoff.points(curves))
    if busy:
        return progress(busy)
    rows = tradeoff.tradeoff_rows(scoring, numbers, curves)
    path = evaluation.save_results(resolve(settings.output_dir) / "front.json", settings, rows)
    if len(numbers) < 2:
        log.info("One seed: what a curve gains at equal fit takes two or more.")
    return with_rows(path, rows, tables.ladder_table([row for row in rows if "against" not in row]))


@command(options.STUDY)
def adapt(
    study: Study,
    target: str = option(..., "Target domain: toyworld:NAME, a folder or a hub id.", metavar="DATA"),
    num_images: int | None = option(None, "Labelled images to translate.", min=2, show_default=CONFIGS),
    epochs: int = option(20, "Epochs of the small classifiers.", min=1),
    table: bool = TABLE,
) -> Answer:
    """Translate a labelled domain by words, test classifiers on it; write adaptation.json anew."""
    from dasd_utils import evaluation
    from dasd_utils.papers.diffusionclip import adaptation
    from dasd_utils.study import tables

    numbers = study.numbers()
    settings = study.settings("adapt")
    target = options.folder_or_name(target)
    work = adaptation.Study(settings, target, num_images, epochs)
    work.check()
    wanted = {"target": target, "num_images": work.source.num_images, "epochs": epochs}

    def commands() -> list[list[str]]:
        given = [word for name, value in wanted.items() for word in (f"--{name}", str(value))]
        return [[*one_command("adapt", settings), *given, "--seeds", str(seed)] for seed in numbers]

    busy = study.run(lambda: adaptation.run_study(work, numbers), commands)
    if busy or not table:
        return progress([("the translation", seed) for seed in busy])
    rows = adaptation.table(work, numbers)
    path = resolve(settings.output_dir) / "adaptation.json"
    evaluation.save_results(path, settings.to_dict() | {"study": wanted}, rows)
    summary = [adaptation.summary(rows)] if work.source.label_column else []
    return with_rows(path, rows, *summary, tables.ladder_table(rows))


@command(options.STUDY)
def sweep(
    parameters: Path = argument("JSON list of objects: the parameters of each run.", metavar="FILE"),
    notebook: str = option(..., "The notebook to run: how its name begins.", complete=lambda: NUMBERS),
    output_dir: Path = option(ROOT / "data/runs/sweep", NOTEBOOKS, show_default="data/runs/sweep"),
    workers: int = options.WORKERS,
    scheduler: str | None = options.SCHEDULER,
) -> Answer:
    """Run one notebook for each entry of a list that is missing; write the table of all rows anew."""
    from dasd_utils import evaluation
    from dasd_utils.apps import workers as pool

    cells = pool.sweep_cells(notebook, pool.read_sweep(parameters), output_dir)
    left = [cell for cell in cells if not cell.results.is_file()]
    log.info("%d of %d cells are to run.", len(left), len(cells))
    pool.run_all([cell.command() for cell in left], workers, scheduler)
    stored = [(cell, read_json(cell.results, "The results of a cell")) for cell in cells]
    rows = [row | cell.parameters for cell, results in stored for row in results["rows"]]
    path = output_dir / f"{cells[0].notebook}.json"
    profile = stored[0][1]["config"].get("profile")
    evaluation.save_results(path, {"sweep": str(parameters), "profile": profile}, rows)
    return with_rows(path, rows, f"{len(cells)} cells, {len(rows)} rows")


@dataclass
class Course(Settings):
    """The options of a run of the notebooks."""

    only: str | None = option(None, "Comma-separated beginnings of names: 04,05", metavar="NAMES")
    output_dir: Path = option(ROOT / "data/runs/course", NOTEBOOKS, show_default="data/runs/course")
    seed: int | None = option(None, "Seed of everything that is random.", show_default="the notebooks'")
    keep_going: bool = option(False, "Run the others after one that fails, too.")
    force: bool = options.FORCE

    def values(self) -> dict[str, Any]:
        """Return the parameters of the notebooks that these options name."""
        config = self.read()
        changes: Any = self.config and str(self.config)
        if places := self.places(config):
            fields = config.to_dict()
            fields |= fields["model"]
            own = read_json(self.config, "The config file") if self.config else {}
            changes = own | {name: fields[name] for name in places}
        # "auto" also has the sizes that fit this card
        profile = "auto" if config.profile != "tiny" and self.by_auto() else config.profile
        named = {"config": changes, "seed": self.seed}
        return {"profile": profile} | {k: v for k, v in named.items() if v is not None}


@command(options.UPKEEP, context_settings=PASS_ON)
def notebooks(context: typer.Context, course: Course) -> Answer:
    """Run the notebooks in order through papermill; `-p NAME VALUE` sets a parameter."""
    from dasd_utils.apps import notebooks as lessons

    values = course.values() | read_parameters(context.args)
    paths = lessons.find_notebooks(course.only.split(",") if course.only else None)
    for path in paths:
        options.check_free(course.output_dir / path.name, course.force)
    done = lessons.run_notebooks(paths, course.output_dir, values, course.keep_going)
    rows = [{"notebook": one.path.stem, **one._asdict()} for one in done]
    lines = [f"{row['notebook']:20} {row['seconds']:6.0f} s {row['peak_gb']:6.2f} GB  "
             f"{'failed' if row['error'] else 'done'}" for row in rows]  # fmt: skip
    lines.append(f"{len(done)} notebooks in {sum(one.seconds for one in done):.0f} s: {course.output_dir}")
    return rows, "\n".join(lines), " ".join(one.error for one in done if one.error)


def read_parameters(words: list[str]) -> dict[str, Any]:
    """Read `-p NAME VALUE` triples; a value that is JSON (a number, true, a list) is read as such."""
    values: dict[str, Any] = {}
    for at in range(0, len(words), 3):
        flag, name, text = [*words[at : at + 3], "", ""][:3]
        if flag not in ("-p", "--parameter") or len(words) < at + 3:
            raise DasdError(f"Unknown option {flag!r}. Parameters are given as: -p NAME VALUE")
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text
    if isinstance(config := values.get("config"), str) and Path(config).is_file():
        values["config"] = str(options.path(config))  # the notebook runs in another folder
    return values


@command(options.UPKEEP)
def verify(run: Path = options.RUN, steps: int = option(3, "First steps to do again.", min=1)) -> Answer:
    """Check a run: its files by their hashes, its first steps by doing them again."""
    from dasd_utils.apps import verify as checks

    run = options.run_folder(run)
    rows = checks.verify(run, steps)
    lines = [f"{'ok' if row['ok'] else 'NOT OK':6}  {row['what']}: {row['found']}" for row in rows]
    wrong = None if all(row["ok"] for row in rows) else f"{run} does not agree with what it says of itself."
    return rows, "\n".join(lines), wrong


@command(options.UPKEEP)
def pretrain(
    stage: list[str] | None = option(None, AGAIN, metavar="STAGE", show_default="all"),
    output_dir: Path | None = option(None, "Where the base is, or will be.", show_default=BASES),
    strict: bool = option(False, "Train every part on paintings alone, as the UNet is."),
    seed: int = option(0, "Seed of everything that is random."),
    evaluate: bool = option(False, "Measure the finished base instead."),
    num_images: int = option(500, "Samples of each domain to measure.", min=2),
    force: bool = option(False, "Replace the base, or the scores, that are there."),
) -> Answer:
    """Build the embedded base model from the toy world, in hours; or measure it."""
    from dasd_utils.pretrain import build

    changes = build.shared.STRICT if strict else {}
    given = {"output_dir": portable(output_dir)} if output_dir else {}
    settings = build.PretrainConfig(**{"seed": seed} | changes | given)
    base = resolve(settings.output_dir)
    if not evaluate:
        if not stage or "assemble" in stage:  # the stage that writes the base
            options.check_free(base, force)
            if base.exists() and not (base / "model_index.json").is_file():
                raise DasdError(f"{base} holds no base model: name another place by --output_dir.")
        made = str(build.pretrain(settings, stage or ()))
        return {"base": made}, made
    if stage:
        raise DasdError("--evaluate measures a finished base; it takes no --stage.")
    from dasd_utils.pretrain.evaluate import measure_base, scores_file

    options.check_free(scores_file(base), force)
    path, rows = measure_base(settings.output_dir, seed, num_images)
    line = "{metric:26} {domain:18} {value:z8.3f} [{low:z.3f}, {high:z.3f}] n = {n}"
    return with_rows(path, rows, "\n".join(line.format(**row) for row in rows))
