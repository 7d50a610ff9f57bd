"""What surrounds a command: streams that cannot show all, full devices, locales, interrupts, `python -m`."""

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from safetensors import SafetensorError

from dasd_utils import __main__ as entry
from dasd_utils.apps.cli import main as cli
from dasd_utils.apps.cli import options
from dasd_utils.apps.cli.study import Study, one_command
from dasd_utils.config import ROOT, Config, DasdError

DASD = [sys.executable, "-m", "dasd_utils"]


def ended(monkeypatch, *words):
    """Return the exit status of a command line in this process."""
    monkeypatch.setattr(sys, "argv", ["dasd", *words])
    with pytest.raises(SystemExit) as stop:
        entry.main()
    return stop.value.code or 0


def raising(error, monkeypatch):
    """Let every command that reads a config end in an error."""

    def read(*_, **__):
        raise error

    monkeypatch.setattr(options.Settings, "read", read)


@pytest.mark.parametrize("start", [DASD, [sys.executable, ROOT / "run.py"]], ids=["-m", "run.py"])
def test_the_package_and_the_published_run_py_are_the_command(start):
    done = subprocess.run([*start, "train", "--config", "nowhere.json"], capture_output=True, text=True)
    assert done.returncode == 1 and "cannot be read from" in done.stderr and "nowhere.json" in done.stderr


def test_a_stream_of_another_encoding_shows_what_it_can(tmp_path, monkeypatch):
    path = Config.setup("tiny", cache_dir=tmp_path / "Ω").save(tmp_path / "config.json")
    streams = {name: io.TextIOWrapper(io.BytesIO(), encoding="cp1252") for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        monkeypatch.setattr(sys, name, stream)
    assert ended(monkeypatch, "clean", "--config", str(path)) == 0
    assert ended(monkeypatch, "clean", "--config", str(tmp_path / "missing Ω.json")) == 1
    said = {name: stream.buffer.getvalue() for name, stream in streams.items() if not stream.flush()}
    assert said["stdout"].startswith(b"Removed 0 shards") and rb"\u03a9" in said["stdout"]
    assert rb"missing \u03a9" in said["stderr"]


@pytest.mark.parametrize(("given", "used"), [(None, "3000"), ("7", "7")])
def test_how_long_threads_spin_is_for_the_user_to_set(monkeypatch, given, used):
    monkeypatch.setenv("GOMP_SPINCOUNT", given or "")
    if given is None:
        monkeypatch.delenv("GOMP_SPINCOUNT")
    assert ended(monkeypatch, "--help") == 0 and os.environ["GOMP_SPINCOUNT"] == used


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_a_full_output_device_is_named():
    with open("/dev/full", "w") as full:
        done = subprocess.run([*DASD, "doctor", "--json"], stdout=full, stderr=subprocess.PIPE, text=True)
        assert (done.returncode, done.stderr) == (1, "dasd: The output: No space left on device\n")
        assert subprocess.run([*DASD, "verify"], stderr=full).returncode == 1


def test_where_errors_cannot_be_written_the_exit_status_stays(monkeypatch):
    class Full(io.StringIO):
        def write(self, _text):
            raise OSError(28, "No space left on device")

    raising(ZeroDivisionError(), monkeypatch)
    monkeypatch.setattr(sys, "stderr", Full())
    assert ended(monkeypatch, "clean") == 2


@pytest.mark.parametrize(("error", "said"), [
    (OSError(28, "No space left on device", "a.png"), "a.png: No space left on device"),
    (FileExistsError(17, "File exists", "list.json"), "list.json: File exists"),
    (MemoryError(), "too little free memory"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "too little free memory"),
    (torch.OutOfMemoryError("CUDA out of memory. Tried"), "too little free memory"),
    (RuntimeError("CUDA error: out of memory"), "too little free memory"),
    (SafetensorError("I/O error: No space left on device (os error 28)"), "disk is full"),
    (SafetensorError("I/O error: File too large (os error 27)"), "disk is full"),
    (SafetensorError("I/O error: Disk quota exceeded (os error 122)"), "disk is full"),
    (ModuleNotFoundError("No module named 'voila'", name="voila"), "pip install voila"),
])  # fmt: skip
def test_what_the_machine_refuses_is_no_fault_of_the_program(error, said, monkeypatch, capsys):
    raising(error, monkeypatch)
    assert ended(monkeypatch, "clean") == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and said in lines[0]


def test_words_that_the_locale_could_not_read_are_utf8(monkeypatch, capsys):
    seen = []
    monkeypatch.setattr(cli, "app", lambda: seen.extend(sys.argv))
    wrong = "a ü harbor".encode().decode("ascii", "surrogateescape")
    monkeypatch.setattr(os, "fsencode", lambda text: text.encode("ascii", "surrogateescape"))
    file = b"\xfc.png".decode("ascii", "surrogateescape")  # a file may be named so
    monkeypatch.setattr(sys, "argv", ["dasd", "generate", "--prompt", wrong, file])
    entry.main()
    assert seen[3:] == ["a ü harbor", file]


def test_texts_that_are_no_unicode_are_refused_and_paths_said(monkeypatch, capsys):
    assert ended(monkeypatch, "ladder", "--only", "\udcff") == 1 and "no method" in capsys.readouterr().err
    raising(UnicodeEncodeError("utf-8", "nd\udcff.json", 2, 3, "surrogates not allowed"), monkeypatch)
    assert ended(monkeypatch, "clean") == 1 and "nd\\udcff.json" in capsys.readouterr().err


def test_an_interrupt_while_it_loads_ends_without_a_traceback(monkeypatch):
    class Interrupted:
        def find_spec(self, name, *_):
            if name == "dasd_utils.apps.cli.main":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "dasd_utils.apps.cli.main")
    monkeypatch.delattr("dasd_utils.apps.cli.main")
    monkeypatch.setattr(sys, "meta_path", [Interrupted(), *sys.meta_path])
    assert ended(monkeypatch, "--help") == 130


