"""The loop: what trains, history, exact resume, and how a run stops."""

import functools
import logging
import math
import shutil
import signal
import threading
from dataclasses import replace
from pathlib import Path

import narrow
import numpy as np
import pytest
import torch
from conftest import refused
from safetensors.torch import load_file, save_file
from synthetic import NoiseSampler, SpoiltSampler, make_parts, make_sampler, stop_at

from dasd_utils import adapters, losses, models, sampling, training
from dasd_utils.config import DasdError
from dasd_utils.runtime import checkpoints, processes

# dropout, queue and schedule are on: all that a resume could get wrong
RESUMED = {"max_train_steps": 6, "validation_every": 0, "dropout": 0.2, "queue_size": 5}
RESUMED["source_features"] = "adapted"  # the default is in tests/core/test_bank.py


@pytest.fixture
def config(tiny_config):
    return tiny_config.replace(**RESUMED)


@pytest.fixture(scope="module")
def straight(make_config):
    """Return the history of the config's run, uninterrupted."""
    return start(make_config(**RESUMED))[1]


def start(config, sampler=None, **options):
    """Train fresh parts and return (parts, history)."""
    parts = make_parts(config)
    sampler = sampler or NoiseSampler(config)
    return parts, training.train(config, parts, sampler, parts["token_ids"], progress=False, **options)


def interrupt(config, step: int, **options) -> None:
    """Start a run that is stopped so."""
    with pytest.raises(KeyboardInterrupt):
        start(config, on_step=stop_at(step), **options)


def assert_same(one, two) -> None:
    assert one.keys() == two.keys()
    for name in one:
        assert torch.equal(one[name], two[name]), name


def test_only_lora_and_new_rows_change(tiny_config):
    quiet = {"validation_every": 0, "checkpoint_every": 0, "target_batch_size": 2, "queue_size": 4}
    config = tiny_config.replace(max_train_steps=10, **quiet)
    parts = make_parts(config)
    trained = {id(p) for group in models.trainable_parameters(parts).values() for p in group}
    modules = (parts.unet, parts.text_encoder, parts.vae, parts.tokens)
    before = [(name, p, p.detach().clone()) for m in modules for name, p in m.named_parameters()]
    assert {id(p) for _, p, _ in before if p.requires_grad} == trained
    training.train(config, parts, NoiseSampler(config), progress=False)
    for name, parameter, value in before:
        changed = parameter != value
        assert changed.any() == (id(parameter) in trained), name
        assert parameter is not parts.tokens.weight or changed.any(dim=1).all()


def test_the_loss_falls_on_data_that_can_be_learned(tiny_config):
    quiet = {"validation_every": 0, "checkpoint_every": 0, "dropout": 0.0}
    config = tiny_config.replace(max_train_steps=20, learning_rate=1e-2, **quiet)
    sampler = NoiseSampler(config)
    batch = sampler.batch(0)
    sampler.batch = lambda step, micro: batch
    _, history = start(config, sampler)
    assert history[-1]["loss_noise"] < 0.9 * history[0]["loss_noise"]


def test_source_prompts_are_encoded_once_a_run(config, straight, monkeypatch):
    sampler = NoiseSampler(config)
    prompts = sorted({p for step in range(6) for p in sampler.batch(step).source_prompts})
    asked, cache = [], models.cache_texts
    monkeypatch.setattr(sampler, "source_prompts", lambda: prompts, raising=False)
    monkeypatch.setattr(models, "cache_texts", lambda p, texts: asked.append(texts) or cache(p, texts))
    parts, kept = start(config, sampler)
    assert asked == [prompts]
    assert not parts.text_cache  # the parts are left as they were
    assert [row["loss"] for row in kept] == pytest.approx([row["loss"] for row in straight], rel=1e-5)
    without = config.replace(lambda_align=0.0, max_train_steps=1, output_dir=f"{config.output_dir}-2")
    start(without, NoiseSampler(without))
    assert len(asked) == 1  # no source, no prompts
    start(without.replace(prior_loss_weight=1.0), force=True)
    assert len(asked) == 2


