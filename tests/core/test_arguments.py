"""What a published function cannot use is named, with what it takes; a long text is cut."""

import pytest

import dasd_utils as dasd
from dasd_utils.config import Config, DasdError, resolve, shortened

WRONG = [None, 5, [None], b"x"]


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
def test_what_is_no_argument_is_named(wrong, tiny_config, parts, pipeline):
    calls = [
        lambda: Config.load(wrong), lambda: tiny_config.save(wrong), lambda: resolve(wrong),
        lambda: dasd.load_trained_pipeline(wrong), lambda: dasd.setup_training(wrong),
        lambda: dasd.create_datasets(wrong, parts.tokenizer),
        lambda: dasd.create_datasets(tiny_config, wrong),
        lambda: dasd.train(wrong, parts, None), lambda: dasd.train(tiny_config, wrong, None),
        lambda: dasd.train(tiny_config, parts, wrong), lambda: dasd.save_training_results(wrong, parts, []),
        lambda: dasd.save_training_results(tiny_config, wrong, []), lambda: pipeline.generate(wrong),
        lambda: pipeline.classify_prompt(wrong), lambda: pipeline.generate_comparison(wrong),
    ]  # fmt: skip
    for number, call in enumerate(calls):
        with pytest.raises(DasdError, match=r"must be|not a text"):
            pytest.fail(f"call {number} returned {call()}")
    if wrong != b"x":  # numbers, to a computer
        with pytest.raises(ValueError, match="The history"):
            dasd.plot_losses(wrong)


@pytest.mark.parametrize("name", ["none", "Base", "default", "auto"])
def test_words_that_name_no_domain_say_what_to_do(name, pipeline):
    with pytest.raises(DasdError, match=r"is no domain: leave it out for the base model.*--auto-domain"):
        pipeline.generate("a harbor", name)


def test_long_texts_are_cut_in_warnings_and_errors(pipeline, caplog, tmp_path):
    long = "a harbor at night " * 5000
    pipeline.plan([long])
    pipeline.generate(long, "xray")
    assert "is cut to" in caplog.text and len(caplog.text) < 2000
    for wrong in ("\ud800" * 9999, b"x" * 9999):
        with pytest.raises(DasdError) as refused:
            pipeline.generate(wrong)
        assert len(str(refused.value)) < 400
    assert shortened("a") == "'a'" and len(shortened(long)) < 300
