"""What the benchmarks measure with: workers, stopwatch, tables, and the three steps themselves."""

import dataclasses
import json
import math
import types

import common
import counting
import gpu
import nbformat
import notebook_memory
import pytest
import scale
import steps
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensor

from dasd_utils import evaluation
from dasd_utils.apps.notebooks import find_notebooks
from dasd_utils.config import ROOT


def test_a_stopwatch_adds_up_and_gives_the_functions_back():
    owner = types.SimpleNamespace(work=lambda x: x + 1)
    plain = owner.work
    with pytest.raises(KeyError), common.Stopwatch() as watch:
        watch.watch(owner, "work", "first", "second")
        assert [owner.work(x) for x in (1, 2, 3)] == [2, 3, 4]
        raise KeyError
    assert owner.work is plain
    assert set(watch.seconds) == {"first", "second"} and min(watch.seconds.values()) >= 0


def test_a_worker_times_answers_and_says_what_failed():
    worker = common.Worker(dict, threads=1, next=iter([4, 5, 6]).__next__)
    assert worker.ask("value", "next") == 4
    assert 0 <= worker.ask("seconds", "next") < 10
    assert worker.ask("value", "next") == 6
    assert worker.ask("peak") > 1e7
    with pytest.raises(RuntimeError, match="KeyError"):
        worker.ask("value", "absent")
    worker.close()
    assert not worker.process.is_alive()


def test_results_have_a_row_for_each_measure(tmp_path, monkeypatch):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    rows = [{"step": "ours", "n": 3, "seconds": common.spread([2.0, 1.0, 4.0]), "gflop": common.exactly(7)}]
    saved = json.loads(common.save("x", {"machine": "this"}, rows).read_text())
    assert saved["config"] == {"machine": "this"}
    assert saved["rows"] == [
        {"seed": 0, "step": "ours", "n": 3, "metric": "seconds", "value": 2.0, "low": 1.0, "high": 4.0},
        {"seed": 0, "step": "ours", "n": 3, "metric": "gflop", "value": 7, "low": 7, "high": 7},
    ]
    assert common.table(rows, {"step": "", "seconds": ".1f", "gflop": ".0f"}).split() == [
        *("step", "seconds", "gflop", "ours", "2.0", "[1.0,", "4.0]", "7")
    ]


def test_the_steps_do_the_work_they_are_compared_by():
    """Counted on the tiny base: ours is the least a target sample can cost with alignment on."""
    options = {"model": "tiny", "resolution": 64, "precision": "no"}
    one = dict(target_batch_size=1, source_batch_size=1, source_every=3, gradient_accumulation_steps=3)
    ours = steps.ours(**options, **one, source_features="adapted")
    published, plain = steps.published(**options), steps.plain(**options)

    def work(operations, name):
        return common._answer(operations, "gflop", name)

    banked = steps.ours(**options, **one)
    assert work(banked, "step") < work(ours, "step")
    assert work(banked, "bank") < work(ours, "step")  # eight samples, as far as the mid-block
    few = steps.plain(**options, at_once=1)
    assert work(few, "step") == pytest.approx(work(plain, "step"), rel=1e-6)
    each = work(ours, "step") / 3
    assert each < 0.6 * work(published, "sample")
    assert each < work(plain, "step") / steps.PLAIN_BATCH
    parts = {"text", "target", "source", "backward", "optimiser"}
    assert set(ours["parts"]()) == parts and set(published["parts"]()) == parts | {"VAE"}
    assert all(math.isfinite(value) and value >= 0 for value in ours["parts"]().values())