def test_history_rows(config):
    config = config.replace(max_train_steps=4, validation_every=2)
    seen = []
    _, history = start(config, on_step=seen.append)
    assert [row["step"] for row in history] == [1, 2, 3, 4]
    common = {"step", "loss", "loss_noise", "mmd", "mmd_satellite", "mmd_xray", "grad_norm"}
    common |= {"learning_rate", "token_learning_rate"}
    validation = {"validation_satellite", "validation_xray"}
    assert [set(row) - validation for row in history] == [common] * 4
    assert [validation <= set(row) for row in history] == [False, True, False, True]
    row = history[-1]
    assert row["loss"] == pytest.approx(row["loss_noise"] + 0.01 * row["mmd"], rel=1e-5)
    assert row["mmd"] == pytest.approx((row["mmd_satellite"] + row["mmd_xray"]) / 2, rel=1e-5)
    assert training.load_history(config.output_dir) == history == seen
    rows = checkpoints.load_rows(Path(config.output_dir) / training.SPEED)
    speed = [row["samples_per_second"] for row in rows]
    assert len(speed) == 4 and min(speed) > 0
    with pytest.raises(DasdError, match="no history"):
        training.load_history(f"{config.output_dir}-2")


@pytest.mark.parametrize("rank, tokens", [(0, ("<satellite>", "<xray>")), (4, (None, None))])
def test_tokens_or_lora_alone_train_save_load_and_sample(config, vae, rank, tokens):
    domains = zip(config.domains, tokens, strict=True)
    domains = tuple(replace(domain, token=token) for domain, token in domains)
    config = config.replace(rank=rank, domains=domains, ema_decay=0.5)
    parts, sampler = training.setup_training(config), make_sampler(config, vae)
    learned = [token for token in tokens if token]
    assert list(parts.token_ids) == learned
    before = adapters.adapter_state(parts)
    history = training.train(config, parts, sampler, parts.token_ids, progress=False)
    rates = {"learning_rate"} if rank else set()
    rates |= {"token_learning_rate"} if learned else set()
    assert {name for name in history[0] if name.endswith("learning_rate")} == rates
    after = adapters.adapter_state(parts)
    assert any("lora" in name for name in after) == (rank > 0) and ("tokens.weight" in after) == bool(learned)
    assert all(not torch.equal(after[name], before[name]) for name in after)

    folder = training.save_training_results(config, parts, history)
    assert type(config).load(folder / "config.json") == config
    files = ["pytorch_lora_weights.safetensors"] * (rank > 0)
    files += [f"{token[1:-1]}.safetensors" for token in learned]
    assert sorted(path.name for path in (folder / "adapter").iterdir()) == ["adapter.json", *files]
    pipeline = sampling.load_trained_pipeline(folder, device="cpu")
    assert_same(adapters.adapter_state(pipeline.parts), after)
    again = training.setup_training(config)
    assert training.train(config, again, sampler, resume=True, progress=False) == history
    assert_same(adapters.adapter_state(again), after)
    narrow.randomise(models.trainable_parameters(pipeline.parts))
    for domain, token in zip(("satellite", "xray"), tokens, strict=True):
        image, _, used = pipeline.generate("a river", domain=domain, seed=1)
        with pipeline.base():
            plain, *_ = pipeline.generate("a river", domain=domain, seed=1)
        assert used["token"] == token
        assert np.abs(np.asarray(image, int) - np.asarray(plain, int)).max() > 1


def test_every_step_has_its_own_micro_batches_and_validation_and_samples_no_dropout(config):
    still = {"learning_rate": 1e-12, "token_learning_rate": 1e-12, "dropout": 0.9}
    config = config.replace(max_train_steps=2, validation_every=1, sample_every=2, **still)
    config = config.replace(gradient_accumulation_steps=2)
    modes, parts, sampler = [], make_parts(config), NoiseSampler(config)

    def look(step):
        modes.append((step, parts.unet.training))

    history = training.train(config, parts, sampler, progress=False, on_sample=look)
    assert modes == [(2, False)]
    assert sampler.asked == [(0, 0), (0, 1), (1, 0), (1, 1)] and sampler.encoded == 1
    first, second = (row["validation_xray"] for row in history)
    assert first == pytest.approx(second, rel=1e-4)
    assert not parts.unet.training


