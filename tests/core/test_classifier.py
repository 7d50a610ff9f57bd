"""The prompt files and the prompt classifier's mechanics, on a narrow random text encoder."""

import dataclasses
import json

import pytest
import torch
from torch.nn import functional as F

from dasd_utils import classifier, config, models, toyworld

PROMPTS = config.ROOT / "data" / "prompts"


@pytest.fixture
def domain_classifier(parts, tiny_config):
    models.add_domain_tokens(parts, tiny_config.domains)
    return classifier.DomainClassifier(parts.text_encoder, parts.tokenizer, tiny_config.domains, 0.5)


class FixedScores(classifier.DomainClassifier):
    """Reads its similarities from the prompt: "0.9 0.1"."""

    def __init__(self, domains):
        self.domains, self.threshold = domains, None
        self.prototypes = dict.fromkeys(d.name for d in domains)

    def similarities(self, prompts):
        return torch.tensor([[float(number) for number in text.split()] for text in prompts])


def plain(text: str) -> str:
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


def test_the_test_file_has_forty_of_each_and_shares_no_prompt():
    test, fitted = (classifier.load_prompts(PROMPTS / f"classifier_{n}.json") for n in ("test", "validation"))
    labels = [row["domain"] for row in test]
    assert [labels.count(name) for name in ("satellite", "xray", None)] == [40, 40, 40]
    assert {row["domain"] for row in fitted} == {"satellite", "xray", None}
    texts = [plain(row["prompt"]) for row in (*test, *fitted)]
    assert len(set(texts)) == len(texts)
    assert not {plain(text) for text in classifier.BACKGROUND} & set(texts)
    truth = {row["prompt"]: row["domain"] for row in test}  # the published cases
    assert truth["chest scan showing lungs"] == truth["medical radiograph"] == "xray"
    assert truth["aerial view of airport"] == "satellite" and truth["a cat"] is None


@pytest.mark.parametrize("domain", ["painting", "satellite", "xray"])
def test_evaluation_prompts_name_what_the_toy_world_can_draw(domain):
    table = json.loads((PROMPTS / f"{domain}.json").read_text())
    texts = {row["text"] for row in table["prompts"]}
    assert table["domain"] == domain and len(texts) == 20 and not any("<" in text for text in texts)
    for row in table["prompts"]:
        assert "scene" in row["attributes"]
        for name, value in row["attributes"].items():
            assert value in toyworld.ATTRIBUTES[domain][name], row


def test_a_prompt_is_read_at_its_end_token(parts, tiny_config):
    # As in Stable Diffusion 1.5: the encoder's own pooling then takes the largest id, the added token.
    parts.text_encoder.config.eos_token_id = 2
    models.add_domain_tokens(parts, tiny_config.domains)
    texts = ["a river", "<satellite> an aerial view of a large forest", ""]
    vectors = classifier.embed_prompts(parts.text_encoder, parts.tokenizer, texts, batch_size=2)
    for text, vector in zip(texts, vectors, strict=True):
        ids = torch.tensor([parts.tokenizer(text).input_ids])  # no padding: the end token is last
        with torch.no_grad():
            last = parts.text_encoder(ids).last_hidden_state[0, -1]
        torch.testing.assert_close(vector, F.normalize(last, dim=0), atol=1e-5, rtol=0)


def test_the_learned_token_is_a_prototype_once_it_is_there(parts, tiny_config):
    satellite = tiny_config.domains[0]
    bare = dataclasses.replace(satellite, descriptions=())
    before = classifier.DomainClassifier(parts.text_encoder, parts.tokenizer, tiny_config.domains)
    assert before.prototype_texts(satellite) == list(satellite.descriptions)
    with pytest.raises(config.DasdError, match="satellite has neither descriptions nor a learned token"):
        before.prototype_texts(bare)
    models.add_domain_tokens(parts, tiny_config.domains)
    after = classifier.DomainClassifier(parts.text_encoder, parts.tokenizer, tiny_config.domains)
    led = [f"<satellite> {text}" for text in satellite.descriptions]
    assert after.prototype_texts(satellite) == [*satellite.descriptions, *led]
    assert after.prototype_texts(bare) == ["<satellite>"]
    assert len(after.prototypes["satellite"]) == 2 * len(satellite.descriptions)


