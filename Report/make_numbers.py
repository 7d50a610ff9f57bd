"""Write what README, documentation, report and model card quote, from data/results: nothing by hand.

Usage: python Report/make_numbers.py [--check]
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from dasd_utils import evaluation, figures
from dasd_utils.apps.notebooks import find_notebooks
from dasd_utils.evaluation import interval_text, markdown_table
from dasd_utils.study import tables

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "data" / "results"
START, END = "<!-- {}: written by Report/make_numbers.py from data/results -->", "<!-- end of {} -->"
CARD = {  # metric -> (title, decimals)
    "psnr": ("VAE, renders again: PSNR in dB", 1),
    "retrieval_r1": ("CLIP: a true caption nearest, of 200 of the domain", 3),
    "zero_shot_domain": ("CLIP: the domain, from bare prompts", 3),
    "reader_on_renders": ("attribute reader on renders", 3),
    "yardstick": ("D: CMMD of its renders from paintings", 2),
    "base_attribute_accuracy": ("base UNet: attributes shown", 3),
    "base_cmmd": ("base UNet: CMMD from renders", 2),
    "lesson_attribute_accuracy": ("run of notebook 04: attributes shown", 3),
    "lesson_cmmd": ("run of notebook 04: CMMD from renders", 2),
    "adapted_attribute_accuracy": ("shipped run, `data/tiny-run`: attributes shown", 3),
    "adapted_cmmd": ("shipped run: CMMD from renders", 2),
    "adapted_other_domain": ("shipped run: share that shows another domain", 3),
}
SAMPLERS = {
    "ours, DDIM 30": "the same steps",
    "ours, DDIM 30, guidance interval": "the same steps, 70 % of them with guidance",
    "ours, calibrated": "15 steps of DPM-Solver++, the profile's setting",
    "ours, calibrated, guidance interval": "15 steps of DPM-Solver++, 70 % of them with guidance",
    "ours, DPM-Solver++ 10": "10 steps of DPM-Solver++",
}
STEPS = {"published": "the published step", "plain": "a plain LoRA step, no alignment"}
NAMES = {"dasd": "DASD"}  # methods as they are written
DOMAINS = ("satellite", "xray")
SWEPT = ("lambda_align", "kernel", "queue_size", "layer", "source_features", "match_timesteps")
TABLES = {
    "ladder": ("cmmd", "attribute_accuracy", "clip_score", "recall", "synthetic_to_real", "copy_rank"),
    "real": ("cmmd", "clip_score", "clip_floor", "recall", "synthetic_to_real", "copy_rank"),
}


def rows(name: str) -> list[dict]:
    """Return the rows of data/results/<name>.json."""
    return evaluation.load_results(RESULTS / f"{name}.json")["rows"]


def headline_block() -> str:
    """Return the README's table: five rows of the longer ladder."""
    stored = evaluation.load_results(RESULTS / "long_ladder.json")
    judged = {(r["method"], r["domain"], r["metric"]): r for r in stored["rows"] if "against" not in r}
    columns = [(domain, metric) for domain in DOMAINS for metric in ("cmmd", "attribute_accuracy")]
    lines = [
        [method, *(interval_text(judged[method, *column], 2) for column in columns)]
        for method in ("base", "base + style words", "LoRA + token", "DASD", "training images")
    ]
    titles = [f"{domain}: {title}" for domain in DOMAINS for title in ("CMMD ↓", "attributes ↑")]
    row = judged["DASD", DOMAINS[0], "cmmd"]
    seeds, steps = len(row["seeds"]), stored["config"]["training"]["max_train_steps"]
    made = (
        f"Means of {seeds} runs of {steps:,} steps, {row['n'] // seeds} images per run and domain; "
        "95 % intervals. Notebook 11 compares more methods, after 600 steps."
    )
    return f"{markdown_table(['', *titles], lines)}\n\n{made}"


def results_block() -> str:
    """Return the tables of the ladder, one per domain, how they were made, and the prompt classifier."""
    found = next(r for r in rows("06_classifier") if r["metric"] == "accuracy")
    accuracy = f"accuracy {interval_text(found, 3)} on {found['n']} labelled prompts"
    return f"{ladder_block('ladder')} Prompt classifier: {accuracy}."


