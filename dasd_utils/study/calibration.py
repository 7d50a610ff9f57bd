"""How a trained domain is best sampled: guidance, scheduler and steps, searched on the validation split."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dasd_utils import evaluation, metrics, sampling
from dasd_utils.config import Calibration, DasdError, DomainConfig, resolve
from dasd_utils.metrics import Estimate
from dasd_utils.runtime import bars, checkpoints, files

SCALES = {"cfg": (1.5, 2.0, 3.0, 4.0, 5.5, 7.5), "domain": (1.5, 2.0, 3.0, 4.0, 5.5)}
SCHEDULES = (
    *(("dpm++", steps) for steps in (8, 10, 15, 20, 30)),
    *(("unipc", steps) for steps in (8, 10, 15, 20)),
    *(("ddim", steps) for steps in (15, 30, 50)),
)
BUDGET = 30  # denoising steps
IMAGES = 64  # a candidate and domain
NOISE = 7_000_000  # seeds that no evaluation uses
SEARCH = "calibration_search.json"
log = logging.getLogger(__name__)
Row = dict[str, Any]


@dataclass(frozen=True)
class Candidate:
    """One way of sampling, and what its images scored on the validation split."""

    calibration: Calibration
    cmmd: Estimate
    measure: str  # of following the prompt: attribute_accuracy where images can be read, else clip_score
    follows: Estimate
    seconds: float  # an image

    @property
    def calls(self) -> int:
        """Return how many predictions of the network an image takes."""
        branches = 2 if self.calibration.guidance_scale > 1 else 1
        return branches * self.calibration.num_inference_steps


def calibrate(
    pipeline: sampling.DasdPipeline,
    scorer: evaluation.Scorer,
    path: Path,
    budget: int = BUDGET,
    num_images: int = IMAGES,
    again: bool = False,
) -> None:
    """Search every target domain and write `calibration.json` at `path`, beside it every candidate's scores.

    In a run folder `load_trained_pipeline` uses it. One that is there is kept, or with `again` replaced when
    the search is done. Raises DasdError for too few validation images or a folder that cannot be written,
    before any sampling.
    """
    if path.is_file() and not again:
        return
    checkpoints.writable(path.parent)
    table, found = {}, []
    for domain in pipeline.config.domains:
        candidates = search(pipeline, domain, scorer, budget, num_images)
        best = choose_candidate(candidates)
        table[domain.name] = dataclasses.asdict(best.calibration)
        found += [
            row for each in candidates for row in _rows(each, domain, each is best, pipeline.config.seed)
        ]
        log.info("%s: %s", domain.name, table[domain.name])
    evaluation.save_results(path.with_name(SEARCH), pipeline.config, found)
    files.write_json(path, table, "The calibration")  # last: where it is, the search was complete


def calibration_file(run: str | Path) -> Path:
    """Return where the calibrations of a run, or of an adapter's folder in it, are."""
    return sampling.run_folder(resolve(run)) / sampling.CALIBRATION_FILE


def search(
    pipeline: sampling.DasdPipeline,
    domain: DomainConfig,
    scorer: evaluation.Scorer,
    budget: int = BUDGET,
    num_images: int = IMAGES,
    scales: dict[str, Sequence[float]] | None = None,
    schedules: Sequence[tuple[str, int]] | None = None,
    progress: bool = True,
) -> list[Candidate]:
    """Return the candidates of one domain: guidance first, with the config's schedule, then the schedule.

    budget: most denoising steps. All candidates answer the same validation captions from the same noise.
    """
    wanted = evaluation.load_reference(domain, pipeline.config, scorer, num_images, "validation")
    start = domain.calibration
    if start.num_inference_steps > budget:
        start = dataclasses.replace(start, num_inference_steps=budget)
    schedules = [s for s in schedules or SCHEDULES if s[1] <= budget]
    if not schedules:
        raise DasdError(f"The budget of {budget} steps leaves no schedule to try: {SCHEDULES}.")
    count = _count(scales, schedules)
    with bars.bar(None, domain.name, count, shown=progress, unit="candidate") as bar:

        def tried(calibrations: Iterator[Calibration]) -> list[Candidate]:
            return [_try(pipeline, domain, scorer, wanted, c, num_images, bar) for c in calibrations]

        first = tried(_guidances(start, scales or SCALES))
        best = choose_candidate(first).calibration
        more = (dataclasses.replace(best, scheduler=s, num_inference_steps=n) for s, n in schedules)
        return first + tried(c for c in more if c != best)


