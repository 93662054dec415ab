"""`hwsearch separate`: in memory that does not grow with the recording, and never with a result that is none."""

import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile as sf
from numpy.typing import NDArray

from hwsearch.data.audio import wav_header
from hwsearch.data.wav_stream import WavStream
from hwsearch.errors import UserError
from hwsearch.experiment import Split
from hwsearch.export.description import ExportDescription
from hwsearch.export.onnx_export import export_onnx, export_sound
from hwsearch.export.runtime import OnnxSeparator
from hwsearch.process.cores import MOST_THREADS
from tests.export.small import exported, exported_network
from tests.separator.small import CAUSAL, RELU, noise_mixture, small_separator, uniform
from tests.tiny import Answer, Tiny, hwsearch, refusal

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return exported(tmp_path_factory.mktemp("model"), RELU, uniform(RELU, 8, 8))[0]


def recorded(path: Path, samples: int = 3000, seed: int = 0) -> NDArray[np.float32]:
    sound = noise_mixture(samples, seed).numpy()
    sf.write(path, sound.T, 8000, subtype="FLOAT")
    return sound


def separate(model: Path, recording: object, output: object, *more: object) -> Answer:
    return hwsearch("separate", model, "--input", recording, "--doa", 60, "--output", output, *more)


def test_a_file_gives_what_the_array_gives_to_the_bit(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also read in other pieces than it is separated in."""
    monkeypatch.setattr("hwsearch.data.audio._BLOCK_VALUES", 4 * 777)
    sound = recorded(tmp_path / "x.wav", 80_001)
    answer = separate(model, tmp_path / "x.wav", tmp_path / "target.wav")
    assert (answer.code, answer.stdout, answer.stderr) == (0, "", f"target: {tmp_path / 'target.wav'}\n")
    wanted = OnnxSeparator(model, 1).separate(sound, 60.0)
    np.testing.assert_array_equal(sf.read(tmp_path / "target.wav", dtype="float32")[0], wanted)


def test_no_more_than_a_chunk_and_its_context_is_held(model: Path) -> None:
    """A chunk is separated before the next is read, and what is behind it is let go, whatever the recording's length."""
    read, written, held = 0, 0, 0
    blocks: list[weakref.ref[NDArray[np.float32]]] = []

    def sound() -> Iterator[NDArray[np.float32]]:
        nonlocal read
        read = 0
        for number in range(300):
            block = noise_mixture(1000, number).numpy().copy()
            blocks.append(weakref.ref(block))
            read += 1000
            yield block

    ahead = 0
    for piece in OnnxSeparator(model, 1).separate_blocks(sound, 300_000, 60.0, chunk_frames=64):
        ahead = max(ahead, read - written)
        held = max(held, sum(block() is not None for block in blocks))
        written += len(piece)
    assert written == read == 300_000
    # 64 hops of 64 samples, and 5 on either side: the network reaches 3, the transform and its inverse 1 each.
    assert ahead <= (64 + 5) * 64 + 1000
    assert held * 1000 <= (64 + 2 * 5) * 64 + 2 * 1000


@pytest.mark.slow
def test_memory_does_not_grow_with_the_recording(model: Path, tmp_path: Path) -> None:
    program = (
        "import resource, sys; from hwsearch.cli import main\n"
        "try:\n    main()\nfinally:\n    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    peaks = []
    for minutes in (2, 40):
        path = tmp_path / f"{minutes}.wav"
        with sf.SoundFile(path, "w", 8000, 4, "FLOAT") as stream:
            for minute in range(minutes):
                stream.write(noise_mixture(60 * 8000, minute).numpy().T)
        command = ("separate", model, "--input", path, "--doa", "60", "--output", tmp_path / "target.wav")
        ended = subprocess.run([sys.executable, "-c", program, *command], cwd=ROOT, check=True, capture_output=True, text=True)
        assert "seconds separated: " in ended.stderr
        peaks.append(int(ended.stdout) / 1024)
    # The longer one is 300 MB, and its result 75.
    assert peaks[1] - peaks[0] < 40


def test_a_long_recording_shows_how_far_it_is(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hwsearch.workflow.separate.LONG_SECONDS", 9)
    recorded(tmp_path / "x.wav", 80_000)
    answer = separate(model, tmp_path / "x.wav", tmp_path / "target.wav")
    shown = [f"seconds separated: {done}/10" for done in (8, 10)]
    assert answer.stderr.splitlines() == [*shown, f"target: {tmp_path / 'target.wav'}"]


@pytest.mark.parametrize("value", [1e19, -3e38, np.inf, np.nan])
def test_samples_that_would_give_nan_are_refused(model: Path, tmp_path: Path, value: float) -> None:
    sound = recorded(tmp_path / "x.wav")
    sound[2, 41] = value
    sf.write(tmp_path / "x.wav", sound.T, 8000, subtype="FLOAT")
    message = refusal(separate(model, tmp_path / "x.wav", tmp_path / "target.wav"))
    assert message.startswith(f"{tmp_path / 'x.wav'}: ")
    assert f"sample 42 of channel 3 is {value:g}" in message
    assert not (tmp_path / "target.wav").exists()


def test_the_largest_samples_that_are_taken_give_the_same_sound(model: Path, tmp_path: Path) -> None:
    sound = recorded(tmp_path / "x.wav")
    sf.write(tmp_path / "loud.wav", sound.T * (2.0**31 / np.abs(sound).max()), 8000, subtype="DOUBLE")
    found = []
    for name in ("x", "loud"):
        assert separate(model, tmp_path / f"{name}.wav", tmp_path / "target.wav").code == 0
        found.append(sf.read(tmp_path / "target.wav")[0])
    # Quantization may tip a value that is rounded at a tie.
    np.testing.assert_allclose(found[1] / np.abs(found[1]).max(), found[0] / np.abs(found[0]).max(), atol=1e-2)


def test_a_dead_first_microphone_is_refused_and_another_is_warned_of(model: Path, tmp_path: Path) -> None:
    path, output = tmp_path / "x.wav", tmp_path / "target.wav"
    sound = recorded(path)
    sound[3] = 0.0
    sf.write(path, sound.T, 8000, subtype="FLOAT")
    answer = separate(model, path, output)
    assert answer.code == 0
    assert answer.stderr == f"warning: {path}: channel 4 is silent; the result may be wrong\ntarget: {output}\n"
    assert np.abs(sf.read(output)[0]).max() > 0
    output.unlink()
    sound[0] = 0.0
    sf.write(path, sound.T, 8000, subtype="FLOAT")
    assert "channel 1 is silent" in refusal(separate(model, path, output))
    assert not output.exists()


@pytest.mark.parametrize("threads", ["1000000", "9223372036854775808", "0", "-1"])
def test_threads_that_this_machine_cannot_run_are_refused_before_the_work(tmp_path: Path, threads: str) -> None:
    (tmp_path / "new").mkdir()
    message = refusal(separate(tmp_path / "no.onnx", tmp_path / "no.wav", tmp_path / "new" / "target.wav", "--threads", threads))
    assert threads in message
    assert not list((tmp_path / "new").iterdir())


def test_threads_are_bounded_for_callers_too(model: Path) -> None:
    most = MOST_THREADS * len(os.sched_getaffinity(0))
    with pytest.raises(UserError, match=f"{most + 1} threads; this machine has .*: wanted 1 to {most} threads"):
        OnnxSeparator(model, most + 1)
    with pytest.raises(UserError, match="-1 threads"):
        OnnxSeparator(model, -1)


def test_links_that_lead_round_in_circles_are_one_line(model: Path, tmp_path: Path) -> None:
    recorded(tmp_path / "x.wav")
    (tmp_path / "l.wav").symlink_to("l.wav")
    for recording, output in (("l.wav", "t.wav"), ("x.wav", "l.wav"), ("x.wav", "l.wav/t.wav"), ("l.wav", "l.wav")):
        message = refusal(separate(model, tmp_path / recording, tmp_path / output))
        assert str(tmp_path / "l.wav") in message
    assert sorted(path.name for path in tmp_path.iterdir()) == ["l.wav", "x.wav"]


def test_a_separation_that_is_not_finite_is_never_written(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded(tmp_path / "x.wav", 80_000)

    def target(self: OnnxSeparator, inputs: Mapping[str, NDArray[np.float32]]) -> NDArray[np.float32]:
        del self
        return np.full((1, inputs["mixture"].shape[1]), np.nan, np.float32)

    monkeypatch.setattr(OnnxSeparator, "_run", target)
    assert "not finite" in refusal(separate(model, tmp_path / "x.wav", tmp_path / "target.wav"))
    assert [path.name for path in tmp_path.iterdir()] == ["x.wav"]


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a network that can stream."""
    folder = tmp_path_factory.mktemp("live")
    config = CAUSAL.model_copy(update={"level_seconds": 2.0})
    network = exported_network(config, uniform(config, 8, 8))
    front_end = small_separator(config).front_end
    about = ExportDescription.of(network.network.graph, network.network.allocation, front_end, "0" * 64)
    export_onnx(network, folder / "model.onnx", about)
    export_sound(folder / "model.onnx", folder / "separator.onnx")
    return folder / "separator.onnx"


@contextmanager
def pipe(monkeypatch: pytest.MonkeyPatch, content: bytes) -> Iterator[None]:
    """Let the standard input give some bytes."""
    with tempfile.TemporaryFile() as stream:
        stream.write(content)
        stream.seek(0)
        monkeypatch.setattr("sys.stdin", stream)
        yield


def test_pipes_and_files_give_the_same_stream(live: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded(tmp_path / "x.wav", 20_001)
    assert separate(live, tmp_path / "x.wav", tmp_path / "whole.wav").code == 0
    wanted, _ = sf.read(tmp_path / "whole.wav", dtype="float32")
    for source in (tmp_path / "x.wav", "-"):
        with pipe(monkeypatch, (tmp_path / "x.wav").read_bytes()):
            answer = separate(live, source, tmp_path / "target.wav", "--stream")
        assert (answer.code, answer.stdout) == (0, "")
        assert "separated 2.5 s of sound in" in answer.stderr
        assert "16 ms behind the input" in answer.stderr
        np.testing.assert_allclose(sf.read(tmp_path / "target.wav", dtype="float32")[0], wanted, atol=1e-4 * np.abs(wanted).max())


def test_sound_comes_out_while_the_recording_goes_on(live: Path) -> None:
    # Neither torch nor Brevitas: numpy and ONNX Runtime are enough.
    program = "import sys; sys.modules['torch'] = sys.modules['brevitas'] = None; from hwsearch.cli import main; main()"
    command = [sys.executable, "-c", program, "separate", str(live), "--input", "-", "--doa", "60", "--output", "-", "--stream"]
    sound = np.ascontiguousarray(noise_mixture(4000).numpy().T, "<f4")
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(wav_header(8000, 4, None) + sound.tobytes())
        process.stdin.flush()
        # The pipe stays open. All but the network's latency is there.
        soon = len(wav_header(8000, 1, None)) + 4 * (4000 - 128 - 64)
        made = process.stdout.read(soon)
        assert len(made) == soon
        process.stdin.close()
        made += process.stdout.read()
    assert process.returncode == 0
    (target,) = WavStream.open(io.BytesIO(made), "the pipe").blocks(10_000)
    wanted = OnnxSeparator(live, 1).separate(sound.T, 60.0)
    np.testing.assert_allclose(target[0], wanted, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("stdin", "wanted"),
    [
        (b"nothing", "the standard input: no WAV data"),
        (wav_header(16000, 4, None), "the standard input: sample rate is 16000 Hz; wanted 8000 Hz"),
        (wav_header(8000, 6, None), "the standard input: 6 channels; wanted 4"),
        (wav_header(8000, 4, None), "the standard input: the recording is empty (0 samples)"),
    ],
)
def test_a_pipe_of_something_else_is_one_line(
    live: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stdin: bytes, wanted: str
) -> None:
    with pipe(monkeypatch, stdin):
        assert wanted in refusal(separate(live, "-", tmp_path / "target.wav", "--stream"))
    assert not list(tmp_path.iterdir())


def test_a_pipe_that_ends_early_is_warned_of(live: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pipe(monkeypatch, wav_header(8000, 4, 16 * 500) + bytes(16 * 400)):
        answer = separate(live, "-", tmp_path / "target.wav", "--stream")
    assert answer.code == 0
    assert "warning: the standard input ended 1600 bytes before the end that it had stated" in answer.stderr
    assert len(sf.read(tmp_path / "target.wav")[0]) == 400


def test_no_standard_input_is_one_line(live: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", None)
    assert "there is no standard input" in refusal(separate(live, "-", tmp_path / "target.wav", "--stream"))


def test_a_stream_that_is_not_finite_is_never_written(live: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recorded(tmp_path / "x.wav")
    run = OnnxSeparator._call

    def call(self: OnnxSeparator, inputs: Mapping[str, Any]) -> Any:
        target, states = run(self, inputs)
        return np.full_like(target, np.nan), states

    monkeypatch.setattr(OnnxSeparator, "_call", call)
    assert "not finite" in refusal(separate(live, tmp_path / "x.wav", tmp_path / "target.wav", "--stream"))
    assert [path.name for path in tmp_path.iterdir()] == ["x.wav"]


def test_an_interrupt_ends_the_recording_and_keeps_what_was_heard(live: Path, tmp_path: Path) -> None:
    program = "from hwsearch.cli import main; main()"
    output = tmp_path / "target.wav"
    command = [sys.executable, "-c", program, "separate", str(live), "--input", "-", "--doa", "60", "--output", str(output)]
    with subprocess.Popen([*command, "--stream"], cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(wav_header(8000, 4, None) + bytes(16 * 4000))
        process.stdin.flush()
        # Behind the header of the file, sound is on its way.
        wait_for(lambda: any(path.stat().st_size > 100 for path in tmp_path.rglob("*.wav*") if path.is_file()), process)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert 0 < len(sf.read(output)[0]) <= 4000


def wait_for(happened: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Wait until something has happened while a process runs, at most a minute."""
    ends = time.monotonic() + 60
    while not happened():
        assert process.poll() is None, "the process has ended"
        assert time.monotonic() < ends, "nothing has happened for a minute"
        time.sleep(0.05)


def test_a_model_that_looks_ahead_is_refused_and_so_are_pipes_without_a_stream(model: Path, live: Path, tmp_path: Path) -> None:
    recorded(tmp_path / "x.wav")
    assert "cannot stream" in refusal(separate(model, tmp_path / "x.wav", tmp_path / "t.wav", "--stream"))
    assert "only with --stream" in refusal(separate(live, "-", tmp_path / "t.wav"))
    assert "only with --stream" in refusal(separate(live, tmp_path / "x.wav", "-"))


def test_a_killed_separation_leaves_no_file(live: Path, tmp_path: Path) -> None:
    program = "from hwsearch.cli import main; main()"
    command = [sys.executable, "-c", program, "separate", str(live), "--input", "-", "--doa", "60", "--stream"]
    output = tmp_path / "target.wav"
    with subprocess.Popen(
        [*command, "--output", str(output)], cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdin is not None
        process.stdin.write(wav_header(8000, 4, None) + bytes(16 * 4000))
        process.stdin.flush()
        wait_for(lambda: bool(list(tmp_path.iterdir())), process)
        process.kill()
        process.stdin.close()
    assert not output.exists()


# Without a direction


def undirected(model: Path, recording: object, output: object, *more: object) -> Answer:
    return hwsearch("separate", model, "--input", recording, "--output", output, *more)


def test_without_a_direction_each_one_that_is_found_gets_a_file(model: Path, tmp_path: Path) -> None:
    """The files are those that the same directions give when they are named."""
    recorded(tmp_path / "x.wav", 16_000)
    answer = undirected(model, tmp_path / "x.wav", tmp_path / "out" / "target.wav")
    assert (answer.code, answer.stdout) == (0, "")
    lines = [re.fullmatch(r"target: +(\d+) degrees, strength (\d\.\d\d): (.*)", line) for line in answer.stderr.splitlines()]
    assert lines
    assert lines[0] is not None
    assert lines[0][2] == "1.00"
    written = sorted((tmp_path / "out").iterdir())
    assert written == sorted(Path(line[3]) for line in lines if line)
    for number, line in enumerate(lines, start=1):
        assert line is not None
        assert Path(line[3]).name == f"target-{number}-at-{line[1]}.wav"
        named = tmp_path / "named.wav"
        assert hwsearch("separate", model, "--input", tmp_path / "x.wav", "--doa", line[1], "--output", named).code == 0
        assert named.read_bytes() == Path(line[3]).read_bytes()


def test_directions_are_those_of_the_speakers_of_a_mixture(tiny: Tiny, tmp_path: Path) -> None:
    heard = []
    for number, (mixture, _, _) in enumerate(tiny.mixtures(Split.TEST)):
        answer = undirected(tiny.model, tiny.recording(number), tmp_path / f"{number}.wav")
        found = [int(doa) for doa in re.findall(r"target: +(\d+) degrees", answer.stderr)]
        heard += [min(abs(doa - talker.doa_deg) for doa in found) <= 10 for talker in (mixture.target, mixture.interferer)]
    assert np.mean(heard) >= 0.8, heard


def test_what_leaves_no_direction_to_be_found_is_refused(model: Path, tmp_path: Path) -> None:
    recorded(tmp_path / "x.wav", 400)
    said = refusal(undirected(model, tmp_path / "x.wav", tmp_path / "target.wav"))
    assert said == f"{tmp_path / 'x.wav'}: too short to find directions in it; wanted --doa, 0 to 180 degrees"
    assert [path.name for path in tmp_path.iterdir()] == ["x.wav"]


def test_a_found_direction_never_replaces_the_recording(model: Path, tmp_path: Path) -> None:
    recorded(tmp_path / "x.wav", 16_000)
    undirected(model, tmp_path / "x.wav", tmp_path / "y.wav")
    first = min(tmp_path.glob("y-1-at-*.wav"))
    recording = first.with_name(first.name.replace("y-1", "z-1"))
    (tmp_path / "x.wav").rename(recording)
    before = recording.read_bytes()
    assert "wanted another file than the recording" in refusal(undirected(model, recording, tmp_path / "z.wav"))
    assert recording.read_bytes() == before
    assert list(tmp_path.glob("z-*")) == [recording]


def test_a_stream_wants_its_direction(live: Path, tmp_path: Path) -> None:
    recorded(tmp_path / "x.wav")
    said = refusal(undirected(live, tmp_path / "x.wav", tmp_path / "target.wav", "--stream"))
    assert said == "no direction; this model wants that of the target, 0 to 180 degrees"
