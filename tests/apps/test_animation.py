"""Animations: one frame a step, labelled, in order, and small."""

import base64
import io
import re
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageSequence
from typer.testing import CliRunner

from dasd_utils import figures
from dasd_utils.apps import animation
from dasd_utils.apps.cli import main as cli
from dasd_utils.config import DasdError

COLOURS = {100: "blue", 0: "red", 50: "green"}  # out of order


@pytest.fixture
def grids():
    return {step: Image.new("RGB", (320, 160), colour) for step, colour in COLOURS.items()}


def frames(path):
    with Image.open(path) as image:
        return [(each.convert("RGB"), each.info["duration"]) for each in ImageSequence.Iterator(image)]


@pytest.mark.parametrize("suffix", animation.FORMATS)
def test_frames_come_in_the_order_of_steps_and_rest_at_both_ends(grids, tmp_path, suffix):
    path = animation.save(grids, tmp_path / f"run{suffix}", "tiny profile", width=160)
    found = frames(path)
    assert [each.size for each, _ in found] == [(160, 80 + 30)] * 3
    middle = [each.getpixel((80, 70)) for each, _ in found]
    assert [max(range(3), key=pixel.__getitem__) for pixel in middle] == [0, 1, 2]  # red, green, blue
    assert [round(time) for _, time in found] == [animation.REST, animation.FRAME, animation.REST]


def test_the_step_and_the_label_stand_above(grids, tmp_path):
    pair = {0: grids[0], 100: grids[0]}
    plain, named = (frames(animation.save(pair, tmp_path / "a.png", label)) for label in ("", "tiny profile"))
    (first, _), (last, _) = plain
    left = ImageChops.difference(first, last).getbbox()
    assert left is not None and left[3] <= 30  # another number, a longer line, and nothing below
    other = ImageChops.difference(last, named[-1][0]).getbbox()
    assert other[0] > 320 and other[3] <= 30  # the label, on the right


def test_figures_are_frames_too(grids, tmp_path):
    drawn = {step: figures.image_grid([grids[0]] * 2, ["a harbor", "lungs"]) for step in (0, 25)}
    assert len(frames(animation.save(drawn, tmp_path / "f.webp"))) == 2


def test_what_cannot_be_an_animation_is_refused(grids, tmp_path):
    with pytest.raises(DasdError, match="two pictures"):
        animation.save({0: grids[0]}, tmp_path / "a.webp")
    with pytest.raises(DasdError, match=r"must end in \.webp"):
        animation.save(grids, tmp_path / "a.jpg")
    with pytest.raises(DasdError, match="sample_every"):
        animation.of_run(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_command_takes_the_grids_of_a_run(grids, tmp_path):
    for step, grid in grids.items():
        file = tmp_path / "samples" / f"step-{step:06d}.png"
        file.parent.mkdir(exist_ok=True)
        grid.save(file)
    result = CliRunner().invoke(cli.app, ["animate", str(tmp_path), "--width", "160"])
    assert result.exit_code == 0 and "3 pictures" in result.stdout
    assert [image.width for image, _ in frames(tmp_path / "samples.webp")] == [160] * 3


def test_a_domain_without_words_is_asked_for_by_its_name(tmp_path):
    class Silent(list):
        def prompt(self, _):
            return ""

    asked = []

    def generate(prompts, name, seed):
        asked.append((prompts, name))
        return [Image.new("RGB", (8, 8)) for _ in seed], None, None

    pipeline = SimpleNamespace(config=SimpleNamespace(output_dir=str(tmp_path)), generate=generate)
    animation.sample_grid(pipeline, {"thing": Silent([0, 0])})(1)
    assert asked == [(["thing", "thing"], "thing")] and (tmp_path / "samples/step-000001.png").is_file()


def test_a_slider_holds_its_figures_one_below_the_other():
    one, other = ([Image.new("RGB", (32, 32), (level, 0, 0))] for level in (200, 250))
    frames = {"low & slow": figures.image_grid(one), "high": figures.image_grid(other)}
    shown = animation.Slider(frames)._repr_html_()
    assert (
        'max="1"' in shown and "low &amp; slow|high" in shown and "<output>low &amp; slow</output>" in shown
    )
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^)]+)", shown)[1]))))
    height, width = sheet.shape[:2]
    assert f"padding-bottom:{50 * height / width:.4g}%;" in shown  # the room of one of the two
    assert (
        ") 0 0/100%" in shown and "100*this.value/1+'%'" in shown
    )  # as wide as that, moved by whole pictures
    found = [sheet[height // 4 * row, width // 2, 0] for row in (1, 3)]
    assert np.allclose(found, (200, 250), atol=6)  # the first is above
    for wrong in ({}, {"one": frames["high"]}, {"a": frames["high"], "b": figures.image_grid(one * 2)}):
        with pytest.raises(ValueError, match=r"two figures or more, all of one size"):
            animation.Slider(wrong)