def test_the_nearest_domain_is_found_if_the_threshold_lets_it(domain_classifier, tiny_config):
    domain_classifier.threshold = -1.0
    for domain in tiny_config.domains:
        found = domain_classifier.classify(domain.descriptions[0])
        own = domain_classifier.prototypes[domain.name]
        scores = found["all_similarities"]
        assert list(scores) == ["satellite", "xray"]
        assert scores[domain.name] == pytest.approx((own @ own[0]).mean().item(), abs=1e-4)
        assert found["best_score"] == max(scores.values()) == scores[found["best_domain"]]
        assert found["suggested_prompt"] == f"<{found['best_domain']}> {domain.descriptions[0]}"
    domain_classifier.threshold = 1.1
    found = domain_classifier.classify("an aerial view")
    assert found["best_domain"] is None and found["suggested_prompt"] == "an aerial view"
    assert found["best_score"] == max(found["all_similarities"].values())


@pytest.mark.parametrize("prompt", ["an aerial view <xray>", "<XRAY> an aerial view"])
def test_a_prompt_with_a_token_keeps_it_and_gets_no_other(domain_classifier, prompt):
    found = domain_classifier.classify(prompt)
    assert (found["best_domain"], found["best_score"]) == ("xray", 1.0)
    assert found["suggested_prompt"] == prompt
    with pytest.raises(config.DasdError, match="several domains, <satellite>, <xray>: leave one"):
        domain_classifier.classify(f"{prompt}, <SATELLITE>")


def test_a_list_gives_what_its_prompts_give_alone(domain_classifier):
    prompts = ["an aerial view of a river", "a dark table", "<xray> lungs"]
    for prompt, together in zip(prompts, domain_classifier.classify(prompts), strict=True):
        alone = domain_classifier.classify(prompt)["all_similarities"]
        assert alone == pytest.approx(together["all_similarities"], abs=1e-5)


@pytest.mark.parametrize("prompt", ["", "  ", [], ["a river", ""], ["a river", None]])
def test_empty_prompts_are_refused(domain_classifier, prompt):
    with pytest.raises(config.DasdError, match=r"(?i)prompt"):
        domain_classifier.classify(prompt)


def test_the_threshold_is_the_middle_of_the_best_gap(tiny_config):
    domain_classifier = FixedScores(tiny_config.domains)
    with pytest.raises(config.DasdError, match="fit_threshold"):
        domain_classifier.classify("0.9 0.1")
    rows = [("0.9 0.1", "satellite"), ("0.2 0.7", "xray"), ("0.3 0.1", None), ("0.1 0.0", None)]
    rows = [{"prompt": text, "domain": name} for text, name in rows]
    assert domain_classifier.fit_threshold(rows) == pytest.approx(0.5)  # between 0.3 and 0.7
    assert domain_classifier.threshold == domain_classifier.fit_threshold(rows[::-1])
    mixed = [*rows, {"prompt": "0.8 0.0", "domain": "xray"}, {"prompt": "0.95 0", "domain": None}]
    assert domain_classifier.fit_threshold(mixed) == pytest.approx(0.5)  # wrong above and, but for 0.8, below
    assert domain_classifier.fit_threshold(rows[:2]) < 0.7  # no prompt is none: all above
    assert domain_classifier.fit_threshold(rows[2:]) > 0.3  # every prompt is none: all below


def test_accuracy_counts_truth_by_answer(tiny_config):
    domain_classifier = FixedScores(tiny_config.domains)
    domain_classifier.threshold = 0.5
    table = [("0.9 0.1", "satellite"), ("0.9 0.1", "xray"), ("0.1 0.9", "xray"), ("0.1 0.2", "xray")]
    table += [("0.1 0.2", None), ("0.1 0.2", "a domain that is not compared with")]
    labels = [{"prompt": p, "domain": d} for p, d in table]
    share, matrix, rows = classifier.accuracy(domain_classifier, labels)
    assert share == pytest.approx(4 / 6) and matrix == [[1, 0, 0], [1, 1, 1], [0, 0, 2]]
    assert [row["right"] for row in rows] == [True, False, True, False, True, True]
    assert rows[1]["answer"] == "satellite" and rows[1]["score"] == pytest.approx(0.9)


@pytest.mark.parametrize("content", ["{", "[1]", '{"prompt": "a"}', '[{"prompt": "a"}]'])
def test_a_broken_prompt_file_is_named(tmp_path, content):
    path = tmp_path / "prompts.json"
    path.write_text(content)
    with pytest.raises(config.DasdError, match=r"prompts\.json"):
        classifier.load_prompts(path)


def test_tokens_go_in_and_out_of_prompts(tiny_config):
    satellite, xray = tiny_config.domains
    assert config.without_tokens("<satellite> a river", (satellite, xray)) == "a river"
    assert config.without_tokens("a <XRAY> river <satellite>", (satellite, xray)) == "a river"
