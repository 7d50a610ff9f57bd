"""The search keeps its budget, chooses by the rule, and writes what the pipeline uses."""

import dataclasses

import pytest
import torch
from conftest import dasd

from dasd_utils import evaluation, sampling, training
from dasd_utils.config import Calibration
from dasd_utils.metrics import Estimate
from dasd_utils.study import calibration
from dasd_utils.study.calibration import Candidate


def estimate(value, error):
    draws = torch.linspace(-1, 1, 101).double()[:, None]
    draws *= error / draws.std() * 0.9**0.5  # a bootstrap of ten prompts lacks 10 / 9
    return Estimate(torch.tensor([value]).double(), value + draws, 10)


def candidate(cmmd, follows, steps=10, scale=2.0, error=0.1):
    settings = Calibration(scale, steps, "ddim")
    follows = estimate(follows, 0.02)
    return Candidate(settings, estimate(cmmd, error), "clip_score", follows, 1.0, calls=2 * steps)


def test_the_nearest_wins_if_it_is_clearly_so():
    far, near = candidate(2.0, 0.9, steps=5), candidate(1.0, 0.5)
    assert calibration.choose_candidate([far, near]) is near
    assert estimate(2.0, 0.1).variance == pytest.approx(0.01)  # that of prompts
    just = candidate(1.099, 0.6, steps=30)
    assert calibration.choose_candidate([near, just]) is just


def test_within_an_error_the_prompt_decides_then_the_price():
    least, follows = candidate(1.0, 0.5), candidate(1.05, 0.6, steps=30)
    assert calibration.choose_candidate([least, follows]) is follows
    cheaper = candidate(1.08, 0.59, steps=8)  # follows as well, within its error
    assert calibration.choose_candidate([least, follows, cheaper]) is cheaper
    assert calibration.choose_candidate([least, follows, cheaper, candidate(1.2, 0.9, steps=1)]) is cheaper
    nearer = candidate(0.99, 0.5)
    assert calibration.choose_candidate([least, nearer]) is nearer


@pytest.fixture(scope="module")
def config(make_config):
    config = make_config(num_bootstrap=20, max_train_steps=2)
    parts = training.setup_training(config)
    *_, sampler = training.latents.create_datasets(config, parts.tokenizer)
    training.save_training_results(config, parts, training.train(config, parts, sampler, progress=False))
    return config


@pytest.fixture
def search(config, monkeypatch):
    """Return `search(schedules, budget)`: the candidates of the first domain."""

    def run(schedules, budget=30, intervals=False, scale=None, config=config):
        monkeypatch.setattr(calibration, "SCHEDULES", schedules)
        scales = {"cfg": (1.0, 2.0), "domain": (2.0,)} if scale is None else {"cfg": (scale,)}
        monkeypatch.setattr(calibration, "SCALES", scales)
        run = config.output_dir
        pipeline, scorer = sampling.load_trained_pipeline(run, config), evaluation.load_scorer(config, "cpu")
        return calibration.search(pipeline, config.domains[0], scorer, budget, 10, intervals)

    return run


def test_a_run_without_prompts_is_searched_with_the_guidance_that_samples_it(config, search):
    blind = config.replace(caption_dropout=1.0)
    found = search((("ddim", 1),), budget=1, config=blind)
    kinds = [(c.calibration.guidance, c.calibration.guidance_scale) for c in found[:3]]
    assert kinds == [("decoupled", 1.0), ("decoupled", 2.0), ("domain", 2.0)]


def test_guidance_comes_first_then_the_schedule(config, search):
    found = search((("ddim", 1), ("dpm++", 2), ("ddim", 9)), budget=3)
    settings = [c.calibration for c in found]
    start = config.domains[0].calibration
    kinds = [(c.guidance, c.guidance_scale) for c in settings]
    assert kinds[:3] == [("cfg", 1.0), ("cfg", 2.0), ("domain", 2.0)]
    assert {(c.scheduler, c.num_inference_steps) for c in settings[:3]} == {(start.scheduler, 2)}
    best = calibration.choose_candidate(found[:3]).calibration
    assert [(c.scheduler, c.num_inference_steps) for c in settings[3:]] == [("ddim", 1), ("dpm++", 2)]
    assert set(kinds[3:]) == {(best.guidance, best.guidance_scale)}
    assert all(c.cmmd.values.isfinite() and c.seconds > 0 for c in found)


def of_four_steps(config):
    steps = [dataclasses.replace(d.calibration, num_inference_steps=4) for d in config.domains]
    pairs = zip(config.domains, steps, strict=True)
    return config.replace(domains=tuple(dataclasses.replace(d, calibration=c) for d, c in pairs))


