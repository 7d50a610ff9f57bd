"""The ladder: methods that differ in one thing each, all trained, sampled and scored in the same way.

Finished work is kept in `<output_dir>/trained/<key>`, named by all settings that decide the weights, and in
`<output_dir>/samples/<key>`, named by all that decide the images. A ladder that was stopped goes on there.
"""

import bisect
import dataclasses
import functools
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from dasd_utils import config as configs
from dasd_utils import data, evaluation, metrics, profiles, sampling, training
from dasd_utils.config import Calibration, Config, DasdError, DomainConfig, resolve
from dasd_utils.evaluation import Reference, ResultRow, Scores
from dasd_utils.runtime import checkpoints, files, images, small_cnn
from dasd_utils.study import calibration

DASD = "DASD"
CONTROL = "training images"  # real ones in the place of samples: what a perfect copy scores
SEED_STEP = 100_000  # between the noise of one training seed and the next
PROTOCOL, PUBLISHED, CALIBRATED = "protocol", "published", "calibrated"
DOMAIN, UNCONDITIONAL, DECOUPLED = "domain", "unconditional", "decoupled"  # kinds of guidance
DOMAIN_IMAGES = 300  # training images of each domain that teach the classifier of domains
POWER = 0.8
EFFECT = 0.01  # of the CLIP score
MANY_SEEDS = (3, 5, 10, 20)
MOST_PROMPTS = 100_000  # more than anybody samples
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Method:
    """One method: what is trained, and how it is sampled."""

    name: str
    trained: bool = True  # False: the base model
    # config fields of its training, or what makes them of the ladder's config
    changes: Mapping[str, Any] | Callable[[Config], Mapping[str, Any]] = field(default_factory=dict)
    tokens: bool = True  # a learned token leads each prompt
    style_words: bool = False  # the domain's style words follow each prompt
    settings: str = PROTOCOL  # or PUBLISHED, CALIBRATED, DOMAIN, UNCONDITIONAL, DECOUPLED
    scales: Mapping[str, float] = field(default_factory=dict)  # instead of those of the settings
    objective: str = configs.DASD  # whose objective trains it, with that method's changes under its own
    after: str = DASD  # the method that it is one step from: their difference is in the table too

    def config(self, config: Config) -> Config:
        """Return the config that this method trains with; DasdError for one that names a method itself."""
        if config.method != configs.DASD:
            raise DasdError(f"The config names the method {config.method!r}, but each method of a ladder has "
                            "its own: leave method and method_settings out.")  # fmt: skip
        changes: dict[str, Any] = {}
        if self.objective != configs.DASD:  # it may take more than DASD, for which "auto" chose the sizes
            profile = profiles.PROFILES.get(config.profile, {}).get("training", {})
            saving = config.training.gradient_checkpointing or profile.get("gradient_checkpointing", False)
            changes = {"method": self.objective, "gradient_checkpointing": saving}
        changes |= configs.method_changes(self.objective)
        changes |= self.changes(config) if callable(self.changes) else self.changes
        if not self.tokens:
            changes["domains"] = tuple(dataclasses.replace(each, token=None) for each in config.domains)
        return config.replace(**changes)

    @property
    def sees_source(self) -> bool:
        """Return whether it samples the source too: one method of each training does."""
        return self.settings == PROTOCOL and not self.style_words and not self.scales


LORA_AND_TOKEN = {"lambda_align": 0.0}
PLAIN = "LoRA + token"
ADAPTED = {"source_features": "adapted"}
PUBLISHED_MMD = ADAPTED | dict(kernel="gaussian", pooling="flat", unbiased=False, queue_size=0, pairs=True)
METHODS = (
    Method("base", trained=False),
    Method("base + style words", trained=False, style_words=True, after="base"),
    Method("token only", changes={"rank": 0, "lambda_align": 0.0}, after="base"),
    Method("LoRA only", changes=LORA_AND_TOKEN, tokens=False, after="base"),
    Method(PLAIN, changes=LORA_AND_TOKEN, after="LoRA only"),
    Method("+ published MMD, Gaussian", changes=PUBLISHED_MMD, after=PLAIN),
    Method("+ published MMD, linear", changes=PUBLISHED_MMD | {"kernel": "linear"}, after=PLAIN),
    Method(DASD, after=PLAIN),
    Method("DASD, adapted source", changes=ADAPTED, after=PLAIN),
    Method("DASD, frozen source", changes={"source_features": "frozen"}, after=DASD),
    Method(f"{PLAIN} + prior preservation", changes=LORA_AND_TOKEN | {"prior_loss_weight": 1.0}, after=PLAIN),
    Method("DASD, published sampling", settings=PUBLISHED),
    Method("DASD, calibrated", settings=CALIBRATED, after="DASD, published sampling"),
    Method("DASD, Domain Guidance", settings=DOMAIN),
)
PAPER_METHODS = tuple(
    Method(name, objective=method, **fields)
    for method in configs.known_methods()
    for name, fields in configs.method_module(method).LADDER.items()
)


