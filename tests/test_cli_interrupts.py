"""Signals: a command ends with one line and status 130, whatever it is in, and what is finished stays.

The children signal themselves, or tell where they are before they get a signal, so that no moment is
left to chance. Time-outs only guard against hanging.
"""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from engine import Store
from engine.cli import interrupts

BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
LINE = f"engine: {interrupts.LINE}\n"
HANG = 120  # seconds

# What a child does first. ``numpy`` is the first of what takes time to load.
AT_IMPORT = """
import os, signal, sys

class Signals:
    def find_spec(self, name, path=None, target=None):
        if name == "numpy":
            os.kill(os.getpid(), int(sys.argv.pop(1)))

sys.meta_path.insert(0, Signals())
from engine.__main__ import main
"""
TELLS = """
import sys, time
from engine.cli import interrupts
from engine.__main__ import main
from engine.encoders.onnx import OnnxEncoder
from engine.storage.writer import Writer

def telling(work):
    def told(*given):
        print("here", flush=True)
        return work(*given)
    return told

OnnxEncoder.encode = telling(OnnxEncoder.encode)
"""
RUN = "\nmain()\n"


def command(code: str, *arguments: object) -> list[str]:
    return [sys.executable, "-c", code + RUN, *map(str, arguments)]


def started(code: str, *arguments: object) -> "subprocess.Popen[str]":
    pipe = subprocess.PIPE
    return subprocess.Popen(command(code, *arguments), stdout=pipe, stderr=pipe, text=True)


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder of which one run takes hours, unless all pictures are black, as in a trial."""
    rounds = numpy_helper.from_array(np.array(1 << 40, np.int64), "rounds")
    black = numpy_helper.from_array(np.array(0, np.float32), "black")
    none = numpy_helper.from_array(np.zeros(1, np.float32), "none")
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["before"], ["after"]),
            helper.make_node("Add", ["x", "none"], ["y"]),
        ],
        "round",
        [
            value("round", TensorProto.INT64, []),
            value("before", TensorProto.BOOL, []),
            value("x", TensorProto.FLOAT, ["n", 4]),
        ],
        [value("after", TensorProto.BOOL, []), value("y", TensorProto.FLOAT, ["n", 4])],
        [none],
    )
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["pixels"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMax", ["float"], ["lightest"], keepdims=0),
            helper.make_node("Greater", ["lightest", "black"], ["go_on"]),
            helper.make_node("ReduceMean", ["float", "inside"], ["mean"], keepdims=0),
            helper.make_node("MatMul", ["mean", "ones"], ["sums"]),
            helper.make_node("Add", ["sums", "one"], ["four"]),
            helper.make_node("Loop", ["rounds", "go_on", "four"], ["embedding"], body=body),
        ],
        "endless",
        [value("pixels", TensorProto.UINT8, ["n", 8, 8, 3])],
        [value("embedding", TensorProto.FLOAT, ["n", 4])],
        [
            rounds,
            black,
            numpy_helper.from_array(np.array([1, 2], np.int64), "inside"),
            numpy_helper.from_array(np.ones((3, 4), np.float32), "ones"),
            numpy_helper.from_array(np.ones(4, np.float32), "one"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    folder = tmp_path_factory.mktemp("encoders") / "endless"
    folder.mkdir()
    data = model.SerializeToString()
    (folder / "model.onnx").write_bytes(data)
    files = {"fp32": {"path": "model.onnx", "sha256": hashlib.sha256(data).hexdigest()}}
    body_ = {"name": "endless", "dim": 4, "image_size": 8, "files": files}
    (folder / "encoder.json").write_text(json.dumps(body_))
    return folder


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.mark.slow
@BOTH
def test_a_signal_while_it_starts_is_one_line(number: signal.Signals) -> None:
    done = subprocess.run(
        command(AT_IMPORT, int(number), "info"), capture_output=True, text=True, timeout=HANG
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", LINE)


@pytest.mark.slow
def test_a_signal_that_the_parent_ignores_is_ignored(tmp_path: Path) -> None:
    with Store.open(tmp_path / "store", create=True, encoder="none"):
        pass
    ignoring = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    done = subprocess.run(
        command(ignoring + AT_IMPORT, int(signal.SIGINT), "info", "--store", tmp_path / "store"),
        capture_output=True,
        text=True,
        timeout=HANG,
    )
    assert done.returncode == 0 and "images" in done.stdout and done.stderr == ""


def test_a_standard_error_that_nobody_reads_keeps_no_process_alive() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(writing, b"\0" * 4096)
    os.set_blocking(writing, True)
    done = subprocess.run(
        command(AT_IMPORT, int(signal.SIGINT), "info"), stderr=writing, timeout=HANG
    )
    os.close(reading)
    os.close(writing)
    assert done.returncode == 130


@pytest.mark.slow
@BOTH
def test_a_model_that_never_ends_is_ended_in_an_ingest(
    tmp_path: Path, endless: Path, photo: Path, number: signal.Signals
) -> None:
    arguments = ("ingest", photo, "--json", "--store", tmp_path / "store", "--encoder", endless)
    with started(TELLS, *arguments) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "here\n"
        run.send_signal(number)
        out, err = run.communicate(timeout=HANG)
    assert run.returncode == 130, err
    assert (
        err
        == "engine: stopping after what is finished is committed (Ctrl-C again to stop at once)\n"
    )
    report = json.loads(out)
    assert (report["added"], report["interrupted"]) == (0, True)
    with Store.open(tmp_path / "store") as store:
        assert store.check().ok and len(store) == 0


@pytest.mark.slow
@BOTH
def test_a_model_that_never_ends_is_ended_in_a_lookup(
    tmp_path: Path, endless: Path, photo: Path, number: signal.Signals
) -> None:
    with Store.open(tmp_path / "store", create=True, encoder="none"):
        pass
    code = (
        TELLS
        + f"""
