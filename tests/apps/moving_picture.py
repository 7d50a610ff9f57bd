"""Film the playground and the training monitor in JupyterLab: figures/playground.webp, in some minutes.

After `make browser`: PYTHONPATH=tests .venv/bin/python tests/apps/moving_picture.py
"""

import io
import re
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright
from test_browser import FLAGS, find_browser, jupyterlab, press, run_all, wait_for_another

from dasd_utils.config import ROOT, Config

PLAYGROUND = (f"""from dasd_utils import sampling
from dasd_utils.apps.playground import form as playground
run = {str(ROOT / "data/tiny-run")!r}
pipeline = sampling.load_trained_pipeline(run)""",
"""playground.playground(pipeline, run, prompt="an aerial view of a beach")""")  # fmt: skip
TRAINING = ("""from dasd_utils import config, latents, sampling, training
from dasd_utils.apps import monitor
config = config.Config.load("config.json")
parts = training.setup_training(config)
*_, sampler = latents.create_datasets(config, parts.tokenizer)
pipeline = sampling.DasdPipeline(parts, config)
prompts = {"satellite": ["a river", "a beach"], "xray": ["clear lungs", "severe pneumonia in both lungs"]}
def look(step):
    return [image for name in prompts for image in pipeline.generate(prompts[name], name, seed=[0, 1])[0]]""",
"""running = monitor.train(config, parts, sampler, on_sample=look)""")  # fmt: skip
SHORT = {"max_train_steps": 120, "sample_every": 20, "validation_every": 0}
SHORT |= {"target_batch_size": 4, "source_batch_size": 2}
frames: list[tuple[Image.Image, int]] = []  # each with the milliseconds that it stays


def shoot(page: Page, milliseconds: int) -> None:
    """Take a frame of the second cell, from its code on."""
    corner = page.locator(".jp-InputArea-editor").nth(1).bounding_box()
    clip = {"x": corner["x"] - 4, "y": corner["y"] - 4, "width": 716, "height": 505}
    frames.append((Image.open(io.BytesIO(page.screenshot(clip=clip))).convert("RGB"), milliseconds))


def draw(page: Page, before: str | None) -> str:
    """Press Generate and wait for another picture; return its address."""
    press(page, "Generate")
    shoot(page, 300)
    drawn = wait_for_another(page, before)
    page.wait_for_timeout(300)
    shoot(page, 800)
    return drawn


def film_playground(page: Page) -> None:
    """Draw; drag the guidance, draw; type another prompt, choose its domain, draw with the base beside it."""
    page.locator("b", has_text="satellite").wait_for()
    shoot(page, 500)
    drawn = draw(page, None)
    box = page.locator(".noUi-handle").first.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    for moved in range(9, 46, 9):
        page.mouse.move(x + moved, y)
        shoot(page, 120)
    page.mouse.up()
    drawn = draw(page, drawn)
    prompt = page.locator(".widget-textarea textarea").first
    prompt.fill("")
    for words in ("a chest", " x-ray", " with clear", " lungs"):
        prompt.press_sequentially(words)
        page.wait_for_timeout(900)  # the classifier answers
        shoot(page, 200)
    page.locator("select", has_text="find it for me").select_option("xray")
    page.get_by_label("base model beside it").check()
    shoot(page, 400)
    draw(page, drawn)


def film_training(page: Page) -> None:
    """Film every fifth step, then press Stop."""
    counter, step = page.get_by_text(re.compile(r"^step \d+ of")).first, -5
    while step < 100:
        now = int(re.search(r"\d+", counter.inner_text()).group())
        if now >= step + 5:
            shoot(page, 130)
            step = now
        page.wait_for_timeout(100)
    press(page, "Stop")
    page.get_by_text("Stopped after step").first.wait_for()
    shoot(page, 1300)


with tempfile.TemporaryDirectory() as place, jupyterlab(Path(place)) as lab, sync_playwright() as tools:
    page = tools.chromium.launch(executable_path=find_browser(), args=FLAGS).new_page()
    page.set_viewport_size({"width": 1140, "height": 1200})
    page.set_default_timeout(600_000)
    for film, cells in {film_playground: PLAYGROUND, film_training: TRAINING}.items():
        folder = Path(place) / film.__name__
        folder.mkdir()
        Config.setup("tiny", output_dir=folder / "run", **SHORT).save(folder / "config.json")
        run_all(page, lab, film.__name__, folder, cells)
        film(page)
images, times = zip(*frames, strict=True)
options = {"append_images": images[1:], "duration": times, "loop": 0, "quality": 70, "method": 4}
images[0].save(ROOT / "figures/playground.webp", save_all=True, **options)