@pytest.mark.parametrize("words", [["trian"], ["train", "--sead", "3"], ["verify"], ["train", "--seed", "x"]])
def test_words_that_are_not_understood_are_the_users_error(words, monkeypatch, capsys):
    assert ended(monkeypatch, *words) == 1
    assert "Usage" in capsys.readouterr().err


def test_exit_status_of_help_a_stop_and_a_fault(monkeypatch, capsys):
    assert ended(monkeypatch, "train", "--help") == 0

    raising(KeyboardInterrupt(), monkeypatch)
    assert ended(monkeypatch, "train") == 130
    for fault in (ZeroDivisionError("no"), ModuleNotFoundError("no", name="dasd_utils.gone")):
        raising(fault, monkeypatch)
        assert ended(monkeypatch, "train") == 2
    raising(DasdError("yours"), monkeypatch)
    assert ended(monkeypatch, "train") == 1 and "dasd: yours" in capsys.readouterr().err


@pytest.mark.parametrize("seeds", ["0,00", "0, 0", "0,,1", "", "x", "-1"])
def test_seeds_of_a_study_are_different_numbers(seeds):
    with pytest.raises(DasdError, match="different numbers"):
        Study(seeds=seeds).numbers()
    assert Study(seeds="0, 1").numbers() == [0, 1]


def test_the_parts_of_a_study_work_in_its_folder_wherever_they_start(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = Study("tiny").settings("ladder").replace(output_dir="data/runs/of_a_test")
    try:
        name, *words = one_command("ladder", config)
        assert name == "ladder" and "--output_dir" not in words
        assert Study(config=Path(words[words.index("--config") + 1])).settings("ladder") == config
    finally:
        shutil.rmtree(ROOT / "data/runs/of_a_test")


def test_a_terminated_command_ends_those_it_started(tmp_path):
    code = (
        "import subprocess, sys; from dasd_utils.apps.cli import main, options\n"
        "class Slow:\n    def __call__(self):\n"
        "        child = subprocess.Popen(['sleep', '60']); print(child.pid, flush=True); child.wait()\n"
        "main.app = Slow(); main.main()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        child = psutil.Process(int(parent.stdout.readline()))
        parent.terminate()
        assert parent.wait(20) != 0
    _, left = psutil.wait_procs([child], 20)
    assert not left
