"""Config: profiles, changes by name, JSON, and an error that helps for every slip."""

import json
import typing

import pytest
from conftest import refused
from hypothesis import given, settings
from hypothesis import strategies as st

from dasd_utils import config as cfg
from dasd_utils import sampling
from dasd_utils.config import Calibration, Config, DasdError
from dasd_utils.profiles import PUBLISHED

NAN, INFINITE, HUGE = float("nan"), float("inf"), 10**400


def test_field_of_any_section_is_changed_by_name():
    config = Config.setup("tiny", max_train_steps=7, rank=4, seed=3)
    assert (config.training.max_train_steps, config.lora.rank, config.seed) == (7, 4, 3)
    given = {"rank": 2, "dropout": 0.5}
    assert Config.setup("tiny", lora=given, alpha=8).lora == cfg.LoraSettings(2, 8.0, 0.5)
    read = Config.from_dict({"profile": "tiny", "lora": given, "alpha": 8})
    assert read.lora == cfg.LoraSettings(2, 8.0, 0.5)


def test_a_notebook_s_config_is_a_file_or_a_dict_under_its_own_parameters(tmp_path, monkeypatch):
    path = tmp_path / "mine.json"
    path.write_text('{"training": {"max_train_steps": 7}, "seed": 3}', encoding="utf8")
    for changes in (path, str(path), {"max_train_steps": 7, "seed": 3}):
        config = Config.setup("sd15", changes, seed=1)
        assert (config.profile, config.training.max_train_steps, config.seed) == ("sd15", 7, 1)
    assert Config.setup("tiny", None) == Config.setup("tiny")
    monkeypatch.chdir(tmp_path)  # as in a notebook, whose folder is not the repository's
    assert Config.setup("tiny", "data/configs/long_ladder.json").training.max_train_steps == 2000
    assert Config.load("data/configs/long_ladder.json").training.max_train_steps == 2000
    for own, changes in (
        ({"training": {"max_train_steps": 7}, "rank": 4}, {"training": {"lr_warmup_steps": 3}, "rank": 8}),
        ({"max_train_steps": 7, "rank": 4}, {"training": {"lr_warmup_steps": 3}, "lora": {"rank": 8}}),
    ):  # neither replaces a section of the other
        config = Config.setup("tiny", own, **changes)
        found = config.training.max_train_steps, config.training.lr_warmup_steps, config.lora.rank
        assert found == (7, 3, 8)
    path.write_text("[7]", encoding="utf8")
    with pytest.raises(DasdError, match="JSON object of sections, not list"):
        Config.setup("tiny", path)


@pytest.mark.parametrize("profile", ["tiny", "sd15"])
def test_json_round_trip(profile, tmp_path):
    config = Config.setup(profile, max_train_steps=7, output_dir=tmp_path)
    assert Config.load(config.save(tmp_path / "config.json")) == config


def test_published_settings_are_the_published_ones():
    config = Config.setup("sd15", **PUBLISHED)
    assert config.lora == cfg.LoraSettings(rank=8, alpha=32.0, dropout=0.1, convolutions="all")
    assert config.training.learning_rate == 1e-5
    assert config.training.token_learning_rate == 5e-5
    assert config.alignment.lambda_align == 0.01
    assert config.domain("satellite").calibration.guidance_scale == 7.0
    assert config.domain("xray").calibration.guidance_scale == 7.5
    assert config.source.calibration.scheduler == "ddpm"


def test_schedulers_are_those_there_are():
    assert {*typing.get_args(cfg.Scheduler)} == {*sampling.SCHEDULERS}


def test_no_settings_exist_that_break_a_bound():
    assert Calibration(7, 30, "ddim").guidance_scale == 7.0
    for words in ((-1.0,), (NAN,), (7.0, 0), (7.0, 30, "dim"), ("7",), (7.0, True)):
        with refused(" is "):
            Calibration(*words)
    with refused("steps", "num_inference_steps"):
        Calibration(num_inference_step=3)


def test_unknown_domain_names_the_nearest():
    with refused("Did you mean 'satellite'"):
        Config.setup("tiny").domain("satelite")


