"""Where the rungs of a ladder stand: scores, paired differences, and how much evidence a difference needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from safetensors.torch import load_file

from dasd_utils import evaluation, scores, uncertainty
from dasd_utils.config import Config, DomainConfig
from dasd_utils.evaluation import Row
from dasd_utils.runtime import bars
from dasd_utils.study import calibration, ladder
from dasd_utils.study.ladder import CONTROL, DASD, RUNGS, Rung

EFFECT, MANY_SEEDS = 0.01, (3, 5, 10, 20)  # of the note on power


def table(
    judging: ladder.Judging, seeds: Sequence[int], rungs: Sequence[Rung] = RUNGS, against: str = DASD
) -> list[Row]:
    """Return the rows of all rungs that are done for all seeds: scores, differences to one of them, power.

    A row has method, domain, metric, value, low, high, n (images of all seeds) and seeds; a difference, to
    `against` or to the rung before it, also `against` and `separable`.
    """
    config, rows = judging.config, []
    done = [rung for rung in rungs if all(ladder.is_done(config, rung, seed) for seed in seeds)]
    for domain in bars.brief((*config.domains, config.source), "intervals", unit="domain"):
        asked = {rung.name: stored(config, rung, seeds, domain) for rung in done}
        found = {name: by_seed for name, by_seed in asked.items() if by_seed}
        target = domain in config.domains
        control = {CONTROL: [judging.control(domain)]} if target else {}
        rows += _compare(judging, domain, found | control, done, seeds, against)
        rows += power(found, domain.name, against) if target else []
    return rows


def _compare(
    judging: ladder.Judging,
    domain: DomainConfig,
    found: Mapping[str, Sequence[scores.Scores]],
    done: Sequence[Rung],
    seeds: Sequence[int],
    against: str,
) -> list[Row]:
    wanted, draws = judging.references[domain.name], judging.config.evaluation.num_bootstrap
    named = {name: scores.estimates(by_seed, wanted, draws) for name, by_seed in found.items()}
    rows = scores.rows(named, {"domain": domain.name}, against)
    for rung in (rung for rung in done if rung.after != against):
        two = {name: named[name] for name in (rung.name, rung.after) if name in named}
        rows += [row for row in scores.rows(two, {"domain": domain.name}, rung.after) if "against" in row]
    sizes = {name: sum(len(each["features"]) for each in by_seed) for name, by_seed in found.items()}
    trained = {name: [] if name == CONTROL else list(seeds) for name in found}
    return [row | {"n": sizes[row["method"]], "seeds": trained[row["method"]]} for row in rows]


def stored(config: Config, rung: Rung, seeds: Sequence[int], domain: DomainConfig) -> list[scores.Scores]:
    """Return the scores of a rung in a domain, a training seed each; none where it was not asked there."""
    found = [task for seed in seeds for task in ladder.tasks(config, rung, seed) if task.domain == domain]
    return [load_file(task.scores) for task in found]


def power(found: Mapping[str, Sequence[scores.Scores]], domain: str, against: str = DASD) -> list[Row]:
    """Return how many prompts would show a CLIP score 0.01 above or below another's, by number of seeds."""
    rows = []
    for name, by_seed in found.items():
        if name == against or against not in found or len(by_seed) < 2:
            continue
        pairs = zip(by_seed, found[against], strict=True)
        table = torch.stack([one["clip_score"] - other["clip_score"] for one, other in pairs])
        parts = uncertainty.components(table)
        row = {
            "method": name,
            "against": against,
            "domain": domain,
            "metric": "prompts_needed",
            "effect": EFFECT,
        }
        row |= {"deviation_of_seeds": parts.seeds**0.5, "deviation_of_prompts": parts.prompts**0.5}
        rows += [
            row | {"seeds": n, "value": uncertainty.prompts_needed(parts, EFFECT, n)} for n in MANY_SEEDS
        ]
    return rows


def searches(config: Config, seeds: Sequence[int], rungs: Sequence[Rung] = RUNGS) -> list[Row]:
    """Return the rows of every search for a calibration that the rungs are sampled with."""
    asked = [rung for rung in rungs if rung.settings == ladder.CALIBRATED]
    runs = [ladder.run_config(config, rung, seed).output_dir for rung in asked for seed in seeds]
    paths = [calibration.file(run).with_name(calibration.SEARCH) for run in runs]
    return [row for path in paths if path.is_file() for row in evaluation.load_results(path)["rows"]]