def test_attention_of_a_cpu_is_counted_as_what_it_is():
    """torch counts the fused attention of GPUs, and would leave this one out."""
    query = torch.randn(1, 2, 64, 8, requires_grad=True)
    plain = common.count_gflop(lambda: (query @ query.transpose(-1, -2)).softmax(-1) @ query)
    fused = common.count_gflop(lambda: F.scaled_dot_product_attention(query, query, query))
    assert fused == plain == pytest.approx(2 * 2 * 2 * 64 * 64 * 8 / 1e9)
    both = common.count_gflop(lambda: F.scaled_dot_product_attention(query, query, query).sum().backward())
    assert both == pytest.approx(3.5 * fused)  # backward: scores anew, and four products


def test_the_largest_batch_of_each_memory():
    def row(targets, peak, checkpointing=False):
        sizes = {"target_batch_size": targets, "gradient_checkpointing": checkpointing}
        return {**sizes, **({"peak_gb": common.exactly(peak)} if peak else {})}

    rows = [row(1, 6), row(2, 9), row(3, 15), row(4, 23), row(8, None), row(1, 3, True), row(8, 7, True)]
    found = {(r["limit_gb"], r["gradient_checkpointing"]): r["target_batch_size"] for r in gpu.largest(rows)}
    assert {limit: found[limit, False] for limit in (8, 16, 24)} == {8: 1, 16: 3, 24: 4}
    assert {found[limit, True] for limit in (8, 16, 24)} == {8} and len(found) == 6


def test_scale_prepares_encodes_and_trains(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "STEPS", 1)
    monkeypatch.setattr(scale.latent_cache, "SHARD", 10)
    small = scale.settings(12, str(tmp_path))
    few = dataclasses.replace(small.source, num_images=4)
    changes = dict(source=few, target_batch_size=2, source_batch_size=2)
    monkeypatch.setattr(scale, "settings", lambda *_: small.replace(**changes))
    operations = scale.stages(12, str(tmp_path))
    operations["prepare"]()
    assert sorted(operations["encode"]()) == [2, 4, 10]
    assert operations["encode"]() == []  # all is there
    operations["train"]()
    assert (tmp_path / "run" / "history.jsonl").read_text().count("\n") == 1


def test_what_is_predicted_of_a_gpu_is_what_the_lessons_count(monkeypatch):
    asked = []
    monkeypatch.setattr(gpu.counting, "step", lambda c: asked.append(c) or counting.Counted(10**10, 3630.0))
    (sizes,) = [each for each in gpu.batches([3]) if each["gradient_checkpointing"]]
    row = gpu.predicted(sizes)
    assert row["peak_gb"] == common.Measure(11.0, 10.6, 11.5) and row["gflop"].value == 1210
    assert row["samples_per_second"].value == pytest.approx(18.0)  # 3 x 121 TFLOP/s x 0.18 / 3.63
    assert (asked[0].training.target_batch_size, asked[0].training.source_batch_size) == (3, 1)
    assert asked[0].training.gradient_checkpointing and asked[0].alignment.source_features == "bank"


def test_scale_extrapolates_by_a_line_what_grows_by_one():
    measures = {
        "seconds": lambda n: 2 + n / 100,
        "peak_gb": lambda n: 1 + n / 1e6,
        "disk_gb": lambda n: n / 1e5,
    }
    rows = [
        {"images": n, "stage": stage} | {name: common.exactly(at(n)) for name, at in measures.items()}
        for n in (100, 1000, 10000)
        for stage in ("prepare", "encode", "train")
    ]
    prepare, encode = scale.extrapolated(rows)
    assert (prepare["stage"], prepare["images"], encode["stage"]) == ("prepare", 10**7, "encode")
    assert "seconds" not in prepare and prepare["peak_gb"].value == pytest.approx(11)
    assert (encode["seconds"].value, encode["disk_gb"].value) == pytest.approx((100_002, 100))
    assert scale.extrapolated(rows[:3]) == []


def cells_of_cards():
    """Return the rows of the counted cells, by (card, profile, notebook, cell)."""
    rows = json.loads(notebook_memory.RESULTS.read_text())["rows"]
    names = ("card", "profile", "notebook", "cell")
    found = {tuple(row[n] for n in names): {} for row in rows if "cell" in row}
    for row in (row for row in rows if "cell" in row):
        found[tuple(row[n] for n in names)] |= row | {row["metric"]: row["value"]}
    return found


