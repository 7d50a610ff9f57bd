"""What a published function cannot use is named, with what it takes."""

import pytest

from dasd_utils import (
    Config,
    DasdError,
    create_datasets,
    load_trained_pipeline,
    plot_losses,
    save_training_results,
    setup_training,
    train,
)
from dasd_utils.config import resolve


@pytest.mark.parametrize("wrong", [None, 5, [None], b"x"], ids=repr)
def test_what_is_no_argument_is_named(wrong, tiny_config, parts, pipeline):
    calls = [
        lambda: Config.load(wrong), lambda: tiny_config.save(wrong), lambda: resolve(wrong),
        lambda: load_trained_pipeline(wrong), lambda: setup_training(wrong),
        lambda: create_datasets(wrong, parts.tokenizer), lambda: create_datasets(tiny_config, wrong),
        lambda: train(wrong, parts, None), lambda: train(tiny_config, wrong, None),
        lambda: train(tiny_config, parts, wrong), lambda: save_training_results(wrong, parts, []),
        lambda: save_training_results(tiny_config, wrong, []), lambda: pipeline.generate(wrong),
        lambda: pipeline.classify_prompt(wrong), lambda: pipeline.generate_comparison(wrong),
    ]  # fmt: skip
    for number, call in enumerate(calls):
        with pytest.raises(DasdError, match=r"must be|not a text"):
            pytest.fail(f"call {number} returned {call()}")
    if wrong != b"x":  # numbers, to a computer
        with pytest.raises(ValueError, match="The history"):
            plot_losses(wrong)


def test_an_empty_path_is_refused():
    with pytest.raises(DasdError, match="A path is empty"):
        resolve(" ")