import numpy as np
from engine import api
from engine.encoders import registry

model = OnnxEncoder(registry.find({str(endless)!r}))
api.Store.lookup_many = lambda *a, **k: model.encode([np.ones((8, 8, 3), np.uint8)])
"""
    )
    with started(code, "lookup", photo, "--store", tmp_path / "store") as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "here\n"
        run.send_signal(number)
        out, err = run.communicate(timeout=HANG)
    assert (run.returncode, out, err) == (130, "", LINE)


def test_a_signal_within_a_write_raises_nothing_there() -> None:
    code = """
import os, signal
from engine.cli import interrupts, streams

reading, writing = os.pipe()
os.set_blocking(writing, False)
while True:
    try:
        os.write(writing, b" " * 4096)
    except BlockingIOError:
        break

def signalled(fd, seconds):
    os.kill(os.getpid(), signal.SIGINT)
    os.read(reading, 1 << 20)

interrupts.PATIENCE = 1e6
streams._writable = signalled
text = streams._text(streams._Output(writing), "utf-8")
with interrupts.raising():
    text.write("once")
    text.flush()
text.flush()
print(os.read(reading, 1 << 20))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG, check=True
    )
    assert done.stdout == "b'once'\n"


@pytest.mark.slow
def test_a_second_signal_ends_at_once(tmp_path: Path, photo: Path) -> None:
    # A commit that takes for ever, and a patience that does.
    code = TELLS + "Writer.commit = telling(lambda *given: time.sleep(1e6))\n"
    code += "interrupts.PATIENCE = 1e6\ninterrupts._ONE_SECONDS = 0.0\n"
    arguments = ("ingest", photo, "--store", tmp_path / "store", "--encoder", "none")
    with started(code, *arguments) as run:
        assert run.stdout is not None and run.stderr is not None
        assert run.stdout.readline() == "here\n"
        run.send_signal(signal.SIGINT)
        assert "stopping" in run.stderr.readline()
        run.send_signal(signal.SIGINT)
        out, err = run.communicate(timeout=HANG)
    assert (run.returncode, out, err) == (130, "", LINE)
    with Store.open(tmp_path / "store") as store:
        assert store.check().ok and len(store) == 0


@pytest.mark.slow
def test_what_does_not_stop_is_ended(tmp_path: Path, photo: Path) -> None:
    code = TELLS + "Writer.commit = telling(lambda *given: time.sleep(1e6))\n"
    arguments = ("ingest", photo, "--store", tmp_path / "store", "--encoder", "none")
    with started(code, *arguments) as run:
        assert run.stdout is not None
        assert run.stdout.readline() == "here\n"
        run.send_signal(signal.SIGTERM)
        out, err = run.communicate(timeout=HANG)
    assert (run.returncode, out) == (130, "")
    assert err.splitlines(keepends=True)[1:] == [LINE]


@pytest.mark.slow
def test_a_signal_that_a_library_made_an_error_of_is_still_one(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from engine import api
from engine.__main__ import main

def opened(*given, **named):
    try:
        os.kill(os.getpid(), signal.SIGINT)
        while True:
            pass
    except KeyboardInterrupt:
        raise ImportError("cannot import it")

api.Store.open = opened
"""
    done = subprocess.run(command(code, "info"), capture_output=True, text=True, timeout=HANG)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", LINE)


@pytest.mark.slow
def test_handlers_of_whoever_calls_the_command_come_back(tmp_path: Path) -> None:
    from engine.cli.app import main

    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert main(["info", "--store", str(tmp_path)]) == 2
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert signal.set_wakeup_fd(-1) == -1


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_a_child_that_measures_ends_with_its_parent() -> None:
    # A child that tells its number and then does nothing, for as long as its parent lives.
    child = """
import os, sys, time
from bench.harness.process import answer, send
sys.argv[1:] = ["{}"]
answer(lambda: send(done=os.getpid()) or time.sleep(1e6))
"""
    code = f"""
from bench.harness import process
process.python = lambda *given: [process.sys.executable, "-c", {child!r}]
process.run_child("", {{}}, lambda pid: print(pid, flush=True))
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    end = time.monotonic() + HANG
    # One that nobody waits for stays as a zombie.
    while Path(f"/proc/{pid}").exists() and "Z (" not in Path(f"/proc/{pid}/status").read_text():
        assert time.monotonic() < end, "it outlives its parent"
        time.sleep(0.02)
