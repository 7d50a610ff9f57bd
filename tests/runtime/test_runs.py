"""A lesson uses the run just trained only if it is the one asked for."""

import dataclasses
import shutil

import huggingface_hub
import pytest

from dasd_utils import sampling
from dasd_utils.config import Calibration, Config, DasdError, resolve
from dasd_utils.runtime import checkpoints


def make_run(config, folder):
    (folder / "adapter").mkdir(parents=True, exist_ok=True)
    config.save(folder / "config.json")
    return folder


@pytest.fixture
def config(tmp_path):
    return Config.setup("tiny", output_dir=tmp_path / "own", shipped_run=str(tmp_path / "shipped"))


def test_own_run_comes_first_if_it_ends_with_the_same_weights(config, tmp_path):
    shipped = make_run(config, tmp_path / "shipped")
    own = make_run(config.replace(max_train_steps=3), tmp_path / "own")
    assert checkpoints.find_run(config) == shipped
    make_run(config.replace(images_per_prompt=9, checkpoint_every=1), own)
    assert checkpoints.find_run(config) == own
    calm = dataclasses.replace(config.domains[0], calibration=Calibration(1.0))
    assert checkpoints.find_run(config.replace(domains=(calm, config.domains[1]))) == own


def test_the_run_of_another_lesson_comes_before_the_shipped_one(config, tmp_path):
    shipped = make_run(config, tmp_path / "shipped")
    lesson = make_run(config.replace(output_dir="elsewhere", sample_every=25), tmp_path / "lesson")
    assert checkpoints.find_run(config) == shipped
    assert checkpoints.find_run(config, [str(tmp_path / "none"), str(lesson)]) == lesson
    make_run(config.replace(max_train_steps=3), lesson)
    assert checkpoints.find_run(config, [str(lesson)]) == shipped
    shutil.rmtree(shipped)
    with pytest.raises(DasdError, match=r"lesson: another training\.max_train_steps"):
        checkpoints.find_run(config, [str(lesson)])


def test_a_run_is_found_where_auto_divides_its_steps_otherwise(config, tmp_path):
    sizes = {"target_batch_size": 8, "source_batch_size": 8, "gradient_accumulation_steps": 3}
    halves = {"target_batch_size": 12, "source_batch_size": 4, "gradient_accumulation_steps": 2}
    own = make_run(config.replace(**halves, gradient_checkpointing=True), tmp_path / "own")
    assert checkpoints.find_run(config) == own
    with pytest.raises(DasdError, match=r"training\.source_batch_size: 8 -> 24"):
        checkpoints.find_run(config.replace(**sizes))
    make_run(config.replace(rank=2), own)
    with pytest.raises(DasdError, match=r"lora\.rank: 2 -> 32"):
        checkpoints.find_run(config)


def test_a_notebook_goes_on_with_the_run_that_was_trained_and_says_which(config, tmp_path, capsys):
    make_run(config, tmp_path / "shipped")
    assert checkpoints.find_trained(config) == tmp_path / "shipped"
    own = make_run(config.replace(max_train_steps=3, rank=2), tmp_path / "own")
    assert "600 training steps" in capsys.readouterr().out
    assert checkpoints.find_trained(config) == own and "3 training steps" in capsys.readouterr().out
    for other in ({"base": "another/base"}, {"domains": config.domains[:1]}):
        with pytest.raises(DasdError, match="No trained run fits"):
            checkpoints.find_trained(config.replace(**other))


def test_a_notebook_goes_on_with_another_run_or_an_exported_adapter(config, tmp_path, capsys, monkeypatch):
    shipped = make_run(config.replace(rank=2), tmp_path / "shipped")
    assert checkpoints.find_trained(config) == shipped
    assert capsys.readouterr().out == f"The run in {shipped}, 600 training steps; lora.rank: 2 -> 32.\n"
    exported = tmp_path / "exported"
    exported.mkdir()
    (exported / "adapter.json").write_text('{"tokens": {"<satellite>": "a", "<xray>": "b"}}')
    named = config.replace(shipped_run="owner/name@abc")
    asked = []

    def download(*names, **options):
        asked.append((*names, options["revision"]))
        return str(exported)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert checkpoints.find_trained(named) == exported and asked == [("owner/name", "abc")]
    assert sampling.run_places("owner/name") == (exported, exported)
    assert checkpoints.find_trained(config.replace(shipped_run=str(exported))) == exported
    assert capsys.readouterr().out == f"The exported adapter in {exported}.\n" * 2
    (exported / "adapter.json").write_text('{"tokens": {"<satellite>": "a"}}')
    with pytest.raises(DasdError, match="no token <xray>"):
        checkpoints.find_trained(named)


def test_where_no_run_is_there_the_ways_on_are_named(tmp_path, monkeypatch):
    config = Config.setup("sd15", output_dir=tmp_path / "own")
    with pytest.raises(DasdError) as failure:
        checkpoints.find_trained(config)
    train = f"`dasd train --profile sd15 --max_steps 100 --output_dir {tmp_path / 'own'}` (2 to 5 minutes"
    for words in (
        f"{tmp_path / 'own'}: no adapter there",
        "notebook 04",
        train,
        "with the --config, --base and --data in use",
        "on Drive",
        '{"shipped_run": ',
    ):
        assert words in str(failure.value)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: 1 / 0)
    with pytest.raises(DasdError, match=r"no folder .*somebody/adapter, and the hub .*division"):
        checkpoints.find_trained(config.replace(shipped_run="somebody/adapter"))


def test_a_key_names_what_decides_the_weights(config, tmp_path):
    key = checkpoints.run_key(config)
    assert len(key) == 12 and int(key, 16) >= 0
    calm = dataclasses.replace(config.domains[0], calibration=Calibration(1.0))
    free = config.replace(output_dir=tmp_path, images_per_prompt=9, checkpoint_every=1)
    for same in (free, config.replace(domains=(calm, config.domains[1])), Config.from_dict(config.to_dict())):
        assert checkpoints.run_key(same) == key
    changes = ({"rank": 2}, {"seed": 1}, {"prior_loss_weight": 1.0}, {"layer": "down.0"})
    others = [checkpoints.run_key(config.replace(**change)) for change in changes]
    method = config.replace(method="domainstudio", lambda_align=0.0)
    drawn = method.replace(source_images="generated")
    slow = dataclasses.replace(config.source, calibration=Calibration(2.0, 3, "ddim"))  # how they are drawn
    others += [checkpoints.run_key(c) for c in (method, drawn, drawn.replace(source=slow))]
    assert len({key, *others}) == 8
    assert checkpoints.run_key(config.replace(source=slow)) == key


def test_a_run_is_complete_with_adapter_and_manifest(config, tmp_path):
    assert not checkpoints.is_complete(config)
    own = make_run(config, tmp_path / "own")
    assert not checkpoints.is_complete(config)  # the manifest is written last
    (own / checkpoints.MANIFEST).write_text("{}")
    assert checkpoints.is_complete(config)
    (own / "adapter").rmdir()
    assert not checkpoints.is_complete(config)


def test_the_shipped_run_is_as_it_was_written():
    names = checkpoints.verify_manifest(resolve("data/tiny-run"))
    assert {"config.json", "history.jsonl", "adapter/pytorch_lora_weights.safetensors"} <= set(names)