def ladder_block(name: str) -> str:
    """Return the tables of a ladder, one per domain, and how they were made."""
    judged = targets(name)
    training = evaluation.load_results(RESULTS / f"{name}.json")["config"]["training"]
    seeds, n = next((r["seeds"], r["n"]) for r in judged if r["method"] == "DASD")
    decay = training["ema_decay"]
    averaged = f", averaged weights (decay {decay:g})" if decay else ""
    several = len(seeds) > 1
    named = f"training seed{'s' if several else ''} {', '.join(map(str, seeds))}"
    return (
        f"{tables.ladder_table(judged, TABLES['ladder'])}\n\n"
        f"{training['max_train_steps']:,} steps at a rate of {training['learning_rate']:g}{averaged}; "
        f"{named}, {n // len(seeds)} images per seed and domain. ± is half of the 95 % interval over prompts "
        f"{'and seeds' if several else 'alone'}; brackets hold its ends where a share reaches 0 or 1. "
        "≈: no significant paired difference to DASD."
    )


def targets(name: str) -> list[dict]:
    """Return the rows of the target domains."""
    return [row for row in rows(name) if row["domain"] in DOMAINS]


def speed_block() -> str:
    """Return the tables of speed: measured on a CPU, and Stable Diffusion 1.5 on a GPU."""
    lines = []
    for path in sorted(RESULTS.glob("bench_train_step_sd15_*.json")):
        lines += _step_lines([r for r in evaluation.load_results(path)["rows"] if r["step"] == "ours"])
    for path in sorted(RESULTS.glob("bench_method_step_*.json")):
        lines += _method_lines(evaluation.load_results(path))
    lines += _guidance_lines(evaluation.load_results(RESULTS / "bench_guidance.json"))
    lines += _translation_lines(evaluation.load_results(RESULTS / "bench_translation.json"))
    stored = evaluation.load_results(RESULTS / "bench_sample.json")
    sampled, machine = stored["rows"], stored["config"]["machine"]
    for row in (r for r in sampled if r["metric"] == "ratio" and r["method"].startswith("ours")):
        what = f"sampling {row['domain']}, tiny: {SAMPLERS[row['method']]}"
        lines.append([what, "`StableDiffusionPipeline`, 30 steps of DDIM", interval_text(row, 2), ""])
    course = {r["metric"]: r["value"] for r in rows("bench_course") if r["notebook"] == "all"}
    timed = {r["notebook"] for r in rows("bench_course")}
    ran = evaluation.load_results(RESULTS / "bench_course.json")["config"]
    other, how = ran["machine"], f" ({ran['how']})" if "how" in ran else ""
    turns = f"Medians of {sampled[0]['repeats']} turns, the least and the greatest in brackets"
    left_out = [path.stem[:2] for path in find_notebooks() if path.stem not in timed]
    without = f" without {' and '.join(left_out)}" if left_out else ""
    one = f"with {other['threads']} thread on {other['device']}{how}"
    whole = f"takes {course['seconds'] / 60:.0f} minutes, all notebooks together, {one}"
    memory = f"{course['peak_gb']:.1f} GB at most"
    where = f"where no other is named, on {machine['device']}"
    text = f"{turns}; {where}. The tiny course{without} {whole} and {memory}."
    table = markdown_table(["what", "against", "times as fast", "share of its memory"], lines)
    return "\n\n".join([table, text, gpu_table(), scale_table()])


def _step_lines(found: list[dict]) -> list[list[str]]:
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
        bank = ", features from a bank" if ratio.get("source_features") == "bank" else ""
        size = f"{ratio['resolution']} px, {precision}, {batch}{bank}{checkpointing}"
        cells = [f"training step, SD 1.5 shapes, {size}", STEPS[against], interval_text(ratio, 2)]
        lines.append([*cells, f"{memory['value']:.2f}"])
    return lines


def _method_lines(stored: dict) -> list[list[str]]:
    """A row for each method's step against another's, at equal batches; of slowness, its inverse."""
    device, lines = stored["config"]["machine"]["device"], []
    for row in (r for r in stored["rows"] if r["metric"] == "times_as_long"):
        memory = next(
            r["value"]
            for r in stored["rows"]
            if (r["step"], r["against"], r["metric"]) == (row["step"], row["against"], "share_of_memory")
        )
        what = f"training step of {row['step']}, {row['model']}, {row['resolution']} px, {device}"
        other = NAMES.get(row["against"], row["against"])
        lines.append([what, f"that of {other}", interval_text(_inverse(row), 2), f"{memory:.2f}"])
    return lines