def thing(**changes) -> dict:
    """Return a config of one domain."""
    one = {"name": "thing", "data": "x", "token": "<thing>", "initial_word": "thing"}
    return {"domains": [one | changes]}


SAME_TOKEN = [thing()["domains"][0], {"name": "b", "data": "x", "token": "<THING>", "initial_word": "a"}]
PAIRS = {"pairs": True, "unbiased": False, "queue_size": 0}
CONFIGS = {
    "nan": ({"training": {"learning_rate": NAN}}, "training.learning_rate is nan"),
    "infinite": ({"training": {"weight_decay": INFINITE}}, "finite"),
    "nan, nested": (thing(calibration={"guidance_scale": NAN}), "domains[0].calibration.guidance_scale"),
    "huge number": ({"training": {"learning_rate": HUGE}}, "learning_rate is 1000"),
    "huge count": ({"training": {"max_train_steps": HUGE}}, "training.max_train_steps"),
    "text for a number": ({"lora": {"rank": "8"}}, "lora.rank is '8'; it must be a valid integer"),
    "truth for a number": ({"lora": {"rank": True}}, "lora.rank is True; it must be a valid integer"),
    "fraction for a count": ({"training": {"max_train_steps": 1.5}}, "is 1.5; it must be a valid integer"),
    "number for a text": ({"output_dir": 3}, "output_dir is 3; it must be a valid string"),
    "null": ({"domains": None}, "domains is None; it must be a valid tuple"),
    "list for a section": ({"lora": [8]}, "lora is [8]; it must be a dictionary"),
    "text for a list": (thing(descriptions="a thing"), "domains[0].descriptions"),
    "number for a sentence": (thing(label_captions={"a": 1}), "label_captions.a"),
    "no images": (thing(num_images=0), "domains[0].num_images is 0"),
    "half a pair": (thing(window=[1]), "domains[0].window[1] is missing"),
    "pair the wrong way": (thing(window=[2, 1]), "the smaller one first"),
    "unknown field": ({"training": {"learning_rte": 1.0}}, "Did you mean 'learning_rate'?"),
    "unknown section": ({"trianing": {}}, "Did you mean 'training'?"),
    "another section's": ({"lora": {"learning_rate": 3}}, "'lora.learning_rate'. It belongs to 'training'"),
    "a domain's": ({"num_images": 3}, "'num_images'. It belongs to 'domains'"),
    "a calibration's, at the top": ({"domain_scale": 3}, "'domain_scale'. It belongs to 'calibration'"),
    "a calibration's": (thing(guidance_scale=3), "'domains[0].guidance_scale'. It belongs to 'calibration'"),
    "list for the profile": ({"profile": ["tiny"]}, "There is no profile ['tiny']"),
    "unknown method": ({"method": "domainstudoi"}, "Did you mean 'domainstudio'"),
    "list for the method": ({"method": ["dasd"]}, "There is no method"),
    "settings of DASD": ({"method_settings": {"a": 1.0}}, "The method dasd has no method_settings"),
    "large seed": ({"seed": 2**64}, "seed is 18446744073709551616"),
    "nothing to learn": ({"lora": {"rank": 0}} | thing(token=None), "nothing would learn"),
    "pairs, unbiased": (PAIRS | {"unbiased": True}, "no unbiased estimate"),
    "pairs with a queue": (PAIRS | {"queue_size": 8}, "queue_size to 0"),
    "times of pairs": (PAIRS | {"match_timesteps": True}, "kernel of sets"),
    "times, linear": ({"match_timesteps": True, "kernel": "linear"}, "a Gaussian kernel"),
    "layer": ({"alignment": {"layer": "middle"}}, "must name a block"),
    "features": ({"source_features": "frosen"}, "is 'frosen'; it must be 'bank', 'frozen' or 'adapted'"),
    "prior without source": (
        {"prior_loss_weight": 1, "source_batch_size": 0, "lambda_align": 0}, "prior_loss_weight need samples"
    ),
    "no source samples": ({"training": {"source_batch_size": 0}}, "lambda_align and prior_loss_weight need"),
    "fractions": ({"data": {"validation_fraction": 0.5, "test_fraction": 0.5}}, "nothing to train on"),
    "scale of the domain": (thing(calibration={"domain_scale": -1}), "domains[0].calibration.domain_scale"),
    "kind of guidance": (thing(calibration={"guidance": "cgf"}), "it must be 'cfg', 'domain',"),
    "name with a path": (thing(name="../thing"), "'../thing'; it must be at most 64 letters"),
    "name of dots": (thing(name=".."), "domains[0].name is '..'"),
    "name with a path of Windows": (thing(name="a\\b"), "domains[0].name is 'a"),
    "name with a space": (thing(name="a b"), "domains[0].name is 'a b'"),
    "name with a NUL": (thing(name="a\0b"), "domains[0].name is 'a"),
    "no name": (thing(name=""), "domains[0].name is ''"),
    "long name": (thing(name="x" * 65), "at most 64 letters"),
    "token with a path": (thing(token="<a/../b>"), "'<a/../b>'"),
    "empty token": (thing(token=""), "domains[0].token is ''"),
    "long token": (thing(token=f"<{'x' * 63}>"), "at most 62 letters"),
    "token of the LoRA's file": (thing(token="<pytorch_lora_weights>"), "not the LoRA's file"),
    "token of the source": ({"source": {"name": "a", "data": "x", "token": "<a>"}}, "source domain a has"),
    "nameless data": (thing(data=" "), "domains[0].data is ' '"),
    "tracking": ({"training": {"tracking": "tensorboard,wandbe"}}, "names with commas of aim|"),
    "small batch": ({"target_batch_size": 2, "queue_size": 0}, "two samples of each domain"),
    "rare source": ({"source_every": 3, "queue_size": 1}, "source_every above 1 needs"),
    "no domain": ({"domains": []}, "no target domain"),
    "name twice": ({"domains": thing()["domains"] * 2}, "one name"),
    "token twice": ({"domains": SAME_TOKEN}, "one token"),
    "bare token": (thing(token="thing"), "angle brackets"),
    "token without a start": (thing(initial_word=""), "lacks initial_word"),
    "slip in a domain": (thing(tokn="<a>"), "'domains[0].tokn'. Did you mean 'token'?"),
    "domain without data": ({"domains": [{"name": "a"}]}, "domains[0].data is missing"),
    "captions twice": (thing(caption_file="a.jsonl", caption_column="text"), "leave one"),
}  # fmt: skip
ABOVE_0 = ["resolution", "max_train_steps", "target_batch_size", "source_every", "num_bootstrap", "alpha",
           "num_inference_steps", "min_snr_gamma", "learning_rate", "token_learning_rate"]  # fmt: skip