def _count(scales: dict[str, Sequence[float]] | None, schedules: Sequence) -> int:
    return sum(len(each) for each in (scales or SCALES).values()) + len(schedules)


def _guidances(start: Calibration, scales: dict[str, Sequence[float]]) -> Iterator[Calibration]:
    for guidance, values in scales.items():
        for scale in values:
            yield dataclasses.replace(start, guidance=guidance, guidance_scale=scale)


def _try(
    pipeline: sampling.DasdPipeline,
    domain: DomainConfig,
    scorer: evaluation.Scorer,
    wanted: evaluation.Reference,
    calibration: Calibration,
    num_images: int,
    bar: Any,
) -> Candidate:
    prompt_of = wanted.prompts.prompt_of(num_images)
    prompts, seeds = [wanted.prompts.texts[i] for i in prompt_of], [NOISE + i for i in range(num_images)]
    started = time.perf_counter()
    images, *_ = pipeline.generate(prompts, domain=domain.name, seed=seeds, settings=calibration)
    seconds = (time.perf_counter() - started) / num_images
    bar.update()
    features = scorer.embed(images)
    found = {"features": features}
    if wanted.prompts.mentioned:
        told = [wanted.prompts.mentioned[i] for i in prompt_of]
        found["attribute_accuracy"] = metrics.attribute_accuracy(
            scorer.reader.read(images, domain.name), told
        )
    else:
        found["clip_score"] = metrics.clip_scores(features, wanted.prompts.features[prompt_of])
    table = evaluation.estimates([found], wanted, pipeline.config.evaluation.num_bootstrap)
    measure = "attribute_accuracy" if wanted.prompts.mentioned else "clip_score"
    return Candidate(calibration, table["cmmd"], measure, table[measure], seconds)


def choose_candidate(candidates: Sequence[Candidate]) -> Candidate:
    """Return the best by the rule of one standard error, which does not chase noise.

    Of those whose CMMD is within one standard error of the least, those that follow the prompt within one
    standard error of the best; of these the one with the fewest predictions, then the least CMMD.
    """
    nearest = min(candidates, key=lambda c: _value(c.cmmd))
    close = [c for c in candidates if _value(c.cmmd) <= _value(nearest.cmmd) + _error(nearest.cmmd)]
    best = max(close, key=lambda c: _value(c.follows))
    close = [c for c in close if _value(c.follows) >= _value(best.follows) - _error(best.follows)]
    return min(close, key=lambda c: (c.calls, _value(c.cmmd)))


def _value(estimate: Estimate) -> float:
    return estimate.values.mean().item()


def _error(estimate: Estimate) -> float:
    return estimate.draws.mean(dim=1).std().item()


def _rows(candidate: Candidate, domain: DomainConfig, chosen: bool, seed: int) -> list[Row]:
    start = {"domain": domain.name, **dataclasses.asdict(candidate.calibration), "chosen": chosen}
    start |= {"calls": candidate.calls, "seconds_an_image": candidate.seconds}
    rows = []
    for metric, estimate in (("cmmd", candidate.cmmd), (candidate.measure, candidate.follows)):
        value, low, high = estimate.interval()
        rows.append(
            start
            | {"metric": metric, "value": value, "low": low, "high": high, "n": estimate.units, "seed": seed}
        )
    return rows