def test_validation_sees_the_moving_average(config):
    config = config.replace(ema_decay=0.9, max_train_steps=2, validation_every=2, dropout=0.0)
    parts, history = start(config)  # leaves the average in the parts
    found = losses.validation_losses(parts, NoiseSampler(config).validation_batches(), config)
    assert {name: history[-1][name] for name in found} == pytest.approx(found, rel=1e-4)


AVERAGED = {"ema_decay": 0.9, "gradient_accumulation_steps": 2}
HALF = {"mixed_precision": "bf16", "lr_scheduler": "linear"}
WHOLE = {"whole_unet": True, "lambda_align": 0.0}


@pytest.mark.parametrize("changes", [{}, AVERAGED, HALF, WHOLE, {"rank": 0}])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(config, tmp_path, changes):
    config = config.replace(**changes)
    expected_parts, expected = start(config.replace(output_dir=tmp_path / "straight"))
    interrupt(config, 5)  # its newest checkpoint is that of step 4
    parts, history = start(config, resume=True)
    assert history == expected
    assert training.load_history(config.output_dir) == expected
    assert_same(adapters.adapter_state(parts), adapters.adapter_state(expected_parts))
    ends = [tmp_path / name / "checkpoints" / "step-000006" for name in ("run", "straight")]
    (ours, our_state), (theirs, their_state) = map(checkpoints.read_checkpoint, ends)
    wanted = {"adapter", "optimizer"} | ({"objective"} if config.alignment.lambda_align else set())
    assert wanted <= ours.keys() == theirs.keys()
    for group in ours:
        assert_same(ours[group], theirs[group])
    assert our_state["updater"] == their_state["updater"]


def test_a_broken_checkpoint_costs_only_the_steps_since_the_one_before(config, straight, tmp_path, caplog):
    interrupt(config, 5)
    broken = tmp_path / "run" / "checkpoints" / "step-000004" / "optimizer.safetensors"
    broken.write_bytes(broken.read_bytes()[:-1])
    with caplog.at_level(logging.WARNING):
        sampler = NoiseSampler(config)
        _, history = start(config, sampler, resume=True)
    assert "step-000004" in caplog.text and sampler.asked[0] == (2, 0)
    assert history == straight


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, None])  # Ctrl-C, a scheduler's, a thread's
def test_a_signal_or_event_ends_the_step_and_leaves_a_checkpoint(config, straight, tmp_path, number):
    stop = threading.Event()
    ask = functools.partial(signal.raise_signal, number) if number else stop.set
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match=r"Stopped after step 3 of 6.*resume=True"):
        start(config, stop=stop, on_step=lambda row: row["step"] == 3 and ask())
    assert before == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    assert checkpoints.newest_checkpoint(tmp_path / "run" / "checkpoints").name == "step-000003"
    assert training.load_history(config.output_dir) == straight[:3]
    assert start(config, resume=True)[1] == straight