def test_no_cell_of_a_notebook_takes_more_than_nine_tenths_of_its_card():
    found = cells_of_cards()
    large = [name for name, row in found.items() if row["share_of_card"] > notebook_memory.LIMIT]
    assert not large
    assert {name[:2] for name in found} == {("T4", "auto"), ("L4", "auto"), ("A100", "auto")}
    for (card, *_), row in found.items():
        parts = row["own_gb"] + row["beside_gb"] + gpu.WORKSPACE_GB[0]
        assert row["peak_gb"] == pytest.approx(parts)
        assert row["share_of_card"] == pytest.approx(row["peak_gb"] / notebook_memory.CARDS[card][1])


def test_the_page_of_profiles_names_the_notebooks_that_8_gb_are_too_few_for():
    page = (ROOT / "docs" / "profiles.md").read_text(encoding="utf8")
    rows = evaluation.load_results(notebook_memory.RESULTS)["rows"]
    peaks = [r for r in rows if r.get("card") == "T4" and r["metric"] == "peak_gb"]
    names = sorted({row["notebook"].split("_")[0] for row in peaks if row["value"] > 8})
    assert f"notebooks {', '.join(names[:-1])} and of the {names[-1]}" in " ".join(page.split())
    assert f"up to {max(row['value'] for row in peaks):.1f} GB" in " ".join(page.split())
    course = evaluation.load_results(ROOT / "data" / "results" / "bench_course.json")["rows"]
    peak = next(r["value"] for r in course if (r["notebook"], r["metric"]) == ("all", "peak_gb"))
    assert f"| {peak:.1f} GB, measured |" in page
    wanted = {"metric": "peak_gb", "target_batch_size": 3, "gradient_checkpointing": True}
    stored = evaluation.load_results(ROOT / "data" / "results" / "bench_gpu.json")["rows"]
    eight = next(row["value"] for row in stored if wanted.items() <= row.items())
    assert f"| GPU of 8 GB | `sd15` | 3 + 1, four times | on | bf16 or fp16 | {eight:.1f} GB |" in page


@pytest.mark.parametrize("path", find_notebooks(), ids=lambda path: path.stem)
def test_the_counted_cells_are_those_that_use_the_gpu_as_they_stand(path):
    stored = {c: row["calls"] for (card, profile, name, c), row in cells_of_cards().items()
              if (card, profile, name) == ("L4", "auto", path.stem)}  # fmt: skip
    assert stored == notebook_memory.gpu_cells(path), "python benchmarks/notebook_memory.py counts anew"


def test_cells_that_use_the_gpu_are_found_through_the_functions_of_a_notebook(tmp_path):
    sources = [
        "x = 1",
        "def draw(p):\n    return p.generate('a')",
        "draw(pipeline)",
        "y = [draw(p) for p in z]",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    nbformat.write(notebook, tmp_path / "one.ipynb")
    assert list(notebook_memory.gpu_cells(tmp_path / "one.ipynb")) == [2, 3]


def test_the_counter_sees_what_is_alive_and_autocast_as_cuda_has_it():
    plain = F.group_norm
    with counting.no_data() as live:
        kept = torch.empty(1000)
        torch.empty(5000)
        assert live.bytes == 4000 and live.peak >= 20000
        with torch.autocast("cpu", torch.bfloat16):
            product = kept.view(1, 10, 10, 10) @ kept.view(1, 10, 10, 10)
            assert product.dtype == torch.bfloat16
            assert F.group_norm(product, 2).dtype == torch.float32  # as on a GPU, unlike on a CPU
        assert product.sum().item() == 1.0 or product.sum().item() == 0.0
    assert F.group_norm is plain and not isinstance(torch.empty(2), FakeTensor)
