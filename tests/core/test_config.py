"""Config: profiles, changes by name, JSON, and an error that helps for every slip."""

import json

import pytest

from dasd_utils.config import Config, DasdError
from dasd_utils.profiles import PUBLISHED


def test_field_of_any_section_is_changed_by_name():
    config = Config.setup("tiny", max_train_steps=7, rank=4, seed=3)
    assert (config.training.max_train_steps, config.lora.rank, config.seed) == (7, 4, 3)


@pytest.mark.parametrize("profile", ["tiny", "sd15"])
def test_json_round_trip(profile, tmp_path):
    config = Config.setup(profile, max_train_steps=7)
    assert Config.load(config.save(tmp_path / "config.json")) == config


def test_published_settings_are_the_published_ones():
    config = Config.setup("sd15", **PUBLISHED)
    assert config.lora == type(config.lora)(rank=8, alpha=32.0, dropout=0.1, convolutions="all")
    assert config.training.learning_rate == 1e-5
    assert config.training.token_learning_rate == 5e-5
    assert config.alignment.lambda_align == 0.01
    assert config.domain("satellite").calibration.guidance_scale == 7.0
    assert config.domain("xray").calibration.guidance_scale == 7.5
    assert config.source.calibration.scheduler == "ddpm"


def test_file_holds_only_what_differs(tmp_path):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"profile": "tiny", "training": {"max_train_steps": 5}}))
    assert Config.load(path) == Config.setup("tiny", max_train_steps=5)


def test_assignment_says_how_to_change():
    with pytest.raises(DasdError, match=r"Config\.setup\(seed="):
        Config.setup("tiny").seed = 1
    with pytest.raises(DasdError, match=r"Config\.setup\(max_train_steps="):
        Config.setup("tiny").training.max_train_steps = 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_trian_steps": 5}, "max_train_steps"),
        ({"max_train_steps": 0}, "at least 1"),
        ({"max_train_steps": "many"}, "type int"),
        ({"learning_rate": 0.0}, "above 0"),
        ({"kernel": "gausian"}, "gaussian"),
        ({"attention": "flash"}, "fused"),
        ({"lambda_align": -1.0}, "at least 0"),
        ({"target_batch_size": 2, "queue_size": 0}, "two samples of each domain"),
        ({"source_every": 3, "queue_size": 1}, "source_every is 3"),
        ({"source_every": 0}, "source_every is 0"),
        ({"source_batch_size": 0}, "source_batch_size"),
        ({"domains": []}, "no target domain"),
        ({"domains": [{"name": "a", "data": "x", "token": "a", "initial_word": "a"}]}, "angle"),
        ({"domains": [{"name": "../a", "data": "x", "token": "<a>", "initial_word": "a"}]}, "letters"),
        ({"domains": [{"name": "a", "data": "x", "token": "<a>"}]}, "initial_word"),
        ({"domains": [{"name": "a", "data": "x", "tokn": "<a>"}]}, "token"),
        ({"domains": [{"name": "a"}]}, "lacks the field 'data'"),
    ],
)
def test_slip_is_named(changes, message):
    with pytest.raises(DasdError, match=message):
        Config.setup("tiny", **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"rank": 0},
        {"domains": [{"name": "a", "data": "x"}, {"name": "b", "data": "x"}]},
        {"domains": [{"name": "a", "data": "x", "token": "<a>", "initial_word": "a"}], "rank": 0},
        {"pairs": True, "unbiased": False, "queue_size": 0},
        {"pairs": True, "match_timesteps": True, "lambda_align": 0.0},
        {"match_timesteps": True, "kernel": "gaussian"},
        {"prior_loss_weight": 1.0, "lambda_align": 0.0, "source_batch_size": 1},
    ],
)
def test_what_can_work_is_allowed(changes):
    config = Config.setup("tiny", **changes)
    assert Config.from_dict(config.to_dict()) == config


def test_two_domains_may_not_share_a_token():
    one = {"data": "x", "initial_word": "a"}
    domains = [{"name": "a", "token": "<a>", **one}, {"name": "b", "token": "<A>", **one}]
    with pytest.raises(DasdError, match="one token"):
        Config.setup("tiny", domains=domains)


@pytest.mark.parametrize("values", [[], {"profile": "tny"}, {"trianing": {}}, {"training": 3}])
def test_bad_file_is_refused(values, tmp_path):
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(values))
    with pytest.raises(DasdError):
        Config.load(path)


def test_missing_or_broken_file(tmp_path):
    with pytest.raises(DasdError, match="cannot be read"):
        Config.load(tmp_path / "none.json")
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(DasdError, match="no JSON"):
        Config.load(tmp_path / "broken.json")


def test_unknown_domain_names_the_nearest():
    with pytest.raises(DasdError, match="satellite"):
        Config.setup("tiny").domain("satelite")
