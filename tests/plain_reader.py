"""Another program: it reads exports with diffusers alone, and draws one image of each request.

`python plain_reader.py requests.json`; a request: base, variant, folder, kind (of `export.FORMATS`), lora
(file), tokens (file -> word), prompt, guidance_scale, num_inference_steps, noise and image (.npy).
What the model card says in Python is run as it stands there, but for the place of the base, whose
safety checker is no model.
"""

import json
import os
import sys
from pathlib import Path

import numpy as np
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline


def load(request):
    folder = Path(request["folder"])
    if request["kind"] in ("diffusers", "pipeline"):
        card = (folder / "README.md").read_text(encoding="utf8")
        code = card.split("```python\n")[1].split("```")[0]
        os.chdir(folder)
        names = {}
        base = f"{request['base']!r}, safety_checker=None"
        exec(code.replace(f'"{Path(request["base"]).name}"', base), names)
        assert names["image"].size[0] >= 32
        return names["pipe"]
    options = {"variant": request["variant"], "safety_checker": None}
    pipeline = StableDiffusionPipeline.from_pretrained(request["base"], **options)
    pipeline.load_lora_weights(folder, weight_name=request["lora"])
    for file, word in request["tokens"].items():
        pipeline.load_textual_inversion(folder / file, token=word)
    return pipeline


def draw(pipeline, request):
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, clip_sample=False)
    return pipeline(
        request["prompt"],
        latents=torch.from_numpy(np.load(request["noise"])),
        guidance_scale=request["guidance_scale"],
        num_inference_steps=request["num_inference_steps"],
        output_type="np",
    ).images[0]


for request in json.loads(Path(sys.argv[1]).read_text()):
    np.save(request["image"], draw(load(request), request))
assert "dasd_utils" not in sys.modules
