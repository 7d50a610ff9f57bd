"""How a trained domain is best sampled: guidance, scheduler and steps, searched on the validation split."""

import dataclasses
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dasd_utils import evaluation, guidance, sampling
from dasd_utils.config import WHOLE, Calibration, DomainConfig
from dasd_utils.evaluation import Estimate, ResultRow, Scorer
from dasd_utils.runtime import files

SCALES = {"cfg": (1.5, 2.0, 3.0, 4.0, 5.5, 7.5), "domain": (1.5, 2.0, 3.0, 4.0, 5.5)}
STEPS = {"dpm++": (8, 10, 15, 20, 30), "unipc": (8, 10, 15, 20), "ddim": (15, 30, 50)}
# shares of the timesteps; the first is about the paper's best for SDXL, sigmas of 0.28 to 5.42
INTERVALS = ((0.2, 0.9), (0.0, 0.8), (0.2, 1.0))
GROWTH = (1.0, 1.5)  # of the guidance scale in an interval
SCHEDULES = tuple((scheduler, steps) for scheduler, counts in STEPS.items() for steps in counts)
BUDGET = 30  # denoising steps
IMAGES = 64  # a candidate and domain
NOISE = 7_000_000  # seeds that no evaluation uses
SEARCH = "calibration_search.json"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Candidate:
    """One way of sampling, and what its images scored on the validation split."""

    calibration: Calibration
    cmmd: Estimate
    measure: str  # of following the prompt: attribute_accuracy where attributes can be seen, else clip_score
    follows: Estimate
    seconds: float  # an image
    calls: int  # predictions of the network an image

    def rows(self, domain: str, chosen: bool, seed: int) -> list[ResultRow]:
        """Return a row for each of the two scores."""
        start = {"domain": domain, **dataclasses.asdict(self.calibration), "chosen": chosen}
        start |= {"calls": self.calls, "seconds_an_image": self.seconds}
        end = {"n": self.cmmd.units, "seed": seed}
        scores = {"cmmd": self.cmmd, self.measure: self.follows}
        return [start | {"metric": m} | evaluation.with_interval(each) | end for m, each in scores.items()]


def calibrate(
    pipeline: sampling.DasdPipeline, scorer: Scorer, path: Path, budget: int = BUDGET,
    num_images: int = IMAGES, again: bool = False, intervals: bool = False,
) -> None:  # fmt: skip
    """Search every target domain; write `calibration.json` at `path`, and every candidate's scores beside it.

    An existing file stays, or with `again` is replaced at the end. intervals: search guidance intervals too.
    """
    if path.is_file() and not again:
        return
    files.output_folder(path.parent)
    table, rows = {}, []
    for domain in pipeline.config.domains:
        candidates = search(pipeline, domain, scorer, budget, num_images, intervals)
        best = choose_candidate(candidates)
        table[domain.name] = dataclasses.asdict(best.calibration)
        rows += [row for c in candidates for row in c.rows(domain.name, c is best, pipeline.config.seed)]
        log.info("%s: %s", domain.name, table[domain.name])
    evaluation.save_results(path.with_name(SEARCH), pipeline.config, rows)
    files.write_json(path, table, "The calibration")  # last: where it is, the search was complete


def calibration_file(run: str | Path) -> Path:
    """Return where the calibrations of a run, or of an adapter's folder in it, are."""
    return sampling.run_places(run)[0] / sampling.CALIBRATION_FILE


def predictions(pipeline: sampling.DasdPipeline, calibration: Calibration) -> tuple[int, ...]:
    """Return how many predictions of the network each step of an image takes: where guidance is, two."""
    scheduler, terms = pipeline.scheduler(calibration.scheduler), guidance.rule(calibration)
    scheduler.set_timesteps(calibration.num_inference_steps)
    last, interval = scheduler.config.num_train_timesteps - 1, calibration.guidance_interval
    weights = [guidance.weights(terms, 1 - float(t) / last, interval) for t in scheduler.timesteps]
    return tuple(sum(weight != 0 for weight in (1 - sum(each), *each)) for each in weights)