NOT_BELOW_0 = ["seed", "rank", "source_batch_size", "queue_size", "lr_warmup_steps", "num_heldout",
               "lambda_align", "prior_loss_weight", "weight_decay", "guidance_scale"]  # fmt: skip
SHARES = ["dropout", "ema_decay", "validation_fraction", "test_fraction"]
BROKEN_BOUNDS = [
    *[{name: 0} for name in ABOVE_0],
    *[{name: -1} for name in NOT_BELOW_0],
    *[{name: value} for name in SHARES for value in (-0.1, 1.0)],
    *[{name: " "} for name in ("output_dir", "cache_dir", "base", "clip")],
    {"caption_dropout": 1.1},
]


@pytest.mark.parametrize("changes", BROKEN_BOUNDS, ids=str)
def test_a_broken_bound_is_named(changes):
    ((name, value),) = changes.items()
    with refused(f"{name} is {value!r}; it must "):
        Config.setup("tiny", **changes)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_bad_config_is_refused(name):
    values, words = CONFIGS[name]
    with refused(words):
        Config.from_dict({"profile": "tiny"} | values)


@pytest.mark.parametrize(
    "changes",
    [
        {"rank": 0},
        {"domains": [{"name": "a", "data": "x"}, {"name": "b", "data": "x"}]},
        thing() | {"rank": 0},
        thing(token=None, initial_word="") | {"rank": 0, "whole_unet": True, "lambda_align": 0.0},
        PAIRS,
        {"pairs": True, "match_timesteps": True, "lambda_align": 0.0},
        {"match_timesteps": True, "kernel": "gaussian"},
        {"prior_loss_weight": 1.0, "lambda_align": 0.0, "source_batch_size": 1},
    ],
)
def test_what_can_work_is_allowed(changes):
    config = Config.setup("tiny", **changes)
    assert Config.from_dict(config.to_dict()) == config


