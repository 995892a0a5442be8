"""Image files of an index: on a stalled drive, deleted, or not to be shown."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image
from serving import DRAWINGS, imported_copy, serving, wait_until

import grr_coca
from grr_coca.common.errors import UserError
from grr_coca.data.sources.base import BadSample, Cause
from grr_coca_serve.daemon_threads import DaemonThreads
from grr_coca_serve.files import PictureFiles
from grr_coca_serve.request_error import to_request_error

GUITAR = (DRAWINGS / "guitar.webp").read_bytes()


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder with eight pictures, and its index."""
    folder = tmp_path_factory.mktemp("own")
    for number in range(8):
        Image.new("RGB", (40, 40), (number * 30, 90, 90)).save(folder / f"{number}.png")
    with grr_coca.Index.open(folder / "index", "icons", create=True) as index:
        index.add(str(folder / "*.png"))
    return folder


def ids(client) -> dict[str, str]:
    """The ids of all pictures, by the name of their file."""
    return {Path(one["name"]).name: one["id"] for one in client.get("/pictures").json()["pictures"]}


class Hanging:
    """Stalled drive: opening a file in this folder, or checking whether it exists, waits until the end."""

    def __init__(self, monkeypatch, folder: Path) -> None:
        self.answers = threading.Event()
        self.waiting = 0
        for name, real in (("grr_coca.common.files.os.open", os.open), ("os.path.exists", os.path.exists)):
            monkeypatch.setattr(name, self._hanging(real, str(folder)))

    def _hanging(self, real, folder: str):
        def wait(path, *arguments):
            if str(path).startswith(folder) and str(path).endswith(".png"):
                self.waiting += 1
                self.answers.wait(60)
            return real(path, *arguments)

        return wait


@pytest.fixture
def hanging(monkeypatch, own):
    drive = Hanging(monkeypatch, own)
    monkeypatch.setattr("grr_coca_serve.files._SECONDS", 0.5)
    monkeypatch.setattr("grr_coca_serve.files._SECONDS_TO_CHECK", 0.2)
    monkeypatch.setattr("grr_coca_serve.files._SECONDS_UNTIL_LATE", 0.5)
    yield drive
    drive.answers.set()


@pytest.mark.ci
def test_stalled_drive_does_not_block_captions_and_searches(own, hanging):
    with serving(own / "index") as client:
        with ThreadPoolExecutor(8) as pool:  # more than there are threads that read
            answers = list(pool.map(lambda identity: client.get(f"/image/{identity}"), ids(client).values()))
        assert [(answer.status, answer.headers["x-missing"]) for answer in answers] == [(200, "1")] * 8
        assert client.post("/caption", GUITAR).status == 200
        found = client.post("/search", {"texts": ["a square"]}).json()["hits"]
        assert len(found) > 0
        assert all(hit["is_there"] for hit in found), "nobody knows"
        wait_until(lambda: client.metric("grr_coca_late_files") >= 4)
        ready = client.get("/ready")
        assert ready.status == 200
        assert "are stalled" in ready.json()["warnings"][0]
        hanging.answers.set()
        wait_until(lambda: client.metric("grr_coca_late_files") == 0)
        assert client.get("/ready").json()["warnings"] == []
        answer = client.get(f"/image/{ids(client)['3.png']}")
        assert answer.headers["content-type"] == "image/webp"


@pytest.mark.ci
def test_stalled_file_blocks_once_and_others_are_shown(own, hanging, tmp_path):
    Image.new("RGB", (30, 30)).save(tmp_path / "fine.png")
    with grr_coca.Index.open(tmp_path / "index", "icons", create=True) as index:
        hanging.answers.set()
        index.add([str(tmp_path / "fine.png"), str(own / "0.png")])
        hanging.answers.clear()
    with serving(tmp_path / "index") as client:
        known = ids(client)
        before = hanging.waiting
        for _ in range(3):
            assert "x-missing" in client.get(f"/image/{known['0.png']}").headers
        assert hanging.waiting == before + 1
        assert client.get(f"/image/{known['fine.png']}").headers["content-type"] == "image/webp"


def test_thread_does_not_wait_for_a_file_that_hangs(own, hanging):
    with grr_coca.Index.open(own / "index") as index:
        entry = next(index.store.everything())[0]
    files = PictureFiles(None)
    with pytest.raises(UserError, match=r"the file of this image could not be read within 0\.5 s"):
        files.read_now(entry)
    hanging.answers.set()
    files.close()


@pytest.mark.ci
def test_hanging_file_is_not_explained(own, hanging):
    pytest.importorskip("torch")
    with serving(own / "index") as client:
        answer = client.post("/explain", {"id": ids(client)["1.png"]})
        assert answer.status == 504
        assert "drive may be stalled" in answer.reason()


@pytest.mark.ci
def test_process_ends_though_its_threads_hang(own):
    code = """
import os, sys, threading
real, never = os.open, threading.Event()
sys.path[:0] = [sys.argv[2]]
from serving import serving
with serving(sys.argv[1] + "/index") as client:
    os.open = lambda path, *a, **k: never.wait() if str(path).endswith(".png") else real(path, *a, **k)
    import grr_coca_serve.files as files
    files._SECONDS = 0.1
    for one in client.get("/pictures").json()["pictures"]:
        client.get("/image/" + one["id"])
print("ended")
"""
    arguments = [sys.executable, "-c", code, str(own), str(Path(__file__).parents[1] / "shared")]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr


# --- Threads and memory


