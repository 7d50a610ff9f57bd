"""Every method is asked and judged alike; what is done is kept, and nothing is done twice."""

import dataclasses
import json
import types

import pytest
from conftest import on_narrow_base
from typer.testing import CliRunner

from dasd_utils import evaluation, latents, losses, sampling, training
from dasd_utils.apps.cli import main as cli
from dasd_utils.apps.cli import study as cli_study
from dasd_utils.config import Calibration, Config, DasdError
from dasd_utils.runtime import checkpoints, files, images
from dasd_utils.study import calibration, ladder, power, tables
from dasd_utils.study.ladder import Method

QUICK = (("ddim", 1), ("dpm++", 2))
NAMES = [
    "base",
    "base + style words",
    "token only",
    "LoRA only",
    "DASD",
    "DASD, calibrated",
    "DASD, Domain Guidance",
]
LADDER = ladder.find_methods(NAMES)


@pytest.fixture(scope="module")
def config(base_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ladder")
    changes = dict(num_heldout=12, num_bootstrap=20, max_train_steps=2, checkpoint_every=1)
    return on_narrow_base("tiny", base_dir, base_dir / "clip", folder, **changes)


@pytest.fixture(scope="module")
def quick(quick_cnn):
    """Search two schedules and two scales, of ten images each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "SCHEDULES", QUICK)
        patch.setattr(calibration, "SCALES", {"cfg": (1.0, 2.0), "domain": (2.0,)})
        patch.setattr(calibration.calibrate, "__defaults__", (30, 10, False))
        yield


@pytest.fixture(scope="module")
def done(config, quick):
    """Return the config whose ladder is done for two seeds."""
    assert ladder.run_ladder(ladder.Scoring(config), [0, 1], LADDER, progress=False) == []
    return config


def test_every_rung_is_scored_in_every_domain(done):
    for method in LADDER:
        domains = [task.domain.name for task in ladder.tasks(done, method, 1)]
        own = method.settings == ladder.PROTOCOL and not method.style_words
        assert domains == ["satellite", "xray"] + ["painting"] * own
        assert all(task.scores.is_file() for task in ladder.tasks(done, method, 1))


def test_rungs_that_differ_in_sampling_share_their_weights(done):
    runs = {method.name: ladder.run_config(done, method, 0).output_dir for method in LADDER if method.trained}
    assert runs["DASD"] == runs["DASD, calibrated"] == runs["DASD, Domain Guidance"]
    assert len(set(runs.values())) == 3
    assert ladder.run_config(done, LADDER[-1], 1).output_dir not in runs.values()


def test_all_rungs_are_asked_alike(done):
    asked = {}
    for method in LADDER:
        task = ladder.tasks(done, method, 1)[0]
        rows = images.pq.read_table(task.folder / "samples.parquet").drop_columns("image").to_pylist()
        asked[method.name] = rows
        settings = task.calibration
        if method.settings == ladder.PROTOCOL:
            protocol = done.evaluation
            assert settings == Calibration(
                protocol.guidance_scale, protocol.num_inference_steps, protocol.scheduler
            )
    words = done.domains[0].style_suffix
    styled = asked.pop("base + style words")
    assert all(rows == asked["base"] for rows in asked.values())
    assert [row["prompt"] for row in styled] == [f"{row['prompt']}, {words}" for row in asked["base"]]
    assert [row["seed"] for row in styled] == [row["seed"] for row in asked["base"]]


def test_seeds_have_noise_of_their_own(done):
    tables = [ladder.tasks(done, LADDER[0], seed)[0].folder / "samples.parquet" for seed in (0, 1)]
    seeds = [set(images.pq.read_table(path).column("seed").to_pylist()) for path in tables]
    assert not seeds[0] & seeds[1] and len(seeds[0]) == 12


def test_methods_differ_in_their_pictures(done):
    first = {}
    for method in LADDER:
        made = images.load_samples(ladder.tasks(done, method, 0)[0].folder / "samples.parquet")
        first[method.name] = b"".join(image.tobytes() for image in made)
    assert len(set(first.values())) == len(LADDER)


def test_the_source_is_asked_with_the_adapter_on(done):
    base, adapted = (
        images.load_samples(
            ladder.tasks(done, ladder.find_methods([name])[0], 0)[-1].folder / "samples.parquet"
        )
        for name in ("base", "DASD")
    )
    assert [i.tobytes() for i in base] != [i.tobytes() for i in adapted]


def test_what_is_done_is_not_done_again(done, monkeypatch):
    for module, name in (
        (training, "train"),
        (sampling, "load_trained_pipeline"),
        (evaluation, "load_scorer"),
    ):
        monkeypatch.setattr(module, name, lambda *a, **k: pytest.fail("done again"))
    assert ladder.run_ladder(ladder.Scoring(done), [0, 1], LADDER, progress=False) == []


def test_lost_scores_cost_no_training_and_no_sampling(done, monkeypatch):
    task = ladder.tasks(done, ladder.find_methods(["DASD"])[0], 0)[0]
    before = task.scores.read_bytes()
    task.scores.unlink()
    monkeypatch.setattr(training, "train", lambda *a, **k: pytest.fail("trained again"))
    monkeypatch.setattr(sampling.DasdPipeline, "generate", lambda *a, **k: pytest.fail("sampled again"))
    ladder.run_ladder(ladder.Scoring(done), [0], LADDER, progress=False)
    assert task.scores.read_bytes() == before


def test_a_stopped_training_goes_on(config, tmp_path):
    here = config.replace(output_dir=str(tmp_path), max_train_steps=3)
    method = ladder.find_methods(["LoRA + token"])[0]
    wanted = ladder.run_config(here, method, 0)

    def stop(row):
        if row["step"] == 2:
            raise KeyboardInterrupt

    parts = training.setup_training(wanted)
    *_, sampler = latents.create_datasets(wanted, parts.tokenizer)
    with pytest.raises(KeyboardInterrupt):
        training.train(wanted, parts, sampler, parts.token_ids, on_step=stop, progress=False)
    ladder.train(here, method, 0, progress=False)
    whole = ladder.train(here.replace(output_dir=str(tmp_path / "whole")), method, 0, progress=False)
    files = [ladder.resolve(c.output_dir) / "history.jsonl" for c in (wanted, whole)]
    assert files[0].read_text() == files[1].read_text()


def test_a_rung_in_other_hands_is_left_to_them(config, tmp_path):
    here, method = config.replace(output_dir=str(tmp_path)), ladder.find_methods(["token only"])[0]
    folder = ladder.Path(ladder.run_config(here, method, 0).output_dir)
    folder.mkdir(parents=True)
    with files.try_lock(
        folder / checkpoints.LOCK
    ) as mine:  # as another process's `dasd train` there holds it
        assert mine and ladder.run_ladder(ladder.Scoring(here), [0], [method], progress=False) == [
            ("token only", 0)
        ]
    assert not (tmp_path / "samples").exists()


def test_the_table_has_scores_differences_and_power(done):
    rows = ladder.ladder_rows(ladder.Scoring(done), [0, 1], LADDER)
    scored = {(r["method"], r["domain"], r["metric"]) for r in rows if "against" not in r}
    for method in LADDER:
        assert (method.name, "satellite", "cmmd") in scored
    assert (ladder.CONTROL, "xray", "copy_rank") in scored and ("DASD", "painting", "cmmd") in scored
    assert all(r["low"] <= r["value"] <= r["high"] for r in rows if "low" in r)
    assert {r["n"] for r in rows if r["method"] == "base" and r["domain"] == "xray" and "n" in r} == {24}
    differences = [r for r in rows if r.get("against") == "DASD" and r["metric"] == "cmmd"]
    assert {r["method"] for r in differences} == {method.name for method in LADDER} - {"DASD"}
    needed = [r for r in rows if r["metric"] == "prompts_needed" and r["method"] == "base"]
    assert {r["seeds"] for r in needed} == set(power.MANY_SEEDS)
    json.dumps(rows, allow_nan=False)
    text = tables.ladder_table(rows)
    assert "| DASD, calibrated |" in text and "±" in text


def test_the_control_counts_its_own_images(done):
    """Nine training images stand in for samples; twelve are held out."""
    few = tuple(dataclasses.replace(domain, num_images=9) for domain in done.domains)
    rows = ladder.ladder_rows(ladder.Scoring(done.replace(domains=few)), [0], [])
    assert {r["method"] for r in rows} == {ladder.CONTROL}
    assert {(r["n"], *r["seeds"]) for r in rows} == {(9,)}


def test_a_rung_is_compared_with_the_one_before_it_too(done):
    rows = ladder.ladder_rows(ladder.Scoring(done), [0, 1], LADDER)
    pairs = {(r["method"], r["against"]) for r in rows if "separable" in r and r["against"] != "DASD"}
    assert pairs == {(name, "base") for name in ("base + style words", "token only", "LoRA only")}
    known = {method.name for method in ladder.METHODS}
    assert all(method.after in known and method.after != method.name for method in ladder.METHODS)


def test_all_rungs_are_compared_with_the_one_that_is_named(done):
    rows = ladder.ladder_rows(ladder.Scoring(done), [0, 1], LADDER, against="LoRA only")
    compared = {r["method"] for r in rows if r.get("against") == "LoRA only" and r["metric"] == "cmmd"}
    assert compared == {method.name for method in LADDER} - {"LoRA only"}
    needed = {r["against"] for r in rows if r["metric"] == "prompts_needed"}
    assert needed == {"LoRA only"}


def test_the_searches_of_all_seeds_are_told(done):
    rows = ladder.searches(done, [0, 1], LADDER)
    assert {(r["seed"], r["domain"]) for r in rows} == {(s, d) for s in (0, 1) for d in ("satellite", "xray")}
    chosen = [r for r in rows if r["chosen"] and r["metric"] == "cmmd"]
    assert len(chosen) == 4
    assert (
        ladder.searches(done, [0, 1], ladder.find_methods(["DASD"]))
        == ladder.searches(done, [7], LADDER)
        == []
    )


def test_unfinished_rungs_are_left_out_of_the_table(done):
    more = [*LADDER, Method("new", changes={"kernel": "linear"})]
    assert "new" not in {r["method"] for r in ladder.ladder_rows(ladder.Scoring(done), [0, 1], more)}


@pytest.fixture
def mine(monkeypatch):
    """A method that joins by one module: DASD's objective, noted; return what it was called with."""
    called = []

    def make(config):
        def objective(parts, batch, config):
            called.append(len(batch.target_latents))
            return losses.DasdObjective(config)(parts, batch, config)

        return objective

    paper = types.SimpleNamespace(
        CHANGES={"queue_size": 4}, BY_PROFILE={}, LADDER={}, check=lambda config: None, make_objective=make
    )
    monkeypatch.setattr("dasd_utils.config.known_methods", lambda: {"mine": "mine"})
    monkeypatch.setattr("dasd_utils.config.paper", lambda name: paper)
    return called


def test_another_objective_has_weights_of_its_own(config, mine):
    plain, other = Method("x", changes={"queue_size": 4}), Method("y", objective="mine")
    one, two = (ladder.run_config(config, method, 0).output_dir for method in (plain, other))
    assert one != two


def test_an_objective_joins_by_adding_a_row(config, tmp_path, mine):
    here = config.replace(output_dir=str(tmp_path))
    wanted = ladder.train(here, Method("mine", objective="mine"), 0, False)
    assert mine == [config.training.target_batch_size] * 2
    assert wanted.alignment.queue_size == 4 and wanted.method == "mine"


def test_each_rung_has_its_own_method_whatever_the_config_names(config):
    other = config.replace(method="domainstudio", lambda_align=0.0)
    for attempt in (ladder.Scoring, lambda c: ladder.run_config(c, ladder.find_methods(["DASD"])[0], 0)):
        with pytest.raises(DasdError, match="each method of a ladder has its own"):
            attempt(other)


def test_methods_in_a_ladder_keep_the_batch_of_its_config():
    config = Config.setup("sd15", target_batch_size=6)
    asked = ladder.find_methods(["DomainStudio"])[0].config(config)
    assert asked.training.target_batch_size == 6 and asked.training.gradient_accumulation_steps == 4
    whole = ladder.find_methods(["DomainStudio, whole UNet"])[0].config(config).training
    assert whole.whole_unet and whole.learning_rate == pytest.approx(1e-5)


def test_the_ladder_is_dasds_unless_rungs_of_papers_are_named():
    assert ladder.find_methods(None) == list(ladder.METHODS)
    assert [method.objective for method in ladder.find_methods(["DASD", "DomainStudio"])] == [
        "dasd",
        "domainstudio",
    ]


def test_unconditional_rungs_answer_the_empty_prompt(config, tmp_path):
    here = config.replace(output_dir=str(tmp_path), source=dataclasses.replace(config.source, num_images=4))
    methods = ladder.find_methods(["base, unconditional", "DomainStudio, unconditional"])
    assert ladder.run_ladder(ladder.Scoring(here), [0], methods, progress=False) == []
    for method in methods:
        found = ladder.tasks(here, method, 0)
        assert [task.domain.name for task in found] == ["satellite", "xray"]
        assert {task.calibration.guidance for task in found} == {"unconditional"}
        assert all(task.scores.is_file() for task in found)
    pipeline, task = ladder.open_pipeline(here, methods[1], 0), ladder.tasks(here, methods[1], 0)[0]
    drawn = images.load_samples(task.folder / "samples.parquet")
    options = {"domain": "satellite", "settings": task.calibration, "adapter": True}
    again, *_ = pipeline.generate("whatever is said", seed=2, **options)
    assert again.tobytes() == drawn[2].tobytes()


def test_a_rung_without_calibration_is_not_done(config, tmp_path):
    method = ladder.find_methods(["DASD, calibrated"])[0]
    assert not ladder.is_done(config.replace(output_dir=str(tmp_path)), method, 0)
    with pytest.raises(DasdError, match=r"calibration\.json: No such file.*`dasd calibrate`"):
        ladder.tasks(config.replace(output_dir=str(tmp_path)), method, 0)


def test_published_settings_are_those_that_were_published(config):
    method = ladder.find_methods(["DASD, published sampling"])[0]
    found = [task.calibration for task in ladder.tasks(config, method, 0)]
    assert found == [Calibration(7.0, 30, "ddim"), Calibration(7.5, 30, "ddim")]


def test_unknown_rungs_and_seeds_are_refused():
    with pytest.raises(DasdError, match="Did you mean 'LoRA only'"):
        ladder.find_methods(["Lora only"])
    for text in ("", "0,", "0,0", "a", "-1"):
        with pytest.raises(DasdError, match="--seeds"):
            cli_study.read_seeds(text)
    assert cli_study.read_seeds("0,1,12") == [0, 1, 12]


def test_commands_hold_what_shares_weights(config):
    words = cli_study.ladder_words(config, [0, 1], LADDER)
    assert len(words) == 2 * 4  # base with and without words, token, LoRA, DASD with its three ways
    together = [[w for w in each if w.startswith("DASD")] for each in words]
    assert max(together, key=len) == ["DASD", "DASD, calibrated", "DASD, Domain Guidance"]


def test_the_command_writes_the_table(done):
    path = done.save(ladder.resolve(done.output_dir) / "asked.json")
    words = ["ladder", "--config", str(path), "--output_dir", done.output_dir, "--seeds", "0,1", "--json"]
    words += [w for method in LADDER for w in ("--only", method.name)]
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 0, result.output
    stored = evaluation.load_results(json.loads(result.stdout)["results"])
    assert {row["method"] for row in stored["rows"]} >= {method.name for method in LADDER}


def test_a_stopped_ladder_says_how_to_go_on(done, monkeypatch, capsys):
    def stop(*_arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(ladder, "run_ladder", stop)
    path = done.save(ladder.resolve(done.output_dir) / "asked.json")
    with pytest.raises(SystemExit) as stopped:
        cli_study.ladder(config=path, output_dir=None, seeds="0")
    assert stopped.value.code == 130 and "same command goes on" in capsys.readouterr().err


def test_a_domain_that_changes_its_data_has_other_samples(config):
    method = ladder.find_methods(["base"])[0]
    one = ladder.tasks(config, method, 0)[0]
    first = dataclasses.replace(config.domains[0], data="toyworld:sketch")
    other = ladder.tasks(config.replace(domains=(first, *config.domains[1:])), method, 0)[0]
    assert one.folder != other.folder


def test_what_judges_or_splits_otherwise_is_not_mistaken_for_what_is_there(done):
    method = ladder.find_methods(["base"])[0]
    task = ladder.tasks(done, method, 0)[0]
    judged = ladder.tasks(done.replace(inception="other.pt"), method, 0)[0]
    assert judged.folder == task.folder and judged.scores != task.scores
    for change in ({"test_fraction": 0.3}, {"resolution": 16}, {"base_revision": "a" * 40}):
        assert ladder.tasks(done.replace(**change), method, 0)[0].folder != task.folder
    assert ladder.tasks(done.replace(cache_dir="elsewhere"), method, 0)[0].folder == task.folder


def test_the_folder_is_that_of_the_config_unless_one_is_named(done, monkeypatch):
    seen = []
    monkeypatch.setattr(
        ladder, "run_ladder", lambda scoring, *_: seen.append(scoring.config.output_dir) or [("x", 0)]
    )
    path = done.save(ladder.resolve(done.output_dir) / "asked.json")
    cli_study.ladder(config=path, output_dir=None, seeds="0")
    cli_study.ladder(config=path, output_dir=ladder.Path("other"), seeds="0")
    cli_study.ladder(profile="tiny", output_dir=None, seeds="0")
    assert seen == [done.output_dir, "other", "data/runs/ladder"]