def test_a_finished_run_returns_its_history_at_once_and_goes_on_when_given_more_steps(config, caplog):
    config = config.replace(ema_decay=0.9, max_train_steps=2)
    parts, history = start(config)
    manifest = training.save_training_results(config, parts, history) / checkpoints.MANIFEST
    sampler = NoiseSampler(config)
    again, found = start(config, sampler, resume=True)
    assert found == history and sampler.asked == [] and sampler.encoded == 0
    assert_same(adapters.adapter_state(again), adapters.adapter_state(parts))
    assert manifest.is_file() and "jumps" not in caplog.text
    _, longer = start(config.replace(max_train_steps=3), sampler, resume=True)
    assert "begun for 2 steps: for 3 its learning rate jumps" in caplog.text
    assert not manifest.exists()  # the run is no finished one until it is saved
    assert longer[:2] == history and longer[2]["step"] == 3 and sampler.asked[0] == (2, 0)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_is_replaced_only_when_asked_for_and_then_as_a_whole(config, tmp_path, caplog):
    """Finished, without its checkpoints, or stopped before its first checkpoint."""
    caplog.set_level(logging.INFO)
    config = config.replace(max_train_steps=2, tracking="none")
    run = tmp_path / "run"
    training.save_training_results(config, *start(config))
    drawn = ("generated/xray_1_0.png", "samples/step-1.png", "evaluation.json", "calibration.json")
    for name in (*drawn, "notes.txt"):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("of the first run")
    before = contents(run)
    with refused(str(run), "--resume", "--force"):
        start(config.replace(seed=1))
    shutil.copytree(run, tmp_path / "copy", ignore=shutil.ignore_patterns("checkpoints"))
    for resume in (True, False):
        with refused("no checkpoint to go on from", "--force"):
            start(config.replace(output_dir=tmp_path / "copy"), resume=resume)
    assert contents(run) == before
    interrupt(config.replace(seed=1, rank=2), 1, force=True)
    assert set(contents(run)) == {"history.jsonl", "speed.jsonl", "config.json", "notes.txt"}
    assert [row["step"] for row in training.load_history(run)] == [1]
    with refused("holds a run"):
        start(config)
    assert len(start(config, resume=True)[1]) == 2 and "There is no checkpoint" in caplog.text
    with refused("holds a run"):
        start(config)


def test_resume_refuses_another_config_base_or_data(config, tiny_base):
    start(config.replace(max_train_steps=2))
    for other, sampler, match in (
        (config.replace(seed=3), None, "seed: 0 -> 3"),
        (config.replace(base=tiny_base(seed=1)), None, "base model"),
        (config, NoiseSampler(config, "other"), "training data"),
    ):
        with pytest.raises(DasdError, match=match):
            start(other, sampler, resume=True)
    assert len(training.load_history(config.output_dir)) == 2  # nothing was touched


def test_a_step_that_is_not_finite_is_skipped_and_counted(config):
    config = config.replace(ema_decay=0.5)
    parts, history = start(config, SpoiltSampler(config, spoilt={2}))
    assert [row.get("skipped", False) for row in history] == [False, True, False, False, False, False]
    assert history[1]["loss"] is None and history[1]["grad_norm"] is None
    assert all(math.isfinite(row["loss"]) and math.isfinite(row["mmd"]) for row in history[2:])
    assert all(value.isfinite().all() for value in adapters.adapter_state(parts).values())


def test_a_run_that_stays_not_finite_stops_and_says_where(config, monkeypatch):
    monkeypatch.setattr(training, "MAX_SKIPPED", 5)
    sampler = SpoiltSampler(config, spoilt=set(range(4, 12)))
    with pytest.raises(DasdError, match=r"step 8 .*id70-0"):
        start(config.replace(max_train_steps=20), sampler)
    assert [row["step"] for row in training.load_history(config.output_dir)] == list(range(1, 9))


def test_another_objective_enters_without_an_edit(config):
    def plain(parts, batch, config):
        eps, _ = losses.predict_noise(parts, batch, with_source=False)
        loss = (eps - batch.target_noise).abs().mean()
        return loss, {"mine": loss.item()}

    interrupt(config, 3, objective=plain)
    _, history = start(config, objective=plain, resume=True)
    assert [row["step"] for row in history] == [1, 2, 3, 4, 5, 6]
    assert all(row["mine"] == pytest.approx(row["loss"]) and "mmd" not in row for row in history)


