"""Write what report, README and model card quote, from data/results, and draw the method: nothing by hand.

Usage: python Report/make_numbers.py [--check]
"""

from __future__ import annotations

import sys
from pathlib import Path

from dasd_utils import diagram, evaluation, figures

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "data" / "results"
START, END = "<!-- {}: written by Report/make_numbers.py from data/results -->", "<!-- end of {} -->"
CARD = {  # metric -> (title, decimals)
    "psnr": ("VAE, renders again: PSNR in dB", 1),
    "retrieval_r1": ("CLIP: the right caption among 200 of the domain", 3),
    "zero_shot_domain": ("CLIP: the domain, from bare prompts", 3),
    "reader_on_renders": ("attribute reader on renders", 3),
    "yardstick": ("D: CMMD of its renders from paintings", 2),
    "base_attribute_accuracy": ("base UNet: attributes shown", 3),
    "base_cmmd": ("base UNet: CMMD from renders", 2),
    "adapted_attribute_accuracy": ("adapted (`data/tiny-run`): attributes shown", 3),
    "adapted_cmmd": ("adapted: CMMD from renders", 2),
}
SAMPLERS = {
    "ours, DDIM 30": "the same steps",
    "ours, calibrated": "15 steps of DPM-Solver++, as calibrated",
    "ours, DPM-Solver++ 10": "10 steps of DPM-Solver++",
}
STEPS = {"published": "the published step", "plain": "a plain LoRA step, no alignment"}
METHODS = {"base": "Base", "base + style words": "Style", "DASD": "Dasd"}
DOMAINS = {"satellite": "Satellite", "xray": "Xray"}
METRIC = {
    "clip_score": "Clip",
    "clip_floor": "Floor",
    "attribute_accuracy": "Attributes",
    "cmmd": "Cmmd",
    "kid": "Kid",
}


def rows(name: str) -> list[dict]:
    """Return the rows of data/results/<name>.json."""
    return evaluation.load_results(RESULTS / f"{name}.json")["rows"]


def readme_block() -> str:
    """Return the results table of the README."""
    judged = [r for r in rows("06_evaluation") if r["method"] in METHODS]
    found = next(r for r in rows("05_classifier") if r["metric"] == "accuracy")
    counts = sorted({r["n"] for r in judged})
    sizes = " and ".join(map(str, counts))
    return (
        f"{evaluation.table(judged)}\n\n"
        f"n = {sizes} images a method and domain, seed {judged[0]['seed']}. Prompt classifier: accuracy "
        f"{_interval(found, 3)} on {found['n']} labelled prompts."
    )


def speed_block() -> str:
    """Return the README's tables of speed: measured on a CPU, and Stable Diffusion 1.5 on a GPU."""
    lines = ["| what | against | times as fast | share of its memory |", "|---|---|---|---|"]
    for path in sorted(RESULTS.glob("bench_train_step_sd15_*.json")):
        lines += _step_lines([r for r in evaluation.load_results(path)["rows"] if r["step"] == "ours"])
    sampled = rows("bench_sample")
    for row in (r for r in sampled if r["metric"] == "ratio" and r["method"].startswith("ours")):
        what = f"sampling {row['domain']}, tiny: {SAMPLERS[row['method']]}"
        lines.append(f"| {what} | `StableDiffusionPipeline`, 30 steps of DDIM | {_interval(row, 2)} | |")
    course = {r["metric"]: r["value"] for r in rows("bench_course") if r["notebook"] == "all"}
    machine = evaluation.load_results(RESULTS / "bench_course.json")["config"]["machine"]
    turns = f"Medians of {sampled[0]['repeats']} turns, the least and the greatest in brackets"
    whole = f"takes {course['seconds'] / 60:.1f} minutes on {machine['cores']} cores"
    memory = f"{course['peak_gb']:.1f} GB at most"
    text = f"{turns}; on {machine['device']}. The whole tiny course {whole} and {memory}."
    return "\n".join([*lines, "", text, "", gpu_table(), "", scale_table()])


def _step_lines(found: list[dict]) -> list[str]:
    lines = []
    for against in dict.fromkeys(r["against"] for r in found):
        ratio, memory = (
            next(r for r in found if r["against"] == against and r["metric"] == metric)
            for metric in ("ratio", "memory_ratio")
        )
        precision = {"no": "fp32"}.get(ratio["precision"], ratio["precision"])
        batch = f"{ratio['target_batch_size']} + {ratio['source_batch_size']} at once"
        batch = "one by one" if ratio["target_batch_size"] == 1 else batch
        checkpointing = ", checkpointing" if ratio.get("gradient_checkpointing") else ""
        size = f"{ratio['resolution']} px, {precision}, {batch}{checkpointing}"
        cells = [f"training step, SD 1.5 shapes, {size}", STEPS[against], _interval(ratio, 2)]
        lines.append("| " + " | ".join([*cells, f"{memory['value']:.2f}"]) + " |")
    return lines


