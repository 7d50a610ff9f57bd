"""A folder becomes a domain: its words, a proposal, files all or none, a training and an evaluation."""

import dataclasses
import json

import narrow
import pytest
from conftest import picture_files
from typer.testing import CliRunner

from dasd_utils import data, evaluation, latents, models
from dasd_utils.apps.cli import main as cli
from dasd_utils.apps.new_domain import captions, proposal
from dasd_utils.config import ROOT, Config, DasdError
from dasd_utils.runtime import checkpoints, latent_cache

pytestmark = pytest.mark.usefixtures("own_datasets_cache")
THINGS = ("house", "boat", "tree", "mountain", "bottle")
NAMES = [f"{colour}-{thing}_{i}.png" for thing in THINGS for i, colour in enumerate(("red", "blue", "green"))]
NAMES += [f"large {thing} {i}.png" for i, thing in enumerate(THINGS * 2)]
TOKENIZER = narrow.make_tokenizer()


# its words


@pytest.mark.parametrize(
    ("name", "known", "word", "why"),
    [
        ("sketch", ["a tree"], "sketch", "of the name"),
        ("chest-drawing", [], "drawing", "of the name"),
        ("radiograph", ["the mountain", "a mountain", "the sun"], "mountain", "in 2 of 3 captions"),
        ("radiograph", ["a photograph of the sun"], "sun", "in 1 of 1"),
        ("radiograph", ["of zzyzx"], "radiograph", "pieces of the tokenizer: no caption"),
    ],
)
def test_initial_word_is_one_piece(name, known, word, why):
    found, reason = proposal.initial_word(name, known, TOKENIZER)
    assert found == word and why in reason


def test_descriptions_are_english():
    found = proposal.describe("ink", "drawing")
    assert found["descriptions"] == ["an ink", "a picture in the style of an ink drawing"]
    assert found["style_suffix"] == "ink drawing"


def test_fresh_captions_come_first():
    heldout = ["A dog.", "one", "two", "one"]
    prompts, origin = proposal.evaluation_prompts(["a dog", "Two"], heldout)
    assert prompts[0] == "one" and len(prompts) == proposal.ENOUGH_PROMPTS
    assert "1 captions of held-out" in origin and f"{len(prompts) - 1} rewordings" in origin
    assert not {"a dog", "A dog.", "two", "Two"} & set(prompts) and len(set(prompts)) == len(prompts)
    many = [f"number {i}" for i in range(50)]
    assert proposal.evaluation_prompts([], many)[0] == many[: proposal.MANY_PROMPTS]
    for heldout in (["a dog"], []):  # one sentence for all
        prompts, _ = proposal.evaluation_prompts(["a dog"], heldout)
        assert len(prompts) == len(proposal.WORDINGS) and "a dog" not in prompts


def test_labelled_prompts_name_the_domain():
    others = [{"prompt": "a cat", "domain": None}, {"prompt": "old", "domain": "sketch"}]
    rows = proposal.labelled("sketch", "sketch", ["a sketch of a dog", "a dog", "a dog"], others)
    own = [{"prompt": text, "domain": "sketch"} for text in ("a sketch of a dog", "a dog, sketch")]
    assert rows == [others[0], *own]


