"""Helper programs: what they are called for, what they may not do, and what becomes of them."""

import io
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image
from support import encode_image, real_pairs

from grr_coca.common.errors import UserError
from grr_coca.data import isolated, isolated_program
from grr_coca.data.isolated import Content, HelperLimits, Helpers, decode_image
from grr_coca.data.preprocess import Preprocess
from grr_coca.data.sources.base import BadSample, Cause

MODULE = "isolated_functions"
"""What the helpers of these tests do: `tests/shared/isolated_functions.py`."""


@pytest.fixture
def helpers():
    made = Helpers(HelperLimits(cpu_seconds=0.5, memory=2**30))
    yield made
    made.end()


def call(helpers, function, data=b"", **arguments):
    return helpers.call(MODULE, function, Content(data, "a.png"), **arguments)


def pids(helpers):
    return [helper._process.pid for helper in helpers._all]


def test_call_returns_facts_and_bytes(helpers):
    assert call(helpers, "reverse", b"abc", times=2) == ({"name": "a.png", "size": 3}, b"cbacba")
    large = os.urandom(3_000_000)
    assert call(helpers, "reverse", large, times=1)[1] == large[::-1]


def test_idle_helper_is_reused_and_killed_helper_replaced(helpers):
    call(helpers, "reverse", b"a", times=1)
    (helper,) = helpers._idle
    call(helpers, "reverse", b"a", times=1)
    assert helpers._idle == [helper]
    helper._process.kill()
    helper._process.wait()
    assert call(helpers, "reverse", b"ab", times=1)[1] == b"ba"
    assert helpers._idle != [helper]


def test_another_module_starts_a_helper_with_all_modules(helpers):
    call(helpers, "reverse", b"a", times=1)
    (before,) = helpers._idle
    helpers.call(MODULE, "reverse", Content(b"a", "a.png", ("colorsys",)), times=1)
    (helper,) = helpers._idle
    assert helper is not before
    assert helper.modules == {MODULE, "colorsys"}
    assert before._process.poll() is not None


@pytest.mark.parametrize(
    ("function", "message", "cause"),
    [
        ("reject", r"^a\.png: bad$", Cause.NOT_AN_IMAGE),
        (
            "fail",
            r"^a\.png: its decoder fails \(ZeroDivisionError: .+\); save it with another program$",
            Cause.BROKEN_IMAGE,
        ),
        ("fill", r"^a\.png: decoding takes more memory than 1\.0 GiB; scale it down first$", Cause.TOO_LARGE),
        ("crash", r"^a\.png: crashes its decoder \(SIGSEGV\); save it again with another program$", Cause.BROKEN_IMAGE),
        ("abort", r"^a\.png: crashes its decoder \(SIGABRT\); save it again with another program$", Cause.BROKEN_IMAGE),
        ("kill", r"^a\.png: not decoded: .*ended twice \(SIGKILL\); try again$", Cause.UNREADABLE),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other limits")
def test_failure_reports_one_line_and_next_call_succeeds(helpers, function, message, cause):
    with pytest.raises(BadSample, match=message) as caught:
        call(helpers, function)
    assert caught.value.cause is cause
    assert call(helpers, "reverse", b"ab", times=1)[1] == b"ba"


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="Windows cannot stop a process")
@pytest.mark.parametrize("function", ["sleep", "stop"])
def test_wall_time_is_limited_without_processor_use(function):
    helpers = Helpers(HelperLimits(cpu_seconds=60, wall_seconds=0.1))
    with pytest.raises(BadSample, match="timed out") as caught:
        call(helpers, function)
    assert caught.value.cause is Cause.UNREADABLE
    helpers.end()


@pytest.mark.skipif(sys.platform != "linux", reason="limits are read as Linux shows them")
def test_helper_cannot_open_files_and_has_memory_limit(helpers, tmp_path):
    call(helpers, "reverse", b"", times=1)
    limits = Path(f"/proc/{helpers._idle[0]._process.pid}/limits").read_text()
    found = {line[:26].strip(): line[26:].split()[:2] for line in limits.splitlines()}
    assert found["Max open files"] == ["0", "0"]
    assert found["Max address space"] == [str(2**30)] * 2
    assert found["Max core file size"] == found["Max file size"] == ["0", "0"]
    (tmp_path / "a").write_text("secret")
    for attempt in ("read", "listen", "run"):
        facts, _ = call(helpers, "open_something", attempt=attempt, path=str(tmp_path / "a"))
        assert facts["error"] in ("OSError", "BlockingIOError"), attempt


@pytest.mark.ci
def test_other_threads_work_while_a_helper_computes(helpers):
    with ThreadPoolExecutor(1) as pool:
        computing = pool.submit(call, helpers, "loop")
        counted = 0
        while not computing.done():
            time.sleep(0.01)
            counted += 1
        assert isinstance(computing.exception(), BadSample)
    assert counted > 10


def test_answers_of_several_threads_do_not_mix(helpers):
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: call(helpers, "reverse", b"%d" % n, times=1)[1], range(300)))
    assert answers == [str(n).encode()[::-1] for n in range(300)]


