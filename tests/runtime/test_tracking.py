"""Trackers: what they get is read back from TensorBoard's files, and training never notices it."""

import time

import pytest
import torch
from accelerate import tracking as accelerate_tracking
from PIL import Image
from synthetic import NoiseSampler, make_parts

from dasd_utils import adapters, training
from dasd_utils import config as cfg
from dasd_utils.config import DasdError
from dasd_utils.runtime import checkpoints, tracking

needs_tensorboard = pytest.mark.skipif(
    "tensorboard" not in map(str, accelerate_tracking.get_available_trackers()), reason="it is not installed"
)


@pytest.fixture
def config(tiny_config):
    return tiny_config.replace(max_train_steps=4, checkpoint_every=2, validation_every=2, sample_every=2)


def train(config, **options):
    parts = make_parts(config)
    history = training.train(config, parts, NoiseSampler(config), progress=False, **options)
    return adapters.adapter_state(parts), history


def events(config):
    """Return the event files of a run, read as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(training.resolve(config.output_dir) / tracking.FOLDER)).Reload()


def curve(config, name="train/loss"):
    return [(event.step, event.value) for event in events(config).Scalars(name)]


def losses(history):
    return [(row["step"], pytest.approx(row["loss"])) for row in history]


def hparams(config):
    return [*training.resolve(config.output_dir).glob("tracking/*/hparams.yml")]


def pictures(step):
    return {"samples/satellite": [Image.new("RGB", (8, 8), (step, 0, 0)), Image.new("RGB", (8, 8))]}


@needs_tensorboard
def test_tensorboard_reads_losses_rates_pictures_and_the_config_of_the_same_run(config, tmp_path):
    weights, plain = train(config.replace(tracking="none", output_dir=tmp_path / "none"))
    assert not (tmp_path / "none" / tracking.FOLDER).exists()
    tracked_weights, history = train(config, on_sample=pictures)
    assert history == plain and all(torch.equal(tracked_weights[name], weights[name]) for name in weights)
    found = events(config)
    assert curve(config) == losses(history)
    names = set(found.Tags()["scalars"])
    assert names >= {"train/learning_rate", "train/grad_norm", "train/samples_per_second", "train/mmd"}
    assert {f"validation/{domain.name}" for domain in config.domains} <= names
    assert [event.step for event in found.Images("samples/satellite")] == [2, 4]
    (file,) = hparams(config)
    assert "training.max_train_steps: 4" in file.read_text()


def stop_at(number):
    def look(row):
        if row["step"] == number:
            raise RuntimeError("the power failed")

    return look


@needs_tensorboard
def test_a_resumed_run_goes_on_with_each_step_once(config):
    with pytest.raises(RuntimeError):
        train(config, on_step=stop_at(3))
    assert [step for step, _ in curve(config)] == [1, 2, 3]  # closed although it failed
    time.sleep(1)  # TensorBoard orders its files by the second in their names
    _, history = train(config, resume=True)
    assert curve(config) == losses(history) and len(hparams(config)) == 1
    train(config.replace(max_train_steps=2), force=True)  # anew: curves are replaced, scores added
    rows = [{"domain": "xray", "metric": "cmmd", "method": "DASD", "value": 0.5}]
    with tracking.open_trackers(config) as trackers:
        trackers.log(tracking.score_values(rows), 2)
        trackers.show(pictures(1), 2)
    assert curve(config, "evaluation/xray/cmmd/DASD") == [(2, 0.5)]
    assert [step for step, _ in curve(config)] == [1, 2]


class Recorder(accelerate_tracking.GeneralTracker):
    """A tracker that remembers what it gets, and fails where a test wants it."""

    name, requires_logging_directory, tracker = "recorder", False, None
    fails_at, calls = None, []

    def __init__(self, project, **options):
        super().__init__()
        Recorder.calls = [("init", project)]

    def start(self):
        if Recorder.fails_at == "start":
            raise ConnectionError("no network.\nmore")

    def log(self, values, step=None, **_):
        if Recorder.fails_at == step:
            raise OSError("disk full")
        Recorder.calls.append((step, values))

    def finish(self):
        Recorder.calls.append(("finish",))


@pytest.fixture
def recorded(config, monkeypatch):
    """Return the config of a run whose tracker is the one above, under a name that configs may hold."""
    monkeypatch.setitem(accelerate_tracking.LOGGER_TYPE_TO_CLASS, "trackio", Recorder)
    monkeypatch.setattr(accelerate_tracking, "get_available_trackers", lambda: ["trackio"])
    monkeypatch.setattr(Recorder, "fails_at", None)
    return config.replace(tracking="trackio")


def test_a_tracker_is_closed_with_a_failed_run_and_left_out_if_it_fails(recorded, monkeypatch, caplog):
    monkeypatch.setattr(Recorder, "fails_at", "start")
    with pytest.raises(DasdError, match=r"trackio cannot start: no network"):
        train(recorded)
    assert not (training.resolve(recorded.output_dir) / "history.jsonl").exists()
    monkeypatch.setattr(Recorder, "fails_at", None)
    with pytest.raises(RuntimeError):
        train(recorded, on_step=stop_at(2))
    assert [call[0] for call in Recorder.calls] == ["init", 1, 2, "finish"]
    monkeypatch.setattr(Recorder, "fails_at", 2)
    _, history = train(recorded, force=True)
    assert len(history) == 4 and "trackio" not in caplog.text
    assert caplog.text.count("recorder gets nothing more of this run: disk full") == 1


def test_names_are_those_of_accelerate_and_one_that_is_not_installed_says_what_to_do(config, monkeypatch):
    monkeypatch.setattr(accelerate_tracking, "get_available_trackers", list)
    assert tracking.tracker_names(config) == []  # auto names nothing
    with pytest.raises(DasdError, match="pip install wandb"):
        training.check_training(config.replace(tracking="wandb"))
    assert set(cfg.TRACKERS) == set(accelerate_tracking.LOGGER_TYPE_TO_CLASS)
    with pytest.raises(DasdError, match="must be auto, none, or names"):
        config.replace(tracking="tensorboard,none")


def test_of_several_processes_the_first_has_trackers(config, monkeypatch):
    monkeypatch.setattr(checkpoints.processes, "is_main", lambda: False)
    with tracking.open_trackers(config, 0) as trackers:
        trackers.log({"train/loss": 1.0}, 1)
    assert not (training.resolve(config.output_dir) / tracking.FOLDER).exists()


def test_only_finite_numbers_are_sent():
    trackers = tracking.Trackers([Recorder("dasd")])
    trackers.log(tracking.row_values({"step": 3, "loss": float("nan"), "skipped": True, "mmd": None}), 3)
    trackers.log(tracking.row_values({"step": 4, "loss": 0.5, "validation_xray": 1}), 4)
    assert Recorder.calls == [("init", "dasd"), (4, {"train/loss": 0.5, "validation/xray": 1})]


def test_the_config_is_flat(config):
    values = tracking.flat_config(config.replace(domains=config.domains[:1]))
    assert values["domains.0.name"] == "satellite" and values["training.tracking"] == "auto"
    assert all(isinstance(value, bool | int | float | str) for value in values.values())