def find_methods(
    names: Sequence[str] | None, methods: Sequence[Method] = (*METHODS, *PAPER_METHODS)
) -> list[Method]:
    """Return the methods of these names, DASD's ladder if None; DasdError for an unknown one."""
    return list(METHODS) if names is None else find_named(methods, names, "method")


def find_named(known: Sequence[Any], names: Sequence[str], what: str) -> list[Any]:
    """Return what has these names, in their order; DasdError for an unknown one."""
    for name in names:
        configs.check_choice(what, name, [each.name for each in known])
    return [each for name in names for each in known if each.name == name]


def check_images(config: Config) -> None:
    """Raise DasdError where images or captions are not those of the results in the output_dir."""
    path = resolve(config.output_dir) / "images.json"
    known = files.read_object(path, "What the images were") if path.is_file() else {}
    found, domains = {}, [d for d in (config.source, *config.domains) if not d.data.startswith("toyworld:")]
    for domain, split in itertools.product(domains, ("train", "test")):
        held = data.load_domain(domain, config, split)
        name = files.short_hash([split, dataclasses.asdict(domain), dataclasses.asdict(config.data)])
        found[name] = files.short_hash([list(held.ids), list(held.captions)])
        if found[name] != known.get(name, found[name]):
            raise DasdError(f"The {split} images of {domain.name} or their captions have changed since the "
                            f"results in {path.parent} were made: name another output_dir.")  # fmt: skip
    if found.keys() - known.keys():
        files.write_json(path, known | found, "What the images were")


# training
def run_config(config: Config, method: Method, seed: int) -> Config:
    """Return the config of a method's training, whose output_dir is named by what decides the weights."""
    own = method.config(config.replace(seed=seed, validation_every=0))
    return own.replace(output_dir=str(Path(config.output_dir) / "trained" / checkpoints.run_key(own)))


def train(config: Config, method: Method, seed: int, progress: bool = True) -> Config:
    """Train the method unless its run is complete, going on from its last checkpoint; return its config."""
    wanted = run_config(config, method, seed)
    training.train_or_resume(wanted, f"{method.name}, seed {seed}", progress)
    return wanted


def find_or_train(
    config: Config, method: Method, seed: int, progress: bool = True, places: Sequence[str] = ()
) -> Path:
    """Return the folder of a run that fits the method: its own, of `places`, the shipped or a new one."""
    try:
        return checkpoints.find_run(run_config(config, method, seed), places)
    except DasdError as reason:
        log.info("%s", reason)
    return resolve(train(config, method, seed, progress).output_dir)


def load_or_train(config: Config, names: Mapping[str, str], seed: int) -> dict[str, sampling.DasdPipeline]:
    """Return the pipeline of each method, {title: its name}; all are trained before the first is loaded."""
    check_images(config)
    methods = {title: find_methods([name])[0] for title, name in names.items()}
    runs = {title: find_or_train(config, method, seed, progress=False) for title, method in methods.items()}
    return {
        title: sampling.load_trained_pipeline(run, run_config(config, methods[title], seed))
        for title, run in runs.items()
    }


# sampling
def settings(config: Config, method: Method, domain: DomainConfig, run: Path | None) -> Calibration:
    """Return how the method is sampled in a domain; DasdError where its calibration was not made."""
    published, protocol = profiles.PUBLISHED_CALIBRATION, config.evaluation
    found = Calibration(protocol.guidance_scale, protocol.num_inference_steps, protocol.scheduler)
    if method.settings in (DOMAIN, UNCONDITIONAL, DECOUPLED):
        found = dataclasses.replace(found, guidance=method.settings)
    elif method.settings == PUBLISHED:
        found = Calibration(**published.get(domain.name, published["default"]))
    elif method.settings == CALIBRATED:
        found = sampling.calibrated(config, calibration.calibration_file(run)).domain(domain.name).calibration
    return dataclasses.replace(found, **method.scales)