def test_changed_limits_apply_to_the_next_helper(helpers):
    call(helpers, "reverse", b"", times=1)
    before = helpers.use(HelperLimits(cpu_seconds=0.1, count=1))
    assert helpers._idle == []
    message = r"^a\.png: decoding takes more than 0\.1 s of processor time; scale it down first$"
    with pytest.raises(BadSample, match=message) as caught:
        call(helpers, "loop")
    assert caught.value.cause is Cause.TOO_LARGE
    helpers.use(before)
    assert call(helpers, "reverse", b"ab", times=1)[1] == b"ba"


def test_small_contents_are_batched_and_answered_in_order(helpers):
    taken = []

    def contents():
        for number in range(40):
            taken.append(number)
            yield UserError(f"{number}") if number % 7 == 0 else Content(b"%d" % number, f"{number}")

    answers = helpers.map(MODULE, "reverse", contents(), times=1)
    assert str(next(answers)) == "0"
    assert len(taken) == 32, "no more are held"
    for number, answer in enumerate(answers, 1):
        assert str(answer) == f"{number}" if number % 7 == 0 else answer[1] == f"{number}"[::-1].encode()
    assert number == 39
    assert len(pids(helpers)) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other limits")
def test_only_the_crashing_image_fails(helpers):
    contents = [Content(b"%d" % number, f"{number}.png") for number in range(5)]
    answers = list(helpers.map(MODULE, "crash_at", contents, number=b"3"))
    assert [bytes(answer[1]) for answer in answers if not isinstance(answer, BadSample)] == [b"0", b"1", b"2", b"4"]
    assert str(answers[3]) == "3.png: crashes its decoder (SIGSEGV); save it again with another program"


@pytest.mark.ci
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no limits of memory")
def test_one_content_at_a_time_may_take_more_memory():
    helpers = Helpers(HelperLimits(memory=2**29, large_memory=2**30, count=2))
    assert len(call(helpers, "fill", size=7 * 10**8)[1]) == 7 * 10**8
    with pytest.raises(BadSample, match=r"^a\.png: decoding takes more memory than 1\.0 GiB"):
        call(helpers, "fill", size=2**30)
    assert call(helpers, "reverse", b"ab", times=1)[1] == b"ba"
    with ThreadPoolExecutor(2) as pool:
        began = time.monotonic()
        list(pool.map(lambda _: call(helpers, "fill", size=7 * 10**8, seconds=0.3), range(2)))
        assert time.monotonic() - began > 0.6, "one after the other"
    helpers.end()


@pytest.mark.ci
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no limits of memory")
@pytest.mark.parametrize("kind", ["jpeg2000", "webp"])
def test_decoder_without_memory_errors_gets_more_memory(kind):
    picture = encode_image(Image.linear_gradient("L").convert("RGB").resize((4500, 4500)), kind)
    limits = isolated.helpers.use(HelperLimits(memory=2**28, large_memory=2**31))
    read = Preprocess(8).decode_square(picture, "a")
    assert read.size == (8, 8)
    with pytest.raises(BadSample, match="broken or truncated"):
        Preprocess(8).decode_square(picture[:300], "a")
    isolated.helpers.use(limits)


@pytest.mark.ci
def test_busy_helpers_start_another_one():
    helpers = Helpers(HelperLimits(count=2))
    call(helpers, "reverse", b"", times=1)
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda n: call(helpers, "reverse", b"%d" % n, times=1)[1], range(50)))
        assert len(pids(helpers)) == 1
        list(pool.map(lambda _: call(helpers, "fill", size=1, seconds=0.5), range(4)))
    assert len(pids(helpers)) == 2
    helpers.end()


@pytest.mark.parametrize("begins", ["raise SystemExit(3)", "raise ImportError"])
def test_helper_start_failure_is_not_a_corrupt_file(helpers, tmp_path, monkeypatch, begins):
    (tmp_path / "program.py").write_text(begins)
    monkeypatch.setattr(isolated_program, "__file__", str(tmp_path / "program.py"))
    with pytest.raises(BadSample, match=r"a\.png: .*the decoding program did not start: .*exit code \d") as caught:
        call(helpers, "reverse", times=1)
    assert caught.value.cause is Cause.UNREADABLE
    assert helpers._idle == []


