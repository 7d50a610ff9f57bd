"""A curve is one training at several scales; its gain is measured on seeds that did not choose its points."""

import dataclasses
import json

import pytest
import torch
from conftest import dasd
from typer.testing import CliRunner

from dasd_utils.apps.cli import main as cli
from dasd_utils.config import Calibration, Config, DasdError
from dasd_utils.metrics import Estimate
from dasd_utils.runtime import checkpoints
from dasd_utils.study import charts, ladder, tradeoff


@pytest.fixture(scope="module")
def config(make_config, quick_cnn):
    found = make_config(num_heldout=12, num_bootstrap=20, max_train_steps=2, checkpoint_every=1)
    return found.replace(domains=found.domains[:1])


def settings(config, point):
    run = ladder.run_config(config, point, 0).output_dir
    return ladder.settings(config, point, config.domains[0], run)


def test_points_have_names_of_their_own_that_the_command_knows():
    names = [point.name for point in tradeoff.points()]
    assert len(set(names)) == len(names)
    assert not set(names) & {method.name for method in (*ladder.METHODS, *ladder.PAPER_METHODS)}
    assert not any(point.sees_source for point in tradeoff.points())
    longer = f"{tradeoff.PLANE}, over training"
    asked = [curve.name for curve in tradeoff.find_curves([tradeoff.PLANE, longer])]
    assert asked == [tradeoff.PLANE] + [longer] * len(tradeoff.LENGTHS)
    with pytest.raises(DasdError, match=r"no curve 'DASD'.*DASD, "):
        tradeoff.find_curves(["DASD"])


def test_a_curve_shares_one_training_and_differs_in_its_scales(config):
    (curve,) = tradeoff.find_curves([tradeoff.PLANE])
    found = {point.name: settings(config, point) for point in curve.points()}
    assert len({checkpoints.run_key(point.config(config)) for point in curve.points()}) == 1
    steps = config.evaluation.num_inference_steps, config.evaluation.scheduler
    one = found["images alone, decoupled, domain 4, guidance 2"]
    assert one == Calibration(2.0, *steps, "decoupled", 4.0)
    assert len(set(found.values())) == 20


def test_the_same_question_after_other_lengths_of_training(config):
    points = tradeoff.points(tradeoff.find_curves(["captions, classifier-free, over training"]))
    assert [point.config(config).training.max_train_steps for point in points] == list(tradeoff.LENGTHS)
    assert [point.config(config).alignment.lambda_align for point in points] == [0.0] * 3  # the method's own
    (one,) = {settings(config, point) for point in points}
    assert (one.guidance, one.guidance_scale) == ("cfg", 2.5)
    same = config.replace(max_train_steps=200)
    longer = [point.config(same) for point in points]
    at = {each.training.max_train_steps: checkpoints.run_key(each) for each in longer}
    (curve,) = tradeoff.find_curves(["captions, classifier-free"])
    assert at[200] == checkpoints.run_key(curve.points()[0].config(same))  # no second training of that length


def test_a_learner_without_prompts_is_sampled_as_its_curve_says(config, monkeypatch):
    (curve,) = tradeoff.find_curves(["images alone, classifier-free"])
    point, asked = curve.points()[0], {}

    class Pipeline:
        def generate(self, prompts, **options):
            asked.update(options)
            return [], None, None

    task = ladder.Task(config, point, 0, config.domains[0], 12, None)
    ladder.draw_images(task, ladder.Scoring(config).references[config.domains[0].name], Pipeline())
    assert asked["guidance"] == "cfg" and asked["settings"].guidance_scale == 1.0


def estimate(*values):
    values = torch.tensor(values, dtype=torch.float64)
    return Estimate(values, values + torch.linspace(-0.01, 0.01, 5, dtype=torch.float64)[:, None], 12)


def made(fit, control):
    return {"cmmd": estimate(*fit), "attribute_accuracy": estimate(*control)}


def test_gains_are_of_points_that_the_other_seeds_choose():
    own = {
        "lucky": made((0.5, 0.5, 0.5), (0.9, 0.1, 0.1)),  # the best by seed 0 alone
        "steady": made((0.5, 0.5, 0.5), (0.4, 0.4, 0.4)),
        "far": made((2.0, 2.0, 2.0), (1.0, 1.0, 1.0)),  # shows more, but lies further away
    }
    against = {"w 1": made((1.0, 1.0, 1.0), (0.3, 0.3, 0.3)), "w 9": made((0.1, 0.1, 0.1), (0.0, 0.0, 0.0))}
    fit, control = tradeoff.gains(own, against)  # none is as near as w 9
    assert control["points"] == ["steady", "lucky", "lucky"]
    assert control["value"] == pytest.approx((0.1 - 0.2 - 0.2) / 3)
    assert (fit["metric"], fit["value"], fit["against"]) == ("cmmd", pytest.approx(-0.5), "w 1")
    assert control["separable"] is fit["separable"] is False  # the fit shows no variance at all


def test_no_gain_is_claimed_over_a_point_that_its_own_curve_beats():
    own = {"a": made((0.9, 0.9), (0.65, 0.65))}
    against = {"w 1": made((1.0, 1.0), (0.6, 0.6)), "w 3": made((0.3, 0.3), (0.75, 0.75))}
    assert tradeoff.gains(own, against) == []  # of w 1, w 3 is nearer and shows more; a is not as near as w 3