@dataclass(frozen=True)
class Task:
    """The samples of one method, one training seed and one domain."""

    config: Config
    method: Method
    seed: int
    domain: DomainConfig
    count: int
    run: Path | None  # of the trained weights

    @functools.cached_property
    def calibration(self) -> Calibration:
        """How the method is sampled in the domain; DasdError where its calibration was not made."""
        return settings(self.config, self.method, self.domain, self.run)

    @property
    def folder(self) -> Path:
        """Return where its files are, named by all settings that decide the images."""
        known = {"source": dataclasses.asdict(self.domain), "data": dataclasses.asdict(self.config.data)}
        domain, split = checkpoints.without_newer_fields(known).values()
        computed = self.config.training.mixed_precision
        precision = {} if computed == "auto" else {"precision": computed}  # of a run its name holds it
        unseen = {"calibration", "descriptions"} | (set() if self.method.style_words else {"style_suffix"})
        named = {
            "run": self.run.name if self.run else dataclasses.asdict(self.config.model) | precision,
            "domain": {name: value for name, value in domain.items() if name not in unseen},
            "split": {name: split[name] for name in split if name not in ("cache_dir", "source_images")},
            "calibration": self.calibration.settings(),
            "count": self.count,
            "seed": self.seed,
        }
        return resolve(self.config.output_dir) / "samples" / files.short_hash(named)

    @property
    def scores(self) -> Path:
        """Return the file of the scores, the last to be written, named by all settings that decide them."""
        model, members = self.config.model, (self.config.source, *self.config.domains)
        named = {
            "judge": [model.base, model.base_revision, model.clip, model.clip_revision, "float32"],
            "inception": self.config.evaluation.inception,
            "heldout": self.config.evaluation.num_heldout,
            "domains": [[d.name, d.data, d.revision, d.num_images] for d in members],  # of their classifier
        }
        return self.folder / f"scores-{files.short_hash(named)}.safetensors"

    def prompts_and_seeds(self, reference: Reference) -> tuple[list[str], list[int]]:
        """Return the prompt and the seed of each image."""
        prompts = [reference.prompts.texts[i] for i in reference.prompts.prompt_of(self.count)]
        if self.method.style_words:
            prompts = [f"{prompt}, {self.domain.style_suffix}" for prompt in prompts]
        return prompts, [SEED_STEP * self.seed + i for i in range(self.count)]