def test_bad_calls_are_refused_before_any_work(config, tmp_path, monkeypatch):
    sampler, parts = NoiseSampler(config), make_parts(config)
    monkeypatch.setattr(processes, "default_device", lambda: torch.device("cpu"))
    with refused("fp16", "bf16"):
        training.train(config.replace(mixed_precision="fp16"), parts, sampler)
    assert not (tmp_path / "run").exists()
    bare = make_parts(config)
    bare.token_ids = {}
    for given, ids in ((bare, None), (parts, {"<satellite>": 1})):
        with pytest.raises(DasdError, match=r"token_ids.*setup_training"):
            training.train(config, given, sampler, ids)
    with pytest.raises(TypeError, match="on_stop"):
        training.train(config, parts, sampler, on_stop=print)
    assert sampler.encoded == 0 and not (tmp_path / "run" / "checkpoints").exists()


def test_one_flipped_byte_of_a_run_is_noticed_where_it_is_read(config):
    folder = training.save_training_results(config, *start(config.replace(max_train_steps=1)))
    for name in ("adapter.json", "xray.safetensors", "pytorch_lora_weights.safetensors"):
        sampling.load_trained_pipeline(folder, device="cpu")
        path = folder / "adapter" / name
        whole = path.read_bytes()
        content = bytearray(whole)
        content[content.rindex(b"a") if name == "adapter.json" else -1] ^= 1
        path.write_bytes(content)
        with refused(name):
            sampling.load_trained_pipeline(folder, device="cpu")
        path.write_bytes(whole)


def test_resume_refuses_a_base_that_was_changed_in_place(config, base_dir, tmp_path):
    own = config.replace(base=shutil.copytree(base_dir, tmp_path / "base"), max_train_steps=2)
    training.train(own, training.setup_training(own), NoiseSampler(own), progress=False)
    path = tmp_path / "base" / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["conv_out.weight"] *= 1.01  # the signs stay
    save_file(tensors, path, {"format": "pt"})
    parts = training.setup_training(own)
    with refused("base model: other weights"):
        training.train(own, parts, NoiseSampler(own), resume=True, progress=False)


def test_setup_is_seeded_and_refuses_a_block_that_the_unet_lacks(tiny_config):
    configs = [tiny_config.replace(seed=seed) for seed in (0, 0, 1)]
    one, same, other = (adapters.adapter_state(training.setup_training(each)) for each in configs)
    assert_same(one, same)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(DasdError, match=r"no block 'down\.7'"):
        training.setup_training(tiny_config.replace(layer="down.7"))


@pytest.mark.parametrize("changes", [{}, AVERAGED, WHOLE])
def test_parts_that_trained_start_again_where_they_were_made(config, tmp_path, changes):
    """Anew, and resumed, with and without a checkpoint: as with fresh parts, to the bit."""
    config = config.replace(**{"max_train_steps": 3, "tracking": "none", **changes})
    fresh, expected = start(config.replace(output_dir=tmp_path / "straight"))
    parts = make_parts(config)
    again = functools.partial(training.train, config, parts, NoiseSampler(config), progress=False)
    for step, options in ((1, {"resume": True}), (2, {"resume": True}), (3, {"force": True})):
        with pytest.raises(KeyboardInterrupt):
            again(on_step=stop_at(step), force=True)
        assert again(**options) == expected
        assert_same(adapters.adapter_state(parts), adapters.adapter_state(fresh))


def test_parts_and_sampler_of_another_config_are_refused(config):
    parts, sampler = make_parts(config), NoiseSampler(config)
    free = {"max_train_steps": 1, "learning_rate": 1e-9, "lambda_align": 0.0, "checkpoint_every": 0}
    training.train(config.replace(**free, clip="another"), parts, sampler, progress=False)
    few = (replace(config.domains[0], num_images=5), *config.domains[1:])
    of_parts = [{"seed": 1}, {"rank": 2}]
    for changes in (*of_parts, {"target_batch_size": 4}, {"domains": few}):
        wanted = config.replace(**changes)
        given = (parts, NoiseSampler(wanted)) if changes in of_parts else (make_parts(wanted), sampler)
        with refused("another config", next(iter(changes)), "anew"):
            training.train(wanted, *given, force=True, progress=False)
    assert len(training.load_history(config.output_dir)) == 1