FILES = {
    "nothing": b"",
    "no JSON": b"{",
    "a list": b"[]",
    "a number": b"7",
    "not UTF-8": b'{"profile": "\xff"}',
    "a key twice": b'{"profile": "tiny", "seed": 1, "seed": 2}',
    "a section twice": b'{"profile": "tiny", "lora": {"rank": 2}, "lora": {"alpha": 2}}',
    "too deep": b"[" * 100_000,
    "too many digits": b'{"profile": "tiny", "seed": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_holds_no_config_is_refused(name, tmp_path):
    (tmp_path / "mine.json").write_bytes(FILES[name])
    for path in (tmp_path / "mine.json", tmp_path, tmp_path / "none.json", tmp_path / ("x" * 300)):
        with refused("config"):
            Config.load(path)


@pytest.mark.parametrize(
    ("content", "advice"),
    [
        (b'{"profile": "tiny", // a comment\n"seed": 1}', "no comments"),
        (b'{"profile": "tiny",}', "no comma behind"),
        ('{"profile": "é"}'.encode("cp1252"), "Save it as UTF-8"),
    ],
)
def test_a_file_of_almost_json_says_what_to_change(content, advice, tmp_path):
    (tmp_path / "config.json").write_bytes(content)
    with refused(advice):
        Config.load(tmp_path / "config.json")


@pytest.mark.parametrize("encoding", ["utf8", "utf-8-sig", "utf-16"])
def test_a_config_in_any_unicode_is_read(encoding, tmp_path):
    (tmp_path / "mine.json").write_text('{"profile": "tiny", "seed": 3}', encoding=encoding)
    assert Config.load(tmp_path / "mine.json") == Config.setup("tiny", seed=3)


@pytest.mark.parametrize("name", ["none", "Default", "BASE", "auto", "all", "nul"])
def test_a_domain_is_not_named_as_something_else(name):
    with refused(f"domains[0].name is {name!r}", "not none,"):
        Config.setup("tiny", **thing(name=name))
    Config.setup("tiny", **thing(name=f"{name}-2"))


odd_values = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5),
    st.sampled_from([HUGE, -HUGE, NAN, -1, 0, 2**64, "\ud800", "auto", "tiny", "..", 1e308, [], {}, [[]]]),
    st.lists(st.one_of(st.integers(), st.text(max_size=3), st.none()), max_size=3),
    st.dictionaries(st.text(max_size=5), st.one_of(st.floats(), st.text(max_size=3)), max_size=3),
)  # fmt: skip


def places(values, path=()):
    """Yield where each value of nested JSON is."""
    items = values.items() if isinstance(values, dict) else enumerate(values)
    for name, inner in items:
        yield (*path, name)
        if isinstance(inner, dict | list):
            yield from places(inner, (*path, name))


def mutate(values: dict, draw) -> None:
    """Drop, rename, replace or nest one value."""
    *path, name = draw(st.sampled_from(list(places(values))))
    for step in path:
        values = values[step]
    how = draw(st.sampled_from(["drop", "rename", "replace", "replace", "nest"]))
    value = values.pop(name) if how in ("drop", "rename") else values[name]
    if how == "rename":
        other = draw(st.text(max_size=5))
        values.insert(0, other) if isinstance(values, list) else values.update({other: value})
    elif how == "replace":
        values[name] = draw(odd_values)
    elif how == "nest":
        values[name] = draw(st.sampled_from([[value], {str(name): value}, {"name": value}]))


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.data())
def test_no_config_leads_to_anything_but_a_config_or_a_dasd_error(drawn):
    values = Config.setup(drawn.draw(st.sampled_from(["tiny", "sd15"]))).to_dict()
    for _ in range(drawn.draw(st.integers(1, 3))):
        if values:
            mutate(values, drawn.draw)
    try:
        config = Config.from_dict(values)
    except DasdError:
        return
    text = json.dumps(config.to_dict(), allow_nan=False)
    assert Config.from_dict(json.loads(text)) == config