def _guidance_lines(stored: dict) -> list[list[str]]:
    """A row for each kind of guidance against the first, classifier-free."""
    device, lines = stored["config"]["machine"]["device"], []
    plain, *others = (row for row in stored["rows"] if row["metric"] == "times_as_long")
    for row in others:
        what = f"sampling, tiny, {row['steps']} steps, {device}: {row['guidance']}"
        lines.append([what, f"{plain['guidance']} guidance", interval_text(_inverse(row), 2), ""])
    return lines


def _translation_lines(stored: dict) -> list[list[str]]:
    """A row for learning to translate by a loss at each step back, against one through all of them."""
    device = stored["config"]["machine"]["device"]
    own = {row["metric"]: row for row in stored["rows"] if row["against"]}
    ratio, memory = interval_text(_inverse(own["times_as_long"]), 2), own["share_of_memory"]["value"]
    row = own["seconds"]
    what = f"{row['operation']}, tiny, {row['n']} turns, {device}"
    return [[what, row["against"], ratio, f"{memory:.2f}"]]


def _inverse(row: dict) -> dict:
    """Times as fast, of times as long."""
    return {"value": 1 / row["value"], "low": 1 / row["high"], "high": 1 / row["low"]}


def course_block() -> str:
    """Return what the course and the studies take with Stable Diffusion 1.5, on each card."""
    whole = [row for row in rows("notebook_memory") if "cell" not in row]
    cards = list(dict.fromkeys(row["card"] for row in whole))
    hours = {(r["notebook"], r["card"]): r for r in whole if r["metric"] == "minutes"}
    peaks = {
        card: max(r["value"] for r in whole if r["card"] == card and r["metric"] == "peak_gb")
        for card in cards
    }
    titles = {
        "all": "all notebooks, hours",
        "ladder": "`dasd ladder`, hours",
        "sweep": "the sweep of notebook 12, hours",
    }
    lines = [[title, *(_hours(hours[name, card]) for card in cards)] for name, title in titles.items()]
    lines.append(["largest cell, GB", *(f"{peaks[card]:.1f}" for card in cards)])
    return markdown_table(["`auto`, predicted", *cards], lines)


def _hours(row: dict) -> str:
    return interval_text(
        {name: row[name] / 60 for name in ("value", "low", "high")}, 0 if row["value"] > 600 else 1
    )


def gpu_table() -> str:
    """Return the largest micro-batch of Stable Diffusion 1.5 that fits in each memory."""
    stored = evaluation.load_results(RESULTS / "bench_gpu.json")
    limits = [r for r in stored["rows"] if "limit_gb" in r]
    image = next(r for r in stored["rows"] if r["metric"] == "seconds_an_image")
    head = [f"memory limit ({stored['config']['for']}, {image['made']})"]
    head += ["targets + sources", "checkpointing", "samples a second", "memory, GB"]
    lines = []
    for speed in (r for r in limits if r["metric"] == "samples_per_second"):
        alike = [r for r in limits if r["metric"] == "peak_gb" and r["limit_gb"] == speed["limit_gb"]]
        peak = next(r for r in alike if r["gradient_checkpointing"] == speed["gradient_checkpointing"])
        batch = f"{speed['target_batch_size']} + {speed['source_batch_size']}"
        checkpointing = "on" if speed["gradient_checkpointing"] else "off"
        cells = [f"{speed['limit_gb']} GB", batch, checkpointing]
        lines.append([*cells, interval_text(speed, 0), interval_text(peak, 1)])
    seconds = f"An image of 30 steps with guidance takes {interval_text(image, 1)} seconds, {image['made']}."
    return f"{markdown_table(head, lines)}\n\n{seconds}"


def scale_table() -> str:
    """Return time, memory and disk of preparing and caching more and more images."""
    found = rows("bench_scale")
    lines = []
    for key in dict.fromkeys(map(_scale_key, found)):
        if key[2] == "train":
            continue  # twenty steps take as long whatever the number of images
        values = {r["metric"]: r["value"] for r in found if _scale_key(r) == key}
        numbers = (values.get("seconds"), values.get("peak_gb"), values.get("disk_gb"))
        scaled = [number and number * factor for number, factor in zip(numbers, (1 / 60, 1, 1), strict=True)]
        cells = [f"{number:.3g}" if number else "" for number in scaled]
        stage = key[2] + (f", {key[3]}" if key[3] else "")
        lines.append([f"{key[0]:,}", str(key[1]), stage, *cells])
    return markdown_table(["images", "workers", "stage", "minutes", "peak memory, GB", "cache, GB"], lines)