def test_results_of_a_shorter_run_do_not_outlive_it(config, tmp_path):
    config = config.replace(max_train_steps=1, tracking="none")
    run, own = tmp_path / "run", ("notes.txt", "samples/step-1.png")
    training.save_training_results(config, *start(config))
    made = ("calibration.json", "evaluation.json", "comparison_x.png", "generated/a.png", "samples.webp",
            "translated-test-0.parquet", "answers-0.safetensors")  # fmt: skip
    for name in (*made, *own):
        (run / name).parent.mkdir(exist_ok=True)
        (run / name).write_text("of one step")
    start(config, resume=True)
    assert all((run / name).exists() for name in (*made, *own))  # nothing was left to do
    start(config.replace(max_train_steps=2), resume=True)
    assert not any((run / name).exists() for name in made) and all((run / name).exists() for name in own)


def test_a_run_is_not_resumed_for_fewer_steps_than_it_has(config, tmp_path):
    config = config.replace(max_train_steps=2, tracking="none")
    training.save_training_results(config, *start(config))
    before = contents(tmp_path / "run")
    with refused("step-000002 is beyond max_train_steps", "--max_steps"):
        start(config.replace(max_train_steps=1), resume=True)
    assert contents(tmp_path / "run") == before


def test_pictures_of_a_stopped_run_do_not_outlive_it(tmp_path):
    run = tmp_path / "run"
    (run / "samples").mkdir(parents=True)
    checkpoints.clear_run(run, 0, training.HISTORY)
    assert (run / "samples").exists()  # of no run: the user's own
    (run / training.HISTORY).write_text("")  # stopped before its first checkpoint
    checkpoints.clear_run(run, 0, training.HISTORY)
    assert list(run.iterdir()) == []


def test_nothing_is_removed_if_training_cannot_begin(config, tmp_path, monkeypatch):
    config = config.replace(max_train_steps=1, tracking="none")
    training.save_training_results(config, *start(config))
    before = contents(tmp_path / "run")
    sampler = NoiseSampler(config)
    monkeypatch.setattr(sampler, "encode", lambda *_: (_ for _ in ()).throw(DasdError("no latents.")))
    with refused("no latents"):
        start(config, sampler, force=True)
    monkeypatch.setattr(training, "is_bnb_available", lambda: False)
    with refused("adamw_8bit", "pip install bitsandbytes"):
        start(config.replace(optimizer="adamw_8bit"), force=True)
    assert contents(tmp_path / "run") == before


def test_a_kill_while_a_run_is_replaced_leaves_it_known_as_one(config, tmp_path, monkeypatch):
    config = config.replace(max_train_steps=1, tracking="none")
    training.save_training_results(config, *start(config))
    (tmp_path / "run" / "calibration.json").write_text("{}")

    def killed(path):
        raise KeyboardInterrupt if path.name == "checkpoints" else AssertionError(path)

    monkeypatch.setattr(checkpoints.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoints.clear_run(tmp_path / "run", 0)
    assert (tmp_path / "run" / "adapter" / "adapter.json").is_file()
    assert not (tmp_path / "run" / "calibration.json").exists()


def test_samples_that_fail_cost_no_step(config, tmp_path, caplog):
    config = config.replace(max_train_steps=2, sample_every=1, checkpoint_every=1)
    _, history = start(config, on_sample=lambda step: 1 / 0)
    assert [row["step"] for row in history] == [1, 2] and "samples of step 2 cannot be drawn" in caplog.text
    assert checkpoints.newest_checkpoint(tmp_path / "run" / "checkpoints").name == "step-000002"


def test_the_history_is_on_the_disk_before_the_checkpoint(config, monkeypatch):
    kept, sync = [], checkpoints.files.sync
    monkeypatch.setattr(checkpoints.files, "sync", lambda path: kept.append(path.name) or sync(path))
    start(config.replace(max_train_steps=1))
    assert kept[0] == training.HISTORY and "state.json" in kept