def test_intervals_of_the_best_are_searched_if_it_is_guided(config, search, monkeypatch):
    monkeypatch.setattr(calibration, "INTERVALS", ((0.2, 0.9), (0.0, 0.5)))
    found = search((("ddim", 4),), intervals=True, scale=2.0, config=of_four_steps(config))
    settings = [c.calibration for c in found]
    best = calibration.choose_candidate(found[:-4]).calibration
    expected = [(0.2, 0.9, 2.0), (0.2, 0.9, 3.0), (0.0, 0.5, 2.0), (0.0, 0.5, 3.0)]
    assert [(*c.guidance_interval, c.guidance_scale) for c in settings[-4:]] == expected
    fixed = {dataclasses.replace(c, guidance_scale=2.0, guidance_interval=(0, 1)) for c in settings[-4:]}
    assert fixed == {best}
    unguided = search((("ddim", 4),), intervals=True, scale=1.0, config=of_four_steps(config))
    assert len(unguided) == len(found) - 4
    assert {c.calibration.guidance_interval for c in search((("ddim", 4),))} == {(0.0, 1.0)}


def test_intervals_that_guide_the_same_steps_are_one(config, search, monkeypatch):
    monkeypatch.setattr(calibration, "INTERVALS", ((0.2, 0.9), (0.2, 0.8), (0.1, 1.0), (0.0, 0.5)))
    found = search((("ddim", 4),), intervals=True, scale=2.0, config=of_four_steps(config))
    kept = [c.calibration.guidance_interval for c in found if c.calibration.guidance_interval != (0.0, 1.0)]
    assert len(kept) == 4 and len(set(kept)) == 2 and (0.0, 0.5) in kept
    assert {c.calls for c in found if c.calibration.guidance_interval == (0.0, 1.0)} == {8}
    assert all(c.calls < 8 for c in found if c.calibration.guidance_interval in kept)


@pytest.mark.parametrize("kind", ["cfg", "domain", "decoupled", "unconditional"])
@pytest.mark.parametrize("scheduler", ["dpm++", "unipc", "ddim"])
def test_the_calls_of_the_network_are_those_of_sampling(config, kind, scheduler):
    pipeline, seen = sampling.load_trained_pipeline(config), []
    pipeline.parts.unet.register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    for interval, scale in (((0.0, 1.0), 2.0), ((0.2, 0.9), 2.0), ((0.0, 0.8), 2.0), ((0.0, 1.0), 1.0)):
        how = Calibration(scale, 8, scheduler, guidance=kind)
        if kind in ("cfg", "domain"):
            how = dataclasses.replace(how, guidance_interval=interval)
        seen.clear()
        pipeline.generate("a river", domain="satellite", seed=0, settings=how)
        assert sum(seen) == sum(calibration.predictions(pipeline, how))
    if kind == "cfg" and scheduler == "dpm++":
        how = dataclasses.replace(how, guidance_scale=2.0, guidance_interval=(0.0, 0.8))
        assert sum(calibration.predictions(pipeline, how)) == 15


def test_a_search_leaves_the_interval_of_an_earlier_one(config, search):
    earlier = [dataclasses.replace(d.calibration, guidance_interval=(0.2, 0.9)) for d in config.domains]
    domains = [dataclasses.replace(d, calibration=c) for d, c in zip(config.domains, earlier, strict=True)]
    found = search((("ddim", 4),), config=config.replace(domains=domains))
    assert {c.calibration.guidance_interval for c in found} == {(0.0, 1.0)}


def test_it_looks_at_validation_images_only(search, monkeypatch):
    asked, load = [], calibration.evaluation.data.load_domain

    def noted(domain, config, split="train"):
        asked.append(split)
        return load(domain, config, split)

    monkeypatch.setattr(calibration.evaluation.data, "load_domain", noted)
    search((("ddim", 1),))
    assert set(asked) == {"validation", "train"}


def test_the_command_writes_what_the_pipeline_uses(config, monkeypatch):
    monkeypatch.setattr(calibration, "SCHEDULES", (("ddim", 1), ("dpm++", 2)))
    monkeypatch.setattr(calibration, "SCALES", {"cfg": (1.5,), "domain": (3.0,)})
    words = ["calibrate", "--checkpoint", config.output_dir, "--num_images", 10]
    printed = dasd(*words)
    pipeline = sampling.load_trained_pipeline(config.output_dir)
    for domain in pipeline.config.domains:
        found = domain.calibration
        assert printed["domains"][domain.name] == vars(found) | {"guidance_interval": [0.0, 1.0]}
        assert (found.guidance, found.guidance_scale) in {("cfg", 1.5), ("domain", 3.0)}
    file = calibration.calibration_file(config.output_dir)
    rows = evaluation.load_results(file.with_name(calibration.SEARCH))["rows"]
    chosen = {(row["domain"], row["metric"]) for row in rows if row["chosen"]}
    assert chosen == {(d.name, metric) for d in config.domains for metric in ("cmmd", "clip_score")}
    assert all(r["low"] <= r["value"] <= r["high"] for r in rows)
    before = file.read_bytes()
    monkeypatch.setattr(calibration, "search", lambda *a, **k: pytest.fail("searched again"))
    dasd(*words)
    with pytest.raises(BaseException, match="searched again"):
        dasd(*words, "--again")
    assert file.read_bytes() == before  # until the new search is done
    assert calibration.calibration_file(f"{config.output_dir}/adapter") == file