# a proposal


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a folder of 25 images whose captions are their names. Do not write to it."""
    place = tmp_path_factory.mktemp("images") / "sketches"
    picture_files(place, NAMES)
    return place


@pytest.fixture
def found(folder, tiny_config):
    """Return the proposal for that folder."""
    return propose(folder, tiny_config)


def propose(folder, config, how="auto", name="sketch"):
    return proposal.propose(name, folder, config, how)


def numbered(folder, count=25, **how):
    picture_files(folder, [f"{i:04}.png" for i in range(count)], **how)
    return folder


def classes(folder):
    return numbered(folder / "tree").parent if numbered(folder / "house", first=100) else folder


def test_a_proposal_says_what_is_there(found, folder):
    audit = found.audit
    assert audit["images"] == 25 == sum(audit[split] for split in data.SPLITS)
    assert audit["captions_missing"] == audit["captions_cut"] == audit["exact_duplicates"] == 0
    assert audit["captions_different"] == 20 and audit["width"] == audit["height"] == [32, 32, 32]
    assert not audit["smaller_than_resolution"] and not audit["unreadable"]
    assert found.entry["token"] == "<sketch>" and found.entry["initial_word"] == "sketch"
    assert found.warnings[0].startswith(f"{audit['train']} training images are few")
    assert not list(folder.glob("*.jsonl"))


def test_the_audit_finds_what_is_wrong(tmp_path, tiny_config):
    picture_files(tmp_path, ["big tree.png", *NAMES], size=20)
    (tmp_path / "copy of red-house_0.png").write_bytes((tmp_path / "red-house_0.png").read_bytes())
    (tmp_path / "0001.png").write_bytes((tmp_path / "big tree.png").read_bytes())
    (tmp_path / "broken boat.png").write_bytes(b"no image")
    (tmp_path / f"{'long ' * 45}tree.png").write_bytes((tmp_path / NAMES[5]).read_bytes())
    found = propose(tmp_path, tiny_config, "names")
    audit = found.audit
    assert (audit["images"], audit["exact_duplicates"], audit["captions_missing"]) == (29, 3, 1)
    assert (audit["captions_cut"], audit["smaller_than_resolution"]) == (1, 29)
    assert len(audit["unreadable"]) == 1 and "broken boat.png" in audit["unreadable"][0]
    for text in ("cannot be read", "have no caption", "longer than", "smaller than 32"):
        assert text in " ".join(found.warnings)
    assert found.values(tmp_path / "x.json")["data"] == {"skip_corrupt": True}


def test_all_sources_can_be_named(tmp_path, tiny_config, folder, monkeypatch):
    label = propose(classes(tmp_path / "classes"), tiny_config, "a sketch of a {label}")
    assert label.entry["label_captions"] == {"tree": "a sketch of a tree", "house": "a sketch of a house"}
    one = propose(numbered(tmp_path / "one"), tiny_config, "a line drawing")
    assert one.entry["caption"] == "a line drawing" and "All captions are the same" in str(one.warnings)
    assert propose(folder, tiny_config, "names").captions.texts[NAMES[0]] == "red house"

    def from_model(album, name, progress):
        return captions.Captions(name, {}, dict.fromkeys(album.files(), f"seen by {name}"))

    monkeypatch.setattr(captions, "from_model", from_model)
    for how in ("owner/name", "owner/name@0123abc", str(tmp_path)):
        found = propose(tmp_path / "one", tiny_config, how)
        assert set(found.captions.texts.values()) == {f"seen by {how}"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "no name"}, "letters, digits"),
        ({"name": "painting"}, "Two domains have one name"),
        ({"name": "x" * 63}, "at most 64"),
        ({"how": "name"}, "Did you mean 'names'"),
        ({"how": ""}, "Or give a sentence"),
        ({"how": "metadata"}, "metadata: no metadata"),
        ({"how": "a {label}"}, "has no labels for 'a {label}'"),
        ({"folder": "nowhere"}, "There is no folder"),
    ],
)
def test_what_cannot_be_proposed(folder, tiny_config, change, message):
    with pytest.raises(DasdError, match=message):
        propose(**({"folder": folder, "config": tiny_config} | change))


def test_what_fails_does_so_before_a_model_captions(folder, tmp_path, tiny_config, monkeypatch):
    monkeypatch.setattr(captions, "from_model", lambda *_, **__: pytest.fail("too early"))
    with pytest.raises(DasdError, match="too few images to split"):
        propose(numbered(tmp_path / "few", count=4), tiny_config, "owner/name")
    (tmp_path / "there.json").write_text("{}")
    result = new_domain(folder, tmp_path / "there.json", "--captions", "owner/name")
    assert isinstance(result.exception, DasdError) and "is there already" in str(result.exception)


def test_split_folders_are_used(tmp_path, tiny_config):
    picture_files(tmp_path, [f"train/{name}" for name in NAMES])
    picture_files(tmp_path, [f"test/yellow vase {i}.png" for i in range(4)], first=500)
    found = propose(tmp_path, tiny_config)
    assert found.entry["test_split"] == "test" and found.audit["test"] == 4
    assert set(found.captions.texts) >= {f"train/{NAMES[0]}", "test/yellow vase 0.png"}


def test_prompts_are_no_captions_of_training_images(folder, tmp_path, tiny_config):
    def plain(text):
        return text.lower().rstrip(".")

    sources = ((folder, "names"), (classes(tmp_path / "images"), "labels"), (folder, "a line drawing"))
    for place, how in sources:
        found = propose(place, tiny_config, how)
        config = Config.load(proposal.write(found, tmp_path / f"{how}.json")[0])
        splits = [data.load_domain(config.domain("sketch"), config, s) for s in ("train", "validation")]
        trained = {plain(text) for split in splits for texts in split.captions for text in texts}
        assert trained and len(set(found.prompts)) >= 2
        assert not trained & {plain(prompt) for prompt in found.prompts}


# files


def test_written_and_loaded(found, tmp_path):
    out = tmp_path / "mine.json"
    written = proposal.write(found, out)
    names = ["mine.json", "classifier.json", "metadata.jsonl", "sketch.json"]
    assert [path.name for path in written] == names
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in written)
    config = Config.load(out)
    loaded = data.load_domain(config.domain("sketch"), config)
    assert loaded.prompt(0).startswith("<sketch> ") and all(c[0] for c in loaded.captions)
    assert evaluation.load_prompts(config, "sketch") == found.prompts
    assert {path.name for path in tmp_path.iterdir()} == {"mine.json", "mine_files"}


def test_nothing_is_replaced_unless_forced(found, tmp_path):
    out = tmp_path / "mine.json"
    proposal.write(found, out)
    (tmp_path / "mine_files" / "old").write_text("")
    for there in (out, tmp_path / "mine_files"):
        with pytest.raises(DasdError, match=rf"{there.name} is there already"):
            proposal.write(found, out)
        out.unlink(missing_ok=True)
    proposal.write(found, out, force=True)
    assert out.exists() and not (tmp_path / "mine_files" / "old").exists()


def test_nothing_is_half_written(found, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    proposal.write(found, tmp_path / "mine.json")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    monkeypatch.setattr(proposal, "caption_lines", fail)
    for out in (tmp_path / "mine.json", tmp_path / "other.json"):
        with pytest.raises(DasdError, match="No space left"):
            proposal.write(found, out, force=True)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_folder_of_images_stays_as_it_is(found, folder):
    with pytest.raises(DasdError, match="inside the folder of images"):
        proposal.write(found, folder / "mine.json")
    with pytest.raises(DasdError, match="is a folder"):
        proposal.write(found, folder.parent, force=True)
    assert proposal.portable(ROOT / "data" / "x") == "data/x"


# what it is for


def run_config(written, tiny_config):
    """Return the written config on the narrow base, with its few steps."""
    protocol = dataclasses.replace(tiny_config.evaluation, prompts_dir=written.evaluation.prompts_dir)
    changes = {"domains": written.domains, "classifier": written.classifier, "evaluation": protocol}
    return dataclasses.replace(tiny_config, **changes)


def dasd(*words):
    return CliRunner().invoke(cli.app, list(map(str, words)))


def new_domain(folder, out, *options):
    return dasd("new-domain", "sketch", folder, "--profile", "tiny", "--out", out, *options)


def test_trained_and_evaluated_by_commands_alone(folder, tiny_config, tmp_path):
    said = new_domain(folder, tmp_path / "b.json").stdout
    for text in (
        "25: ",
        "the file names: 20 different",
        "<sketch>",
        f"dasd train --config {tmp_path}/b.json",
    ):
        assert text in said
    result = new_domain(folder, tmp_path / "a.json", "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    answer = json.loads(result.stdout)
    assert [line.split()[1] for line in answer["next"]] == ["train", "generate", "evaluate"]
    path = run_config(Config.load(answer["config"]), tiny_config).save(tmp_path / "narrow.json")
    result = dasd("all", "--config", path, "--max_steps", "2", "--json")
    assert result.exit_code == 0, (result.output, result.exception)
    rows = json.loads(result.stdout)["rows"]
    assert {row["domain"] for row in rows} == {"sketch"}
    assert {"cmmd", "clip_score"} <= {row["metric"] for row in rows}
    result = dasd("classify", "--config", path, "--prompt", "<sketch> a house", "--json")
    assert json.loads(result.stdout)["best_domain"] == "sketch"


def test_other_captions_are_another_run_on_the_same_latents(found, tiny_config, tmp_path):
    proposal.write(found, tmp_path / "a.json")
    config = run_config(Config.load(tmp_path / "a.json"), tiny_config)
    parts = models.load_parts(config)

    def sampler():
        *_, made = latents.create_datasets(config, parts.tokenizer)
        made.encode(parts.vae, progress=False)
        return made.fingerprint, latent_cache.stored(config)

    before, again = sampler(), sampler()
    path = tmp_path / "a_files" / "metadata.jsonl"
    path.write_text(path.read_text().replace("red house", "a red house"))
    after = sampler()
    assert before == again and before[0] != after[0] and before[1] == after[1]


def test_a_caption_file_is_checked(found, tmp_path):
    proposal.write(found, tmp_path / "a.json")
    config = Config.load(tmp_path / "a.json")
    path = tmp_path / "a_files" / "metadata.jsonl"
    wrong = {("elsewhere.png", "a tree"): "elsewhere.png", (NAMES[0], 3): "file .* of domain sketch holds 3"}
    for (name, text), message in wrong.items():
        path.write_text(json.dumps({"file_name": name, "text": text}))
        with pytest.raises(DasdError, match=message):
            data.load_domain(config.domain("sketch"), config)
    both = dataclasses.replace(config.domains[0], caption_column="text")
    with pytest.raises(DasdError, match="caption_file and in a caption_column"):
        config.replace(domains=(both,))


def test_a_caption_file_is_part_of_a_runs_name_only_where_there_is_one():
    config = Config.setup("tiny")
    named = dataclasses.replace(config.domains[0], data="folder", caption_file="captions.jsonl")
    others = [config.replace(domains=(dataclasses.replace(named, caption_file=c),)) for c in (None, "a", "b")]
    assert len({checkpoints.run_key(other) for other in others}) == 3
