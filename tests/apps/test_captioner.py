"""Captions by a model in the layout of the hub: a narrow random BLIP, made here."""

import pytest
import torch
import transformers
from conftest import picture_files

from dasd_utils.apps.new_domain import captions
from dasd_utils.config import DasdError

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", "[ENC]", "a", "house", "boat", "tree"]
pytestmark = pytest.mark.usefixtures("own_datasets_cache")


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    """Return the folder of a narrow BLIP that captions."""
    folder = tmp_path_factory.mktemp("blip")
    narrow = dict(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    special = dict(bos_token_id=5, eos_token_id=3, sep_token_id=3, pad_token_id=0)
    seen = dict(image_size=32, patch_size=16, **narrow)
    text = dict(vocab_size=len(WORDS), encoder_hidden_size=16, **special, **narrow)
    settings = transformers.BlipConfig(text_config=text, vision_config=seen, projection_dim=16)
    torch.manual_seed(0)
    model = transformers.BlipForConditionalGeneration(settings)
    model.text_decoder.cls.predictions.bias.data[WORDS.index("boat")] = 9.0
    model.save_pretrained(folder)
    tokenizer = transformers.BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)})
    images = transformers.BlipImageProcessorPil(size={"height": 32, "width": 32})
    transformers.BlipProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def test_each_image_is_captioned_by_its_file(tmp_path, blip, monkeypatch):
    monkeypatch.setattr(captions, "BATCH", 2)
    names = picture_files(tmp_path, ["a/1.png", "b/2.png", "3.png"])
    (tmp_path / "4.png").write_bytes(b"no image")
    found = captions.from_model(captions.open_album(tmp_path), str(blip), "cpu")
    assert set(found.texts) == set(names) and found.entry == {}
    assert all("boat" in text for text in found.texts.values())


def test_a_model_that_is_not_there(tmp_path):
    picture_files(tmp_path, ["1.png"])
    with pytest.raises(DasdError, match=r"'nobody/captions'.*there is no folder"):
        captions.from_model(captions.open_album(tmp_path), "nobody/captions")


def test_a_model_that_is_no_captioner(tmp_path, base_dir, blip):
    picture_files(tmp_path, ["1.png"])
    opened = captions.open_album(tmp_path)
    with pytest.raises(DasdError, match="cannot be loaded"):
        captions.from_model(opened, str(base_dir / "clip"), "cpu")


def test_a_pickle_is_not_read(tmp_path, blip):
    picture_files(tmp_path / "images", ["1.png"])
    planted = tmp_path / "planted"
    planted.mkdir()
    for file in blip.iterdir():
        if file.suffix != ".safetensors":
            (planted / file.name).write_bytes(file.read_bytes())
    weights = transformers.BlipForConditionalGeneration.from_pretrained(blip).state_dict()
    torch.save(weights, planted / "pytorch_model.bin")
    with pytest.raises(DasdError, match="safetensors"):
        captions.from_model(captions.open_album(tmp_path / "images"), str(planted), "cpu")