def search(
    pipeline: sampling.DasdPipeline, domain: DomainConfig, scorer: Scorer, budget: int, num_images: int,
    intervals: bool = False,
) -> list[Candidate]:  # fmt: skip
    """Return the candidates of one domain: guidance first, with the config's schedule, then the schedule.

    intervals: then, if the best of these is guided, its guidance in those INTERVALS that differ in the steps
    they guide, at GROWTH times the scale. All sample the same validation captions from the same noise, in at
    most `budget` denoising steps.
    """
    reference = evaluation.load_reference(domain, pipeline.config, scorer, num_images, "validation")
    schedules = [schedule for schedule in SCHEDULES if schedule[1] <= budget]
    blind = pipeline.config.training.caption_dropout == 1  # then the base reads the prompt, as in `generate`
    kinds = {"decoupled" if blind and kind == "cfg" else kind: scales for kind, scales in SCALES.items()}
    guidances = [(kind, scale) for kind, scales in kinds.items() for scale in scales]
    texts = [reference.prompts.texts[i] for i in reference.prompts.prompt_of(num_images)]
    seeds = range(NOISE, NOISE + num_images)
    count = len(guidances) + len(schedules) + len(INTERVALS) * len(GROWTH) * intervals
    with files.bar(None, domain.name, count, unit="candidate") as bar:

        def attempt(calibration: Calibration) -> Candidate:
            started = time.perf_counter()
            images, *_ = pipeline.generate(texts, domain=domain.name, seed=seeds, settings=calibration)
            seconds = (time.perf_counter() - started) / num_images
            scores = evaluation.score_prompts(images, reference.prompts, scorer, domain.name)
            table = evaluation.estimates([scores], reference, pipeline.config.evaluation.num_bootstrap)
            measure = "attribute_accuracy" if reference.prompts.mentioned else "clip_score"
            bar.update()
            calls = sum(predictions(pipeline, calibration))
            return Candidate(calibration, table["cmmd"], measure, table[measure], seconds, calls)

        steps = min(domain.calibration.num_inference_steps, budget)  # WHOLE: no interval of an earlier search
        start = dataclasses.replace(domain.calibration, num_inference_steps=steps, guidance_interval=WHOLE)
        found = [attempt(dataclasses.replace(start, guidance=g, guidance_scale=s)) for g, s in guidances]
        best = choose_candidate(found).calibration
        others = [dataclasses.replace(best, scheduler=name, num_inference_steps=n) for name, n in schedules]
        found += [attempt(other) for other in others if other != best]
        best = choose_candidate(found).calibration
        if not intervals or best.guidance_scale <= 1:
            return found
        scales = [factor * best.guidance_scale for factor in GROWTH]
        kept = {predictions(pipeline, dataclasses.replace(best, guidance_interval=i)): i for i in INTERVALS}
        kept.pop(predictions(pipeline, best), None)  # an interval that guides every step is none
        limited = [{"guidance_interval": i, "guidance_scale": s} for i in kept.values() for s in scales]
        return found + [attempt(dataclasses.replace(best, **changes)) for changes in limited]


def choose_candidate(candidates: Sequence[Candidate]) -> Candidate:
    """Return the best by the rule of one standard error, which does not chase noise.

    Of those whose CMMD is within one standard error of the least, those that follow the prompt within one
    standard error of the best; of these the one with the fewest predictions, then the least CMMD.
    """
    nearest = min(candidates, key=lambda c: c.cmmd.value)
    close = [c for c in candidates if c.cmmd.value <= nearest.cmmd.value + nearest.cmmd.variance**0.5]
    best = max(close, key=lambda c: c.follows.value)
    close = [c for c in close if c.follows.value >= best.follows.value - best.follows.variance**0.5]
    return min(close, key=lambda c: (c.calls, c.cmmd.value))
