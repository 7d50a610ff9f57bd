"""Every method is sampled and scored in the same way; finished work is kept and never repeated."""

import dataclasses
import functools
import json

import numpy as np
import pytest
import torch
from conftest import dasd
from synthetic import stop_at, write_images

from dasd_utils import evaluation, latents, metrics, sampling, training
from dasd_utils.apps import workers
from dasd_utils.apps.cli import study as cli_study
from dasd_utils.config import Calibration, Config, DasdError
from dasd_utils.runtime import checkpoints, files, images
from dasd_utils.study import calibration, ladder, tables
from dasd_utils.study.ladder import Method

QUICK = (("ddim", 1), ("dpm++", 2))
NAMES = ["base", "base + style words", "token only", "LoRA only", "DASD", "DASD, calibrated",
         "DASD, Domain Guidance"]  # fmt: skip
LADDER = ladder.find_methods(NAMES)


def method_of(name):
    return ladder.find_methods([name])[0]


def samples_file(config, method, seed=0, place=0):
    return ladder.tasks(config, method, seed)[place].folder / "samples.parquet"


def pixels(config, method, place=0):
    return b"".join(image.tobytes() for image in images.load_samples(samples_file(config, method, 0, place)))


@pytest.fixture(scope="module")
def config(make_config):
    return make_config(num_heldout=12, num_bootstrap=20, max_train_steps=2, checkpoint_every=1)