def gpu_table() -> str:
    """Return the largest micro-batch of Stable Diffusion 1.5 that fits in each memory."""
    stored = evaluation.load_results(RESULTS / "bench_gpu.json")
    limits = [r for r in stored["rows"] if "limit_gb" in r]
    image = next(r for r in stored["rows"] if r["metric"] == "seconds_an_image")
    head = (f"{stored['config']['for']}, {image['made']}", "targets + sources", "checkpointing")
    lines = ["| " + " | ".join([*head, "samples a second", "memory, GB"]) + " |", "|---|---|---|---|---|"]
    for speed in (r for r in limits if r["metric"] == "samples_per_second"):
        alike = [r for r in limits if r["metric"] == "peak_gb" and r["limit_gb"] == speed["limit_gb"]]
        peak = next(r for r in alike if r["gradient_checkpointing"] == speed["gradient_checkpointing"])
        batch = f"{speed['target_batch_size']} + {speed['source_batch_size']}"
        checkpointing = "on" if speed["gradient_checkpointing"] else "off"
        cells = [f"{speed['limit_gb']} GB", batch, checkpointing, _interval(speed, 0), _interval(peak, 1)]
        lines.append("| " + " | ".join(cells) + " |")
    seconds = f"An image of 30 steps with guidance takes {_interval(image, 1)} seconds, {image['made']}."
    return "\n".join([*lines, "", seconds])


def scale_table() -> str:
    """Return time, memory and disk of preparing and caching more and more images."""
    found = rows("bench_scale")
    lines = ["| images | workers | stage | minutes | peak memory, GB | cache, GB |", "|---" * 6 + "|"]
    for key in dict.fromkeys(map(_scale_key, found)):
        if key[2] == "train":
            continue  # twenty steps take as long whatever the number of images
        values = {r["metric"]: r["value"] for r in found if _scale_key(r) == key}
        numbers = (values.get("seconds"), values.get("peak_gb"), values.get("disk_gb"))
        scaled = [number and number * factor for number, factor in zip(numbers, (1 / 60, 1, 1), strict=True)]
        cells = [f"{number:.3g}" if number else "" for number in scaled]
        stage = key[2] + (f", {key[3]}" if key[3] else "")
        lines.append("| " + " | ".join([f"{key[0]:,}", str(key[1]), stage, *cells]) + " |")
    return "\n".join(lines)


def _scale_key(row: dict) -> tuple:
    return row["images"], row["workers"], row["stage"], row.get("made")


def card_block() -> str:
    """Return the table of the embedded base's model card."""
    found = {(r["metric"], r["domain"].removeprefix("painting-")): r for r in rows("pretrain")}
    domains = ("painting", "satellite", "xray", "sketch")
    lines = ["| what | " + " | ".join(domains) + " |", "|---|" + "---|" * len(domains)]
    for metric, (title, digits) in CARD.items():
        cells = [_interval(found[metric, d], digits) if (metric, d) in found else "" for d in domains]
        lines.append("| " + " | ".join([title, *cells]) + " |")
    samples, seconds = found["base_cmmd", "painting"], found["sampling_seconds", "painting"]
    size, ratio = found["weights_mb", "all"]["value"], found["latent_deviation_ratio", "all"]["value"]
    return "\n".join(lines) + (
        f"\n\nn = {samples['n']} renders and samples a domain (200 captions), seed {samples['seed']}, 95 % "
        f"bootstrap intervals. Deviations of the latent channels: within a factor of {ratio:.2f}. Weights: "
        f"{size:.1f} MB. Eight images, 30 steps with guidance, on two cores: {seconds['value']:.1f} s "
        f"({seconds['low']:.1f} to {seconds['high']:.1f}, {seconds['n']} runs)."
    )


def _interval(row: dict, digits: int) -> str:
    return f"{row['value']:.{digits}f} [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"


def latex_macros() -> str:
    r"""Return one \newcommand per number: \SatelliteDasdCmmd is "value [low, high]"."""
    lines = []
    for row in rows("06_evaluation"):
        if row["method"] in METHODS and row["metric"] in METRIC:
            name = DOMAINS[row["domain"]] + METHODS[row["method"]] + METRIC[row["metric"]]
            digits = evaluation.METRICS[row["metric"]][1]
            text = _interval(row, digits)
            lines.append(rf"\newcommand{{\{name}}}{{{text}}}")
            lines.append(rf"\newcommand{{\{name}N}}{{{row['n']}}}")
    found = next(r for r in rows("05_classifier") if r["metric"] == "accuracy")
    text = _interval(found, 3)
    return "\n".join([*lines, rf"\newcommand{{\ClassifierAccuracy}}{{{text}}}"]) + "\n"


def main() -> None:
    """Write all, or only check that README and card are up to date."""
    blocks = [
        ("README.md", "results", readme_block()),
        ("README.md", "speed", speed_block()),
        ("data/tiny-sd/README.md", "results", card_block()),
    ]
    for file, name, block in blocks:
        path, start, end = ROOT / file, START.format(name), END.format(name)
        text = path.read_text(encoding="utf8")
        head, rest = text.split(start)
        fresh = f"{head}{start}\n\n{block}\n\n{end}{rest.split(end)[1]}"
        if "--check" not in sys.argv:
            path.write_text(fresh, encoding="utf8")
        elif fresh != text:
            sys.exit(f"{path.relative_to(ROOT)} is out of date: run python Report/make_numbers.py")
    if "--check" not in sys.argv:
        (ROOT / "Report" / "numbers.tex").write_text(latex_macros(), encoding="utf8")
        figures.save(diagram.method_diagram(), ROOT / "figures" / "method.png", dpi=110)


if __name__ == "__main__":
    main()