def test_the_choice_is_made_anew_in_each_draw():
    """Two points of one fit: where draws differ in which shows more, the interval holds the choice."""
    shown = torch.tensor([[0.6, 0.6], [0.2, 0.2]], dtype=torch.float64)
    draws = torch.stack([shown, shown.flip(0)], dim=1)  # (P, B, S): each is the better one in one draw
    level = torch.full((2,), 0.5, dtype=torch.float64)

    def point(values, draws):
        fit = Estimate(torch.ones(2), torch.ones(2, 2), 12)
        return {"cmmd": fit, "attribute_accuracy": Estimate(values, draws, 12)}

    own = {name: point(v, d) for name, v, d in zip("ab", shown, draws, strict=True)}
    _, control = tradeoff.gains(own, {"p": point(level, level.expand(2, 2))})
    assert (control["low"], control["value"]) == pytest.approx((0.1, 0.1))  # 0.6 in either draw


def test_without_attributes_control_is_the_clip_score_and_one_seed_chooses_for_nobody():
    points = {"a": {"cmmd": estimate(1.0, 1.0), "clip_score": estimate(0.3, 0.5)}}
    assert [row["metric"] for row in tradeoff.gains(points, points)] == ["cmmd", "clip_score"]
    one = {"a": made((0.5,), (0.5,))}
    assert tradeoff.gains(one, one) == []


@pytest.fixture(scope="module")
def curves():
    cfg, plane = tradeoff.find_curves(["captions, classifier-free", tradeoff.PLANE])
    return [
        dataclasses.replace(cfg, scales=cfg.scales[:2]),
        dataclasses.replace(plane, scales=plane.scales[6:8]),
        dataclasses.replace(cfg, name="longer", scales=cfg.scales[:1], changes={"max_train_steps": 3}),
    ]


def test_the_command_asks_every_point_and_writes_the_front(config, curves, tmp_path, monkeypatch):
    monkeypatch.setattr(tradeoff, "CURVES", curves)
    path = config.save(tmp_path / "config.json")
    dasd("front", "--config", path, "--seeds", "0,1")
    stored = json.loads((ladder.resolve(config.output_dir) / "front.json").read_text())
    scored = [row for row in stored["rows"] if "against" not in row]
    assert {row["method"] for row in scored} == {point.name for point in tradeoff.points(curves)}
    (one,) = (r for r in scored if r["method"].endswith("domain 1, guidance 4") and r["metric"] == "cmmd")
    assert (one["line"], one["domain_scale"], one["guidance_scale"]) == (tradeoff.PLANE, 1.0, 4.0)
    assert (one["n"], one["seeds"], one["low"] < one["value"] < one["high"]) == (24, [0, 1], True)
    assert {r["max_train_steps"] for r in scored if r["line"] == "longer"} == {3}
    gained = [r for r in stored["rows"] if "against" in r]
    assert {r["method"] for r in gained} <= {tradeoff.PLANE} and {r["n"] for r in stored["rows"]} == {24}


def test_a_curve_that_does_not_go_with_the_config_is_refused_before_any_work(tmp_path):
    path = Config.setup("tiny", output_dir=str(tmp_path / "run")).save(tmp_path / "config.json")
    result = CliRunner().invoke(cli.app, ["front", "--config", str(path), "--seeds", "0"])
    assert isinstance(result.exception, DasdError) and "one domain alone" in str(result.exception)
    assert not (tmp_path / "run").exists()


def row(method, metric, value, **more):
    start = {"method": method, "domain": "x", "metric": metric, "low": value - 0.1, "high": value + 0.1}
    return start | {"value": value} | more


@pytest.fixture
def rows():
    found = []
    for scale, fit, control in ((1.0, 2.0, 0.5), (5.0, 3.0, 0.7)):
        more = {"line": "cfg", "guidance_scale": scale}
        for metric, value in (("cmmd", fit), ("attribute_accuracy", control)):
            found.append(row(f"cfg {scale}", metric, value, **more))
    for d in (0.0, 2.0):
        for c in (0.0, 4.0):
            more = {"line": "plane", "domain_scale": d, "guidance_scale": c}
            for metric, value in (("cmmd", 10 * d + c), ("attribute_accuracy", c / 10)):
                found.append(row(f"plane {d} {c}", metric, value, **more))
    return [*found, row("plane", "cmmd", 1.0, against="cfg 1.0")]


def test_fit_is_across_and_control_up(rows):
    (axes,) = charts.fit_chart(rows, ("cfg", "plane")).axes
    drawn = {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}
    assert drawn["cfg"].get_xydata().tolist() == [[2.0, 0.5], [3.0, 0.7]]
    assert drawn["cfg"].get_linestyle() == "-" and drawn["plane"].get_linestyle() == "None"
    assert [text.get_text() for text in axes.texts] == ["1", "5"]


def test_the_plane_has_each_value_in_its_cell(rows):
    (axes,) = charts.plane_chart(rows, "plane", ["cmmd"]).axes
    cells = {text.get_position(): text.get_text() for text in axes.texts}
    assert cells == {(0, 0): "0.00", (1, 0): "4.00", (0, 1): "20.00", (1, 1): "24.00"}  # across: the prompt
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "2"]
    others = [one | {"domain": "y"} for one in rows]
    for chart, curves in ((charts.fit_chart, ["cfg"]), (charts.plane_chart, "plane")):
        with pytest.raises(ValueError, match="several domains: x, y"):
            chart([*rows, *others], curves)