def test_interrupt_leaves_no_program(helpers, monkeypatch):
    interrupted = []

    def interrupt(helper, *_):
        interrupted.append(helper)
        raise KeyboardInterrupt

    monkeypatch.setattr(isolated._Helper, "_receive", interrupt)
    with pytest.raises(KeyboardInterrupt):
        call(helpers, "reverse", times=1)
    assert interrupted[0]._process.poll() == -signal.SIGKILL
    assert interrupted[0]._input.closed


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows does not fork")
def test_forked_process_drops_parent_helpers(helpers):
    """What a fork calls in the child, called here."""
    call(helpers, "reverse", times=1)
    (helper,) = helpers._idle
    helpers._idle.clear()  # another thread computes, which the child does not have
    helpers.detach()
    assert helpers._idle == []
    assert call(helpers, "reverse", b"ab", times=1)[1] == b"ba"
    assert helper._input.closed
    assert helper._output.closed
    assert os.waitpid(helper._process.pid, 0)[1] == 0, "nobody has killed it; it ends with its input"


def test_requests_are_answered_in_order_without_leftover_timer():
    """The loop of the program, without a program."""
    import isolated_functions  # noqa: F401

    calls = [
        pickle.dumps((MODULE, "reverse", 2**40, [("a", 2, 60.0, {}), ("b", 1, 60.0, {})], {"times": times}))
        for times in (1, 2)
    ]
    requests = [isolated_program.REQUEST.pack(len(one), 3) + one + b"abc" for one in calls]
    answers = io.BytesIO()
    isolated_program.answer_all(io.BytesIO(b"".join(requests) + requests[0][:5]), answers, 2**40, None, log=2)
    if hasattr(signal, "setitimer"):
        assert signal.getitimer(signal.ITIMER_PROF) == (0.0, 0.0)
    expected = b""
    for results in (b"bac", b"babacc"):
        half = len(results) // 3
        facts = [[0, {"name": "a", "size": 2}, 2 * half], [0, {"name": "b", "size": 1}, half]]
        answer = json.dumps(facts).encode()
        expected += isolated_program.ANSWER.pack(len(answer), len(results)) + answer + results
    assert answers.getvalue() == expected


# --- Programs that decode

DRAWING = encode_image(real_pairs(1)[0].image and decode_image(real_pairs(1)[0].image, "a"), "png")
SCRIPT = f"""
from grr_coca.data.isolated import decode_image
print(decode_image({DRAWING!r}, "a.png").size)
"""


def test_script_without_a_guard_decodes(tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run([sys.executable, tmp_path / "script.py"], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("(64, 64)\n", "")


def test_notebook_decodes_without_importing_files_of_its_folder(tmp_path):
    """The `__main__` of a notebook has no file, and its standard input is not that of the helper."""
    for name in ("struct", "faulthandler", "signal", "pickle", "json"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported')")
    code = f"import sys; sys.path.remove('')\n{SCRIPT}"
    done = subprocess.run([sys.executable], input=code, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.stdout, done.stderr) == ("(64, 64)\n", "")


@pytest.mark.ci
def test_command_starts_a_helper_before_heavy_imports():
    code = """
import subprocess, sys
from grr_coca.cli import main
def started(*_, **__):
    print(sorted({"numpy", "PIL", "tyro"} & sys.modules.keys()))
    raise OSError("not here")
subprocess.Popen = started
main(["caption", "no such file"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "[]\n", done.stderr


class Pictures:
    """A dataset of pictures."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return decode_image(DRAWING, "a.png").size[0] + index


@pytest.mark.ci
@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_workers_of_a_loader_decode(start):
    torch_data = pytest.importorskip("torch.utils.data")
    if start not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system cannot {start}")
    assert decode_image(DRAWING, "a"), "a helper that forked workers must not use"
    loader = torch_data.DataLoader(Pictures(), num_workers=2, multiprocessing_context=start)
    assert [int(value) for value in loader] == [64 + index for index in range(8)]
    assert decode_image(DRAWING, "a")


@pytest.mark.ci
@pytest.mark.skipif(not Path("/proc/self").exists(), reason="processes are looked at as Linux shows them")
def test_helpers_end_with_a_process_that_is_killed():
    code = f"""
import time
from grr_coca.data.isolated import decode_image
from grr_coca.data.isolated import helpers
decode_image({DRAWING!r}, "a")
print(helpers._idle[0]._process.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        helper = int(process.stdout.readline())
        assert Path(f"/proc/{helper}").exists()
        process.send_signal(signal.SIGKILL)
    while Path(f"/proc/{helper}/cmdline").exists():  # the time limit of tests ends this
        time.sleep(0.01)
