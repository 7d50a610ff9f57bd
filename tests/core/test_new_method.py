"""A method is one new file in `papers`: it trains, resumes, is evaluated and compared without an edit."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import dasd_utils
from dasd_utils.config import ROOT

METHOD = re.search(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)[1]
SCRIPT = """
import functools, json, sys, threading
import torch
from typer.testing import CliRunner
from dasd_utils import latents, training
from dasd_utils.apps.cli import main
from dasd_utils.config import Config
from dasd_utils.runtime import small_cnn

small_cnn.train = functools.partial(small_cnn.train, epochs=1)
torch.set_num_threads(1)
path = sys.argv[1]

def dasd(*words):
    result = CliRunner().invoke(main.app, [*words, "--json"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)

config, stop = Config.load(path, "weighted"), threading.Event()
parts = training.setup_training(config)
*_, sampler = latents.create_datasets(config, parts.tokenizer)
try:
    training.train(config, parts, sampler, stop=stop, on_step=lambda row: stop.set(), progress=False)
except KeyboardInterrupt as stopped:
    assert "Stopped after step 1 of 2" in str(stopped)
last = dasd("train", "--config", path, "--method", "weighted", "--resume")
history = training.load_history(config.output_dir)
scores = dasd("evaluate", "--checkpoint", config.output_dir)
words = ["--only", "weighted loss", "--against", "weighted loss", "--seeds", "0"]
ladder = dasd("ladder", "--config", path, "--output_dir", sys.argv[2], *words)
print(json.dumps([last, history, scores, ladder]))
"""


def test_one_new_file_is_a_method(tiny_config, tmp_path):
    package = tmp_path / "code" / "dasd_utils"
    shutil.copytree(Path(dasd_utils.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "papers" / "weighted.py").write_text(METHOD, encoding="utf8")
    (package.parent / "data").symlink_to(ROOT / "data")
    domains = tiny_config.domains[:1]  # one domain and few prompts are enough
    sizes = {"max_train_steps": 2, "num_heldout": 10, "images_per_prompt": 1, "num_bootstrap": 4}
    sizes |= {"validation_every": 0, "lambda_align": 0.0, "prompts_dir": tmp_path / "prompts"}
    values = tiny_config.replace(**sizes, domains=domains).to_dict()
    del values["method"], values["method_settings"]
    for domain in (tiny_config.source, *domains):
        prompts = json.loads((ROOT / "data/prompts" / f"{domain.name}.json").read_text(encoding="utf8"))
        prompts["prompts"] = prompts["prompts"][:3]
        (tmp_path / "prompts").mkdir(exist_ok=True)
        (tmp_path / "prompts" / f"{domain.name}.json").write_text(json.dumps(prompts), encoding="utf8")
    (tmp_path / "mine.json").write_text(json.dumps(values), encoding="utf8")
    words = [sys.executable, "-c", SCRIPT, str(tmp_path / "mine.json"), str(tmp_path / "ladder")]
    environment = os.environ | {"PYTHONPATH": str(package.parent)}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    last, history, scores, ladder = json.loads(done.stdout.splitlines()[-1])
    assert [row["step"] for row in history] == [1, 2] and last["step"] == 2
    assert all(row["loss"] == 2 * row["loss_noise"] and row["weight"] == 2 for row in history)
    assert {row["method"] for row in scores["rows"]} == {"base", "base + style words", "weighted"}
    assert {row["method"] for row in ladder["rows"]} >= {"weighted loss"}