def _scale_key(row: dict) -> tuple:
    return row["images"], row["workers"], row["stage"], row.get("made")


def card_block() -> str:
    """Return the table of the embedded base's model card."""
    found = {(r["metric"], r["domain"].removeprefix("painting-")): r for r in rows("pretrain")}
    domains = ("painting", "satellite", "xray", "sketch")
    lines = []
    for metric, (title, digits) in CARD.items():
        cells = [interval_text(found[metric, d], digits) if (metric, d) in found else "" for d in domains]
        lines.append([title, *cells])
    samples, seconds = found["base_cmmd", "painting"], found["sampling_seconds", "painting"]
    timed = f"{seconds['threads']} threads: {seconds['value']:.1f} s"
    size, ratio = found["weights_mb", "all"]["value"], found["latent_deviation_ratio", "all"]["value"]
    return markdown_table(["what", *domains], lines) + (
        f"\n\nn = {samples['n']} renders and samples a domain (of CLIP's captions 200), "
        f"seed {samples['seed']}, 95 % bootstrap intervals. "
        f"Deviations of the latent channels: within a factor of {ratio:.2f}. Weights: {size:.1f} MB. "
        f"Eight images, 30 steps with guidance, {timed} "
        f"({seconds['low']:.1f} to {seconds['high']:.1f}, {seconds['n']} runs).\n\n" + _kinds()
    )


def _kinds() -> str:
    """Return the table of what two runs show of each kind that prompts ask for."""
    named = [(r, *r["metric"].split(": ", 1)) for r in rows("pretrain") if ": " in r["metric"]]
    found = {
        (row["domain"], run, kind): row | {"low": max(row["low"], 0.0), "high": min(row["high"], 1.0)}
        for row, run, kind in named
    }
    kinds = [key for key in found if key[1] == "adapted"]
    lines = [
        [domain, kind, str(found[domain, run, kind]["n"]),
         *(interval_text(found[domain, each, kind], 2) for each in ("lesson", "adapted"))]
        for domain, run, kind in kinds
    ]  # fmt: skip
    return markdown_table(["domain", "asked for", "prompts", "run of notebook 04", "shipped run"], lines)


def latex_macros(report: str) -> str:
    r"""Return what the report quotes as \res{file/method/domain/metric}, and the rows of its tables.

    Ends with the names of those that no result has.
    """
    values: dict[str, str] = {}
    for key, text in _quoted():
        if values.setdefault(key, text) != text:
            sys.exit(f"Two results are quoted by the name {key}.")
    found = next(r for r in rows("06_classifier") if r["metric"] == "accuracy")
    values["classifier/accuracy"] = _tex(found, 3)
    asked = dict.fromkeys(re.findall(r"\\res\{([^}#]+)\}", report))
    if missing := [key for key in asked if key not in values]:
        sys.exit(f"Report/main.tex quotes what data/results does not hold: {', '.join(missing)}")
    cells = {f"table/{file}/{domain}": tex_rows(file, domain) for file in TABLES for domain in DOMAINS}
    quoted = {key: values[key] for key in asked} | cells
    lines = (rf"\expandafter\def\csname res:{key}\endcsname{{{text}}}" for key, text in quoted.items())
    return "\n".join(lines) + "\n"


def _quoted() -> Iterator[tuple[str, str]]:
    for name in ("ladder", "long_ladder", "real", "source_features"):
        for row in rows(name):
            if row["metric"] in figures.METRICS:
                against = f" - {row['against']}" if "against" in row else ""
                digits = figures.METRICS[row["metric"]].decimals
                yield f"{name}/{row['method']}{against}/{row['domain']}/{row['metric']}", _tex(row, digits)
            elif name == "ladder" and row["metric"] == "prompts_needed":
                text = "no number" if row["value"] is None else f"{row['value']:,}"
                yield f"power/{row['method']}/{row['domain']}/{row['seeds']}", text

    yield "ladder/differences", str(sum("separable" in row for row in rows("ladder")))
    chosen = [row for row in rows("calibration_search") if row["chosen"]]
    for name in ("num_inference_steps", "guidance_scale", "calls"):
        values = [row[name] for row in chosen]
        yield f"search/{name}", f"${min(values):g}$ to ${max(values):g}$"
    for row in rows("12_alignment"):
        if row["metric"].startswith("pull_"):
            yield row["metric"].replace("_", "/", 1), _percent(row)
    for row in (row for row in rows("bench_paired_prompts") if row["estimate"] == "all pairs"):
        yield f"floor/{row['domain']}/{row['images']}", f"${row['value']:.3f}$"
    for row in rows("pretrain"):
        if row["metric"].endswith(("_attribute_accuracy", "_cmmd")):
            yield f"pretrain/{row['metric']}/{row['domain']}", _tex(row, 2)
    yield from _swept()