def test_late_thread_is_replaced_and_ends_when_done():
    release = threading.Event()
    workers = DaemonThreads(2, "test", seconds=0.05)
    held = [workers.put(release.wait, 30) for _ in range(2)]
    wait_until(lambda: workers.num_stalled == 2)
    assert workers.put(lambda: 7).result(10) == 7
    wait_until(lambda: len(workers._began) == 4)
    release.set()
    assert all(one.result(10) for one in held)
    wait_until(lambda: len(workers._began) == 2)
    assert [workers.put(int, text).result(10) for text in "123"] == [1, 2, 3]
    workers.close()
    wait_until(lambda: not workers._began)


def test_work_that_fails_or_is_cancelled_does_not_end_a_thread():
    workers = DaemonThreads(1, "test")
    assert isinstance(workers.put(int, "x").exception(10), ValueError)
    release = threading.Event()
    first, second = workers.put(release.wait, 30), workers.put(lambda: 1)
    assert second.cancel()
    release.set()
    assert first.result(10)
    assert workers.put(lambda: 2).result(10) == 2
    workers.close()


def test_large_files_are_read_one_at_a_time(own, monkeypatch):
    monkeypatch.setattr("grr_coca_serve.files._LARGE_BYTES", 10)
    monkeypatch.setattr("grr_coca_serve.files._SECONDS", 0.1)
    files = PictureFiles(None)
    with grr_coca.Index.open(own / "index") as index:
        (hit, *_) = index.search("a square")
    assert files._thumbnail(hit.entry, 32) is not None
    with files._one_large:
        assert files._thumbnail(hit.entry, 32) is None
    assert files._thumbnail(hit.entry, 32) is not None
    files.close()


@pytest.mark.ci
def test_large_jpeg_is_decoded_at_a_fraction(monkeypatch):
    with Image.open(DRAWINGS / "guitar.webp") as image:
        large = image.convert("RGB").resize((2000, 1500), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    large.save(buffer, "JPEG", quality=92)
    with serving() as client:
        whole = client.post("/caption", buffer.getvalue()).json()
        monkeypatch.setattr("grr_coca_serve.pictures._MAX_WHOLE_PIXELS", 2_000_000)
        reduced = client.post("/caption", buffer.getvalue()).json()
    assert reduced["caption"] == whole["caption"]
    assert reduced["captions"][0]["log_prob"] != whole["captions"][0]["log_prob"]
    assert reduced["captions"][0]["log_prob"] == pytest.approx(whole["captions"][0]["log_prob"], abs=0.2)


# --- Imported indexes


@pytest.fixture(scope="module")
def imported(own):
    """The index of `own`, as somebody else would get it."""
    return imported_copy(own / "index", own / "imported")


@pytest.mark.parametrize(
    ("location", "folders", "shown"),
    [("imported", ["."], 8), ("imported", [], 0), ("imported", ["index", "link"], 8), ("index", ["index"], 0)],
)
def test_index_shows_only_images_of_given_folders(own, imported, location, folders, shown):
    if not (own / "link").exists():
        (own / "link").symlink_to(own)
    with serving(own / location, pictures=[own / folder for folder in folders]) as client:
        known = client.get("/pictures").json()["pictures"]
        assert len(known) == 8
        assert sum(one["is_there"] for one in known) == shown
        answers = [client.get(f"/image/{one['id']}") for one in known]
        assert sum(answer.headers["content-type"] == "image/webp" for answer in answers) == shown
        assert len(client.post("/search", {"texts": ["a square"]}).json()["hits"]) > 0
        if client.server.service.explainer.is_installed and not shown:
            answer = client.post("/explain", {"id": known[0]["id"]})
            assert answer.status == 403
            assert "--pictures" in answer.reason()


@pytest.mark.ci
def test_command_reports_which_images_are_shown(own, imported):
    for arguments, note in (([], "no images are shown"), (["--pictures", str(own)], f"only images in {own} are shown")):
        command = [sys.executable, "-m", "grr_coca", "serve", str(imported), "--port", "0", *arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            lines = []
            for line in process.stdout:
                lines.append(line)
                if note in line:
                    break
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=100)
        assert any(note in line for line in lines)
    done = subprocess.run(
        [sys.executable, "-m", "grr_coca", "serve", str(imported), "--pictures", str(own / "nowhere")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "not found, or not a folder" in done.stderr


@pytest.mark.ci
def test_link_out_of_the_folder_is_not_followed(own, tmp_path):
    (tmp_path / "shown").mkdir()
    (tmp_path / "shown" / "a.png").symlink_to(own / "1.png")
    Image.new("RGB", (30, 30), "red").save(tmp_path / "shown" / "b.png")
    with grr_coca.Index.open(tmp_path / "index", "icons", create=True) as index:
        index.add([str(tmp_path / "shown" / name) for name in ("a.png", "b.png")])
    with serving(tmp_path / "index", pictures=[tmp_path / "shown"]) as client:
        there = {Path(one["name"]).name: one["is_there"] for one in client.get("/pictures").json()["pictures"]}
    assert there == {"a.png": False, "b.png": True}


def test_drawing_that_timed_out_can_be_sent_again():
    assert to_request_error(BadSample("a.svg: not drawn", Cause.UNREADABLE)).status == 503
    assert to_request_error(BadSample("a.svg: broken", Cause.BROKEN_IMAGE)).status == 415


def test_names_that_are_not_paths_do_not_exist(served):
    entries = [type("Entry", (), {"file": file}) for file in ("\0", "", "a" * 5000, "/proc/self/mem\0.png")]
    there = served.server.service.index.files.files_exist(entries)
    assert set(there.values()) == {False}
    assert json.dumps(there)
