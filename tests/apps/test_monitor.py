"""A watched run is the run that nobody watches, and its button leaves one that goes on."""

import io
import threading

import pytest
import torch
from PIL import Image
from synthetic import NoiseSampler, make_parts

from dasd_utils import adapters, figures, training
from dasd_utils.apps import monitor
from dasd_utils.config import DasdError
from dasd_utils.runtime import files

IMAGE = Image.new("RGB", (8, 8))


@pytest.fixture
def config(tiny_config):
    """Dropout, queue and samples are on: all that a thread could get wrong."""
    changes = {"validation_every": 0, "dropout": 0.2, "queue_size": 5, "sample_every": 2}
    return tiny_config.replace(max_train_steps=4, checkpoint_every=0, **changes)


@pytest.fixture
def displayed(monkeypatch):
    """Have a person in front of the kernel; return what is displayed to them."""
    found = []
    monkeypatch.setenv("JPY_SESSION_NAME", "page.ipynb")
    monkeypatch.setattr(monitor, "display", found.append)
    return found


def start(config, **options):
    parts = make_parts(config)
    options.setdefault("force", "resume" not in options)
    return parts, monitor.train(config, parts, NoiseSampler(config), parts["token_ids"], **options)


def same_weights(one, two):
    one, two = adapters.adapter_state(one), adapters.adapter_state(two)
    return all(torch.equal(one[name], two[name]) for name in one)


def test_watching_changes_no_bit_and_displays_where_somebody_looks(config, displayed, monkeypatch, capsys):
    threads, samples = [], []
    options = {"on_step": lambda row: threads.append(threading.current_thread().name)}
    with monkeypatch.context() as patch:
        patch.setattr(files, "is_live", lambda: False)
        plain, running = start(config, on_sample=samples.append, **options)
    assert running.done()
    expected = running.result()
    assert samples == [2, 4] and threads == ["MainThread"] * 4
    assert displayed == [] and capsys.readouterr() == ("", "")
    watched, running = start(config, **options)
    torch.rand(7)  # the page's own thread goes on meanwhile
    assert running.result() == expected and threads[4:] == ["training"] * 4
    assert same_weights(plain, watched) and len(displayed) == 1


def test_curves_pictures_and_numbers_follow_the_run(config, displayed, monkeypatch):
    monkeypatch.setattr(monitor, "EVERY", 0)
    monkeypatch.setattr(monitor, "SHARE", 1e9)
    drawn, curves = [], figures.loss_curves
    monkeypatch.setattr(figures, "loss_curves", lambda rows: drawn.append(len(rows)) or curves(rows))
    _, running = start(config, on_sample=lambda step: [IMAGE] * 2)
    running.result()
    assert drawn == [2, 3, 4, 4]
    head, said, chart, pictures = displayed[0].children
    _, progress, numbers = head.children
    assert "Trained 4 steps." in said.value and progress.value == 4
    assert "step 4 of 4, loss" in numbers.value and "00:00 left" in numbers.value
    assert all(Image.open(io.BytesIO(each.value)).width > 100 for each in (chart, pictures))


@pytest.mark.parametrize("made", [figures.image_grid([IMAGE]), [IMAGE.convert("L")], {"x": [IMAGE]}, None])
def test_pictures_may_be_images_a_figure_or_none(made):
    watching = monitor.Monitor(1)
    watching.on_sample(1, made)
    if made is None:
        assert not watching.pictures.value
    else:
        assert Image.open(io.BytesIO(watching.pictures.value)).width


def test_curves_are_drawn_so_seldom_that_the_run_loses_little(monkeypatch):
    watching, now, drawn = monitor.Monitor(1000), [0.0], []
    monkeypatch.setattr(monitor.time, "monotonic", lambda: now[0])

    def draw():
        drawn.append(now[0])
        now[0] += 0.5  # a drawing of half a second

    watching.draw_curves = draw
    for step in range(1, 1001):
        now[0] += 0.1
        watching.on_step({"step": step, "loss": 1.0})
    assert 0.5 * len(drawn) < 1.5 * monitor.SHARE * now[0] and len(drawn) > 2


def test_the_button_leaves_a_run_that_goes_on(config, displayed):
    longer = config.replace(max_train_steps=6)
    uninterrupted, running = start(longer.replace(output_dir=f"{config.output_dir}-uninterrupted"))
    expected = running.result()

    def press(row):
        if row["step"] == 2:
            displayed[-1].children[0].children[0].click()

    _, running = start(longer, on_step=press)
    with pytest.raises(KeyboardInterrupt, match=r"Stopped after step 2 of 6.*resume=True"):
        running.result()
    assert "Stopped after step 2" in displayed[-1].children[1].value
    again, running = start(longer, resume=True)
    assert running.result() == expected and same_weights(uninterrupted, again)


def test_an_interrupt_of_the_waiting_cell_stops_like_the_button(config, displayed, monkeypatch):
    reached, interrupted, wait = threading.Event(), threading.Event(), monitor.futures.wait

    def look(row):
        if row["step"] == 2:
            reached.set()
            assert interrupted.wait(30)

    def interrupt(*arguments, **options):
        if reached.wait(30) and not interrupted.is_set():
            interrupted.set()
            raise KeyboardInterrupt
        return wait(*arguments, **options)

    _, running = start(config.replace(max_train_steps=60), on_step=look)
    monkeypatch.setattr(monitor.futures, "wait", interrupt)
    with pytest.raises(KeyboardInterrupt, match="Stopped after step"):
        running.result()
    assert running.done() and len(training.load_history(config.output_dir)) < 60


def test_an_error_is_shown_and_raised_and_one_of_a_chart_is_neither(config, displayed, monkeypatch, caplog):
    def fail(row):
        raise DasdError("no <more>")

    _, running = start(config, on_step=fail)
    with pytest.raises(DasdError, match="no <more>"):
        running.result()
    assert "no &lt;more&gt;" in displayed[0].children[1].value
    monkeypatch.setattr(monitor.Monitor, "on_step", lambda *_words: 1 / 0)
    _, running = start(config)
    assert len(running.result()) == 4 and "cannot show" in caplog.text


def test_a_click_counts_on_arrival_and_once():
    watching = monitor.Monitor(3)
    assert watching._arrived({"method": "update"}, "s") == "s" and not watching.stop.is_set()
    assert watching._arrived({"method": "custom"}, None) is None and watching.stop.is_set()
    watching.end("Stopped after step 2.")
    watching.button.click()  # handled once more when the cell has ended
    assert "Stopped after step 2." in watching.said.value


def test_a_run_that_is_at_work_when_the_kernel_ends_writes_its_checkpoint(config, displayed, monkeypatch):
    at_exit, reached = [], threading.Event()
    monkeypatch.setattr(monitor.atexit, "register", lambda *call: at_exit.append(call))
    _, running = start(config.replace(max_train_steps=60), on_step=lambda row: reached.set())
    assert reached.wait(30)
    for call, *arguments in reversed(at_exit):
        call(*arguments)
    assert running.done() and len(training.load_history(config.output_dir)) < 60