def _swept() -> Iterator[tuple[str, str]]:
    """Yield sweep/<weight>/<kernel>/<queue>/<domain>/<metric>: differences to weight 0, and their counts."""
    counts = Counter()
    for row in rows("alignment_sweep"):
        where = "/".join([*(str(row[name]) for name in SWEPT if name in row), row["domain"], row["metric"]])
        if row["metric"].startswith("pull"):
            yield f"sweep/{where}", _percent(row)
        elif row["metric"] == "separation":
            whose = "" if row["method"] == "adapted" else "_base"
            yield f"sweep/{where}{whose}", _tex(row, 3)
        elif row["lambda_align"] == 0 and row["metric"] == "cmmd" and "separable" not in row:
            yield f"sweep/own/{where}", _tex(row, 2)
        elif "separable" in row and row["metric"] in figures.METRICS:
            yield f"sweep/{where}", _tex(row, figures.METRICS[row["metric"]].decimals)
            target = "targets" if row["domain"] in DOMAINS else "source"
            signs = ("less", row["high"] < 0), ("more", row["low"] > 0)
            bounded = row.get("kernel") != "linear" and row["lambda_align"] > 0
            counts.update({f"{row['metric']}/{target}/{sign}": bounded and true for sign, true in signs})
            counts[f"{row['metric']}/{target}/all"] += bounded
    yield from ((f"sweep/count/{name}", str(number)) for name, number in counts.items())


def _percent(row: dict) -> str:
    value, low, high = (f"{100 * row[name]:.2g}" for name in ("value", "low", "high"))
    return rf"${value}\,[{low}, {high}]\,\%$"


def _tex(row: dict, digits: int) -> str:
    text = tables.estimate_text(row, digits)
    return f"${text}$".replace(" ± ", r"\pm").replace(" [", r"\,[")


def tex_rows(file: str, domain: str) -> str:
    """Return the rows of a table: a method, its scores, marked where they cannot be told from DASD's."""
    found = [row for row in rows(file) if row["domain"] == domain]
    scored = {(r["method"], r["metric"]): r for r in found if "against" not in r}
    to_dasd = [r for r in found if "separable" in r and r["against"] == "DASD"]
    alike = {(r["method"], r["metric"]) for r in to_dasd if not r["separable"]}
    lines = []
    for method in dict.fromkeys(method for method, _ in scored):
        cells = [method.replace("&", r"\&")]
        for metric in TABLES[file]:
            row = scored.get((method, metric))
            mark = r"\,{\scriptsize$\approx$}" if (method, metric) in alike else ""
            cells.append(_tex(row, figures.METRICS[metric].decimals) + mark if row else "")
        lines.append(" & ".join(cells) + r"\\")
    return "".join(lines)


def blocks() -> list[tuple[str, str, str]]:
    """Return (file, name, text) of each block that is written into a page."""
    return [
        ("README.md", "headline", headline_block()),
        ("docs/results.md", "results", results_block()),
        ("docs/results.md", "longer", ladder_block("long_ladder")),
        ("docs/speed.md", "speed", speed_block()),
        ("docs/profiles.md", "course", course_block()),
        ("data/tiny-sd/README.md", "results", card_block()),
    ]


def main() -> None:
    """Write all, or only check that the pages are up to date."""
    for file, name, block in blocks():
        path, start, end = ROOT / file, START.format(name), END.format(name)
        text = path.read_text(encoding="utf8")
        head, rest = text.split(start)
        fresh = f"{head}{start}\n\n{block}\n\n{end}{rest.split(end)[1]}"
        if "--check" not in sys.argv:
            path.write_text(fresh, encoding="utf8")
        elif fresh != text:
            sys.exit(f"{path.relative_to(ROOT)} is out of date: run python Report/make_numbers.py")
    if "--check" not in sys.argv:
        report = (ROOT / "Report" / "main.tex").read_text(encoding="utf8")
        (ROOT / "Report" / "numbers.tex").write_text(latex_macros(report), encoding="utf8")


if __name__ == "__main__":
    main()