@pytest.fixture(scope="module")
def quick(quick_cnn):
    """Search two schedules and two scales, of ten images each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "SCHEDULES", QUICK)
        patch.setattr(calibration, "SCALES", {"cfg": (1.0, 2.0), "domain": (2.0,)})
        patch.setattr(calibration, "calibrate", functools.partial(calibration.calibrate, num_images=10))
        yield


@pytest.fixture(scope="module")
def done(config, quick):
    """Return the config whose ladder is done for two seeds."""
    assert ladder.run_ladder(ladder.Scoring(config), [0, 1], LADDER, progress=False) == []
    return config


def test_results_of_other_images_are_not_gone_on_with(config, tmp_path, own_datasets_cache):
    write_images(tmp_path / "own", range(30))
    own = dataclasses.replace(config.domains[0], data=str(tmp_path / "own"), caption="a thing")
    changed = config.replace(domains=(own,), output_dir=str(tmp_path / "run"), cache_dir=str(tmp_path))
    for _ in range(2):
        ladder.check_images(changed)
    ladder.Scoring(changed.replace(near_duplicate=0.99))  # settings of its own have results of their own
    write_images(tmp_path / "own", range(30, 60))
    for again in (ladder.Scoring, lambda config: ladder.load_or_train(config, {"run": "DASD"}, 0)):
        with pytest.raises(DasdError, match=r"train images of satellite .* have changed since .*output_dir"):
            again(changed)
    ladder.check_images(changed.replace(output_dir=str(tmp_path / "other")))
    assert not (tmp_path / "run" / "trained").exists()


def test_every_method_is_scored_in_every_domain(done):
    for method in LADDER:
        domains = [task.domain.name for task in ladder.tasks(done, method, 1)]
        own = method.settings == ladder.PROTOCOL and not method.style_words
        assert domains == ["satellite", "xray"] + ["painting"] * own
        assert all(task.scores.is_file() for task in ladder.tasks(done, method, 1))


def test_methods_that_differ_in_sampling_share_their_weights(done):
    runs = {method.name: ladder.run_config(done, method, 0).output_dir for method in LADDER if method.trained}
    assert runs["DASD"] == runs["DASD, calibrated"] == runs["DASD, Domain Guidance"]
    assert len(set(runs.values())) == 3
    assert ladder.run_config(done, LADDER[-1], 1).output_dir not in runs.values()


def test_all_methods_get_the_same_prompts_and_noise(done):
    rows = {}
    for method in LADDER:
        table = images.pq.read_table(samples_file(done, method, 1))
        rows[method.name] = table.drop_columns("image").to_pylist()
        if method.settings == ladder.PROTOCOL:
            how, protocol = ladder.tasks(done, method, 1)[0].calibration, done.evaluation
            assert (how.guidance_scale, how.scheduler) == (protocol.guidance_scale, protocol.scheduler)
            assert (how.num_inference_steps, how.guidance) == (protocol.num_inference_steps, "cfg")
    other = set(images.pq.read_table(samples_file(done, LADDER[0], 0)).column("seed").to_pylist())
    assert len(other) == 12 and not other & {row["seed"] for row in rows["base"]}  # noise of its own
    styled, words = rows.pop("base + style words"), done.domains[0].style_suffix
    assert all(each == rows["base"] for each in rows.values())
    assert styled == [row | {"prompt": f"{row['prompt']}, {words}"} for row in rows["base"]]


def test_methods_differ_in_their_images_and_the_adapter_is_on_for_the_source(done):
    assert len({pixels(done, method) for method in LADDER}) == len(LADDER)
    assert pixels(done, method_of("base"), place=-1) != pixels(done, method_of("DASD"), place=-1)


def test_what_is_done_is_not_done_again_and_lost_scores_cost_no_sampling(done, monkeypatch):
    task = ladder.tasks(done, method_of("DASD"), 0)[0]
    before = task.scores.read_bytes()
    monkeypatch.setattr(training, "train", lambda *a, **k: pytest.fail("trained again"))
    monkeypatch.setattr(sampling.DasdPipeline, "generate", lambda *a, **k: pytest.fail("sampled again"))
    with monkeypatch.context() as patch:  # all is done: not even a model is loaded
        patch.setattr(sampling, "load_trained_pipeline", lambda *a, **k: pytest.fail("loaded again"))
        assert ladder.run_ladder(ladder.Scoring(done), [0, 1], LADDER, progress=False) == []
    task.scores.unlink()
    ladder.run_ladder(ladder.Scoring(done), [0], LADDER, progress=False)
    assert task.scores.read_bytes() == before


def test_a_stopped_training_goes_on(config, tmp_path):
    here = config.replace(output_dir=str(tmp_path), max_train_steps=3)
    method = method_of("LoRA + token")
    wanted = ladder.run_config(here, method, 0)
    parts = training.setup_training(wanted)
    *_, sampler = latents.create_datasets(wanted, parts.tokenizer)
    with pytest.raises(KeyboardInterrupt):
        training.train(wanted, parts, sampler, parts.token_ids, on_step=stop_at(2), progress=False)
    ladder.train(here, method, 0, progress=False)
    whole = ladder.train(here.replace(output_dir=str(tmp_path / "whole")), method, 0, progress=False)
    files = [ladder.resolve(c.output_dir) / "history.jsonl" for c in (wanted, whole)]
    assert files[0].read_text() == files[1].read_text()


def test_a_method_that_another_process_trains_is_left_to_it(config, tmp_path):
    here, method = config.replace(output_dir=str(tmp_path)), method_of("token only")
    folder = ladder.Path(ladder.run_config(here, method, 0).output_dir)
    folder.mkdir(parents=True)
    with files.try_lock(folder / checkpoints.LOCK) as mine:  # as another `dasd train` there holds it
        busy = ladder.run_ladder(ladder.Scoring(here), [0], [method], progress=False)
        assert mine and busy == [("token only", 0)]
    assert not (tmp_path / "samples").exists()


def test_the_table_has_scores_differences_and_power(done):
    more = [*LADDER, Method("unfinished", changes={"kernel": "linear"})]
    rows = ladder.ladder_rows(ladder.Scoring(done), [0, 1], more)
    assert "unfinished" not in {r["method"] for r in rows}
    scored = {(r["method"], r["domain"], r["metric"]) for r in rows if "against" not in r}
    for method in LADDER:
        assert (method.name, "satellite", "cmmd") in scored
    assert (ladder.CONTROL, "xray", "copy_rank") in scored and ("DASD", "painting", "cmmd") in scored
    assert all(r["low"] <= r["value"] <= r["high"] for r in rows if "low" in r)
    assert {r["n"] for r in rows if r["method"] == "base" and r["domain"] == "xray" and "n" in r} == {24}
    compared = {r["method"] for r in rows if r.get("against") == "DASD" and r["metric"] == "cmmd"}
    assert compared == {method.name for method in LADDER} - {"DASD"}
    needed = [r for r in rows if r["metric"] == "prompts_needed" and r["method"] == "base"]
    assert {r["seeds"] for r in needed} == set(ladder.MANY_SEEDS)
    parts = [tuple(r[f"deviation_of_{part}"] ** 2 for part in ("seeds", "prompts", "rest")) for r in needed]
    pairs = zip(parts, needed, strict=True)
    assert all(r["value"] == ladder.prompts_needed(p, r["effect"], r["seeds"]) for p, r in pairs)
    copies = [r for r in rows if r["method"] == ladder.CONTROL and r["metric"] == "copy_rank"]
    assert all(r["value"] == r["low"] == 0 < r["high"] for r in copies if "against" not in r)
    json.dumps(rows, allow_nan=False)
    text = tables.ladder_table(rows)
    assert "| DASD, calibrated |" in text and "±" in text


def test_the_control_counts_its_own_images(done):
    """Nine training images stand in for samples; twelve are held out."""
    few = tuple(dataclasses.replace(domain, num_images=9) for domain in done.domains)
    rows = ladder.ladder_rows(ladder.Scoring(done.replace(domains=few)), [0], [])
    assert {r["method"] for r in rows} == {ladder.CONTROL}
    assert {(r["n"], *r["seeds"]) for r in rows} == {(9,)}


def test_a_method_is_compared_with_the_one_before_it_and_with_the_one_that_is_named(done):
    rows = ladder.ladder_rows(ladder.Scoring(done), [0, 1], LADDER, against="LoRA only")
    pairs = {(r["method"], r["against"]) for r in rows if "separable" in r and r["metric"] == "cmmd"}
    names = {method.name for method in LADDER}
    before = {(name, "base") for name in ("base + style words", "token only", "LoRA only")}
    before |= {("DASD, Domain Guidance", "DASD"), ("base", "DASD")}
    assert pairs == before | {(name, "LoRA only") for name in names - {"LoRA only"}}
    needed = {r["against"] for r in rows if r["metric"] == "prompts_needed"}
    assert needed == {"LoRA only"}
    known = {method.name for method in ladder.METHODS}
    assert all(method.after in known and method.after != method.name for method in ladder.METHODS)


def test_searches_are_those_of_all_seeds(done):
    rows = ladder.searches(done, [0, 1], LADDER)
    assert {(r["seed"], r["domain"]) for r in rows} == {(s, d) for s in (0, 1) for d in ("satellite", "xray")}
    assert len([r for r in rows if r["chosen"] and r["metric"] == "cmmd"]) == 4
    assert ladder.searches(done, [0, 1], [method_of("DASD")]) == ladder.searches(done, [7], LADDER) == []


def test_a_config_that_names_a_method_is_refused(config):
    other = config.replace(method="domainstudio", lambda_align=0.0)
    for attempt in (ladder.Scoring, lambda c: ladder.run_config(c, method_of("DASD"), 0)):
        with pytest.raises(DasdError, match="each method of a ladder has its own"):
            attempt(other)


def test_methods_of_papers_are_named_and_keep_the_batch_of_the_config():
    assert ladder.find_methods(None) == list(ladder.METHODS)
    assert [m.objective for m in ladder.find_methods(["DASD", "DomainStudio"])] == ["dasd", "domainstudio"]
    with pytest.raises(DasdError, match="Did you mean 'LoRA only'"):
        ladder.find_methods(["Lora only"])
    config = Config.setup("sd15", target_batch_size=6)
    asked = method_of("DomainStudio").config(config).training
    assert asked.target_batch_size == 6 and asked.gradient_accumulation_steps == 4
    whole = method_of("DomainStudio, whole UNet").config(config).training
    assert whole.whole_unet and whole.learning_rate == pytest.approx(1e-5)


def test_unconditional_methods_sample_the_empty_prompt(config, tmp_path):
    here = config.replace(output_dir=str(tmp_path), source=dataclasses.replace(config.source, num_images=4))
    methods = ladder.find_methods(["base, unconditional", "DomainStudio, unconditional"])
    assert ladder.run_ladder(ladder.Scoring(here), [0], methods, progress=False) == []
    for method in methods:
        found = ladder.tasks(here, method, 0)
        assert [task.domain.name for task in found] == ["satellite", "xray"]
        assert {task.calibration.guidance for task in found} == {"unconditional"}
        assert all(task.scores.is_file() for task in found)
    wanted = ladder.run_config(here, methods[1], 0)
    pipeline = sampling.load_trained_pipeline(ladder.resolve(wanted.output_dir), wanted)
    task = ladder.tasks(here, methods[1], 0)[0]
    drawn = images.load_samples(task.folder / "samples.parquet")
    options = {"domain": "satellite", "settings": task.calibration, "adapter": True}
    again, *_ = pipeline.generate("any prompt", seed=2, **options)
    difference = np.asarray(again, dtype=int) - np.asarray(drawn[2], dtype=int)
    assert np.abs(difference).max() <= 1  # one image and a batch round otherwise


def test_calibrated_and_published_settings(config, tmp_path):
    method, here = method_of("DASD, calibrated"), config.replace(output_dir=str(tmp_path))
    assert not ladder.is_done(here, method, 0)
    with pytest.raises(DasdError, match=r"`dasd calibrate`.*calibration\.json: No such file"):
        _ = ladder.tasks(here, method, 0)[0].calibration
    found = [task.calibration for task in ladder.tasks(config, method_of("DASD, published sampling"), 0)]
    assert found == [Calibration(7.0, 30, "ddim"), Calibration(7.5, 30, "ddim")]


def test_seeds_are_different_numbers():
    for text in ("", "0,", "0,0", "a", "-1"):
        with pytest.raises(DasdError, match="--seeds"):
            cli_study.Study(seeds=text).numbers()
    assert cli_study.Study(seeds="0,1,12").numbers() == [0, 1, 12]


def test_commands_hold_what_shares_weights(config, monkeypatch):
    monkeypatch.setattr(workers, "run_all", lambda commands, *_: words.extend(commands))
    monkeypatch.setattr(ladder, "run_ladder", lambda *_: [])
    words: list[list[str]] = []
    cli_study.run_methods(cli_study.Study(seeds="0,1", workers=2), ladder.Scoring(config), LADDER)
    assert len(words) == 2 * 4  # base with and without words, token, LoRA, DASD with its three ways
    together = [[w for w in each if w.startswith("DASD")] for each in words]
    assert max(together, key=len) == ["DASD", "DASD, calibrated", "DASD, Domain Guidance"]


@pytest.fixture
def path(done):
    return done.save(ladder.resolve(done.output_dir) / "asked.json")


def test_the_command_writes_the_table(done, path):
    named = [word for method in LADDER for word in ("--only", method.name)]
    said = dasd("ladder", "--config", path, "--output_dir", done.output_dir, "--seeds", "0,1", *named)
    stored = evaluation.load_results(said["results"])
    assert {row["method"] for row in stored["rows"]} >= {method.name for method in LADDER}


def test_a_stopped_ladder_says_how_to_go_on(path, monkeypatch, capsys):
    def stop(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(ladder, "run_ladder", stop)
    with pytest.raises(SystemExit) as stopped:
        cli_study.ladder(config=path, output_dir=None, seeds="0")
    assert stopped.value.code == 130 and "same command goes on" in capsys.readouterr().err


def test_the_folder_is_that_of_the_config_unless_one_is_named(done, path, monkeypatch):
    seen = []

    def run(scoring, *_):
        seen.append(scoring.config.output_dir)
        return [("x", 0)]

    monkeypatch.setattr(ladder, "run_ladder", run)
    cli_study.ladder(config=path, output_dir=None, seeds="0")
    cli_study.ladder(config=path, output_dir=ladder.Path("other"), seeds="0")
    cli_study.ladder(profile="tiny", output_dir=None, seeds="0")
    assert seen == [done.output_dir, "other", "data/runs/ladder"]


def test_folders_of_samples_and_files_of_scores_are_named_by_what_decides_them(done):
    def task(**changes):
        return ladder.tasks(done.replace(**changes), method_of("base"), 0)[0]

    first = dataclasses.replace(done.domains[0], data="toyworld:sketch")
    for change in ({"test_fraction": 0.3}, {"resolution": 16}, {"base_revision": "a" * 40},
                   {"mixed_precision": "bf16"},
                   {"domains": (first, *done.domains[1:])}):  # fmt: skip
        assert task(**change).folder != task().folder
    assert task(cache_dir="elsewhere").folder == task().folder
    scored = task(source=dataclasses.replace(done.source, num_images=25))
    assert scored.folder == task().folder and scored.scores != task().scores


# power


def scores(draws, seeds, prompts, *deviations):
    """Scores (draws, S, P) around 0 with deviations between seeds, between prompts, and of the rest."""
    generator = torch.Generator().manual_seed(3)
    shapes = (draws, seeds, 1), (draws, 1, prompts), (draws, seeds, prompts)
    parts = (d * torch.randn(s, generator=generator) for d, s in zip(deviations, shapes, strict=True))
    return sum(parts).double()


def test_components_are_found_again():
    found = ladder.variance_components(scores(1, 400, 400, 0.5, 0.2, 1.0)[0])
    deviations = [variance**0.5 for variance in found]
    assert deviations == pytest.approx([0.5, 0.2, 1.0], rel=0.1)


@pytest.mark.parametrize("seeds", [3, 10])
@pytest.mark.parametrize("parts", [(0.0004, 0.05, 0.01), (0.001, 0.005, 0.05)])
def test_the_prompts_needed_give_the_power(seeds, parts):
    """Where what prompts and seeds do together is the larger part too: the interval counts it twice."""
    needed = ladder.prompts_needed([each**2 for each in parts], 0.01, seeds)
    found = []
    for drawn in 0.01 + scores(1000, seeds, needed, *parts):  # (S, P)
        of_prompts, of_seeds = (drawn.mean(dim=dim).var().item() / n for dim, n in ((0, needed), (1, seeds)))
        half = metrics.half_width(((of_prompts, needed - 1), (of_seeds, seeds - 1)))
        found.append(drawn.mean().item() > half)
    assert np.mean(found) == pytest.approx(ladder.POWER, abs=0.04)


def test_more_seeds_need_fewer_prompts_and_a_spread_of_seeds_no_number_mends():
    parts = 0.004**2, 0.02**2, 0.02**2
    assert ladder.prompts_needed(parts, 0.01, 3) is None
    needed = [ladder.prompts_needed(parts, 0.01, seeds) for seeds in (5, 10, 20)]
    assert needed[0] > needed[1] > needed[2]