def tasks(config: Config, method: Method, seed: int) -> list[Task]:
    """Return the tasks of a method and a seed: its target domains, and the source where it samples that."""
    run = Path(run_config(config, method, seed).output_dir) if method.trained else None
    count = config.evaluation.num_heldout
    domains = [(domain, count) for domain in config.domains]
    domains += [(config.source, max(count // 2, 10))] if method.sees_source else []
    return [Task(config, method, seed, domain, number, run) for domain, number in domains]


def is_done(config: Config, method: Method, seed: int) -> bool:
    """Return whether all samples of a method and a seed are scored."""
    if method.settings == CALIBRATED:
        run = run_config(config, method, seed).output_dir
        if not calibration.calibration_file(run).is_file():
            return False
    return all(task.scores.is_file() for task in tasks(config, method, seed))


def sample(task: Task, reference: Reference, pipeline: sampling.DasdPipeline) -> list[Image.Image]:
    """Return the task's images, read from its file or made now and written there."""
    path = task.folder / "samples.parquet"
    if not path.is_file():
        images.save_samples(path, draw_images(task, reference, pipeline), *task.prompts_and_seeds(reference))
    return images.load_samples(path)


def draw_images(task: Task, reference: Reference, pipeline: sampling.DasdPipeline) -> list[Image.Image]:
    """Return the task's images, made now; image i has the same noise for all methods of a seed."""
    prompts, seeds = task.prompts_and_seeds(reference)
    target = task.method.trained and task.domain in task.config.domains
    images, *_ = pipeline.generate(
        prompts,
        domain=task.domain.name if target else None,
        seed=seeds,
        settings=task.calibration,
        guidance=task.calibration.guidance,  # by name: a learner without prompts takes the method's kind
        adapter=task.method.trained,  # for the source too, to see what becomes of what the model knew
    )
    return images


# scoring
class Scoring:
    """What all methods are scored with, each part loaded at its first use and once."""

    def __init__(self, config: Config) -> None:
        METHODS[0].config(config)  # raises DasdError for a config that names a method
        check_images(config)
        self.config = config

    @functools.cached_property
    def scorer(self) -> evaluation.Scorer:
        """The networks that score."""
        return evaluation.load_scorer(self.config)

    @functools.cached_property
    def references(self) -> dict[str, Reference]:
        """The first `num_heldout` held-out images of each domain, by its name."""
        rest = self.config, self.scorer, self.config.evaluation.num_heldout
        members = (self.config.source, *self.config.domains)
        return {domain.name: evaluation.load_reference(domain, *rest) for domain in members}

    @functools.cached_property
    def domains(self) -> small_cnn.SmallCNN:
        """The classifier of source and target domains, trained on their training images."""
        pixels, names = [], []
        for domain in (self.config.source, *self.config.domains):
            train = data.load_domain(domain, self.config)
            count = min(DOMAIN_IMAGES, len(train))
            pixels.append(small_cnn.pixels([train.images[i] for i in range(count)]))
            names += [domain.name] * count
        return small_cnn.train(torch.cat(pixels), names)

    def score(self, task: Task, pipeline: sampling.DasdPipeline) -> tuple[list[Image.Image], Scores]:
        """Return the task's images, made where they are not stored, and their scores."""
        reference = self.references[task.domain.name]
        drawn = sample(task, reference, pipeline)
        return drawn, evaluation.score_images(drawn, reference, self.scorer, self.domains, task.seed)

    def control(self, domain: DomainConfig) -> Scores:
        """Return the scores of training images in the place of samples."""
        train = data.load_domain(domain, self.config)
        count = min(self.config.evaluation.num_heldout, len(train))
        pictures = [train.images[i] for i in range(count)]
        prompts = evaluation.prompts_of(train, self.scorer, count)
        reference = self.references[domain.name]
        return evaluation.score_images(pictures, reference, self.scorer, self.domains, own=prompts)


def run_ladder(
    scoring: Scoring, seeds: Sequence[int], methods: Sequence[Method] = METHODS, progress: bool = True
) -> list[tuple[str, int]]:
    """Train, sample and score what is missing; return the (method, seed) that other processes work on."""
    config = scoring.config
    while True:
        left = [(seed, method) for seed in seeds for method in methods if not is_done(config, method, seed)]
        todo = files.bar(left, "methods", shown=progress and bool(left), unit="method")
        mine = [(seed, method) for seed, method in todo if _take(scoring, method, seed, progress)]
        if not mine:
            return [(method.name, seed) for seed, method in left]


def _take(scoring: Scoring, method: Method, seed: int, progress: bool) -> bool:
    """Do a method of a seed unless another process works on it, or on one that shares its weights."""
    config = scoring.config
    wanted = run_config(config, method, seed)
    if not method.trained:
        wanted = wanted.replace(output_dir=str(Path(config.output_dir) / "trained" / f"base-{seed}"))
    with checkpoints.lock_run(wanted, required=False) as mine:
        if not mine or is_done(config, method, seed):
            return mine
        log.info("%s, seed %d", method.name, seed)
        if method.trained:
            train(config, method, seed, progress)
            pipeline = sampling.load_trained_pipeline(resolve(wanted.output_dir), wanted)
        else:
            pipeline = sampling.load_base_pipeline(config)
        if method.settings == CALIBRATED:
            path = calibration.calibration_file(pipeline.config.output_dir)
            calibration.calibrate(pipeline, scoring.scorer, path)
        for task in (each for each in tasks(config, method, seed) if not each.scores.is_file()):
            _, found = scoring.score(task, pipeline)
            with files.atomic_write(task.scores, "The scores") as temporary:
                save_file(found, temporary)
    return True


# the table
def ladder_rows(
    scoring: Scoring, seeds: Sequence[int], methods: Sequence[Method] = METHODS, against: str = DASD
) -> list[ResultRow]:
    """Return the rows of all methods that are done for all seeds: scores, differences, power.

    A row has method, domain, metric, value, low, high, n (images of all seeds) and seeds; a difference, to
    `against` or to the method before it, also `against` and `separable`.
    """
    config, rows = scoring.config, []
    done = [method for method in methods if all(is_done(config, method, seed) for seed in seeds)]
    for domain in files.short_bar((*config.domains, config.source), "intervals", unit="domain"):
        reference, start = scoring.references[domain.name], {"domain": domain.name}
        scores = {method.name: stored(config, method, seeds, domain) for method in done}
        found = {name: by_seed for name, by_seed in scores.items() if by_seed}
        power = power_rows(found, domain.name, against) if domain in config.domains else []
        if domain in config.domains:
            found[CONTROL] = [scoring.control(domain)]
        draws = config.evaluation.num_bootstrap
        real = {CONTROL: dataclasses.replace(reference, paired=False)}  # no samples of the prompts
        named = {n: evaluation.estimates(each, real.get(n, reference), draws) for n, each in found.items()}
        compared = evaluation.result_rows(named, start, against)
        for method in (method for method in done if method.after != against):
            two = {name: named[name] for name in (method.name, method.after) if name in named}
            compared += evaluation.difference_rows(two, start, method.after)
        sizes = {name: sum(len(each["features"]) for each in by_seed) for name, by_seed in found.items()}
        for row in compared:
            name = row["method"]
            rows.append(row | {"n": sizes[name], "seeds": [] if name == CONTROL else list(seeds)})
        rows += power
    return rows


def stored(config: Config, method: Method, seeds: Sequence[int], domain: DomainConfig) -> list[Scores]:
    """Return the scores of a method in a domain, a training seed each; none where it has none."""
    found = [task for seed in seeds for task in tasks(config, method, seed) if task.domain == domain]
    return [checkpoints.read_tensors(task.scores) for task in found]


def searches(config: Config, seeds: Sequence[int], methods: Sequence[Method] = METHODS) -> list[ResultRow]:
    """Return the rows of every search for a calibration that the methods are sampled with."""
    calibrated = [method for method in methods if method.settings == CALIBRATED]
    runs = [run_config(config, method, seed).output_dir for method in calibrated for seed in seeds]
    paths = [calibration.calibration_file(run).with_name(calibration.SEARCH) for run in runs]
    return [row for path in paths if path.is_file() for row in evaluation.load_results(path)["rows"]]


# power
def variance_components(differences: Tensor) -> tuple[float, float, float]:
    """Return the variances of differences (S, P) of images: between seeds, between prompts, and the rest."""
    table = differences.double()
    (seeds, prompts), mean = table.shape, table.mean()
    of_seeds, of_prompts = table.mean(dim=1, keepdim=True), table.mean(dim=0, keepdim=True)
    squares = (table - of_seeds - of_prompts + mean).square().sum().item()
    rest = squares / ((seeds - 1) * (prompts - 1))
    between_seeds = (prompts * of_seeds.var().item() - rest) / prompts
    between_prompts = (seeds * of_prompts.var().item() - rest) / seeds
    return max(between_seeds, 0.0), max(between_prompts, 0.0), rest


def prompts_needed(components: tuple[float, float, float], effect: float, seeds: int) -> int | None:
    """Return how many prompts show a difference of `effect` with a power of 80 %, or None if no number does.

    Two-sided at 95 %, with two or more trainings, one image a prompt; components: of `variance_components`.
    """
    of_seeds, of_prompts, of_rest = components

    def enough(prompts: int) -> bool:
        rest = of_rest / (seeds * prompts)  # in both terms of the interval, once in the estimate
        terms = ((of_seeds / seeds + rest, seeds - 1), (of_prompts / prompts + rest, prompts - 1))
        return metrics.power(effect, terms, sum(variance for variance, _ in terms) - rest) >= POWER

    found = bisect.bisect_left(range(MOST_PROMPTS + 1), True, lo=2, key=enough)
    return found if found <= MOST_PROMPTS else None


def power_rows(found: Mapping[str, Sequence[Scores]], domain: str, against: str) -> list[ResultRow]:
    """Return how many prompts would show a CLIP score 0.01 above or below another's, by number of seeds."""
    rows, base = [], found.get(against, ())
    for name, by_seed in found.items():
        if name == against or min(len(by_seed), len(base)) < 2:
            continue
        pairs = zip(by_seed, base, strict=True)
        components = variance_components(torch.stack([a["clip_score"] - b["clip_score"] for a, b in pairs]))
        row = {"method": name, "against": against, "domain": domain, "metric": "prompts_needed"}
        parts = zip(("seeds", "prompts", "rest"), components, strict=True)
        row |= {"effect": EFFECT} | {f"deviation_of_{part}": variance**0.5 for part, variance in parts}
        rows += [row | {"seeds": n, "value": prompts_needed(components, EFFECT, n)} for n in MANY_SEEDS]
    return rows
