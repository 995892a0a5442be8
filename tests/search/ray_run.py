"""`make test-ray`: an index on a Ray cluster of two workers, of which one is killed: every picture exactly once."""

import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

from PIL import Image

import grr_coca

WORKER = b"MapWorker"


def pictures(folder: Path, count: int) -> Path:
    folder.mkdir()
    for number in range(count):
        Image.new("RGB", (40, 40), (number % 256, number // 256, 255 - number % 256)).save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def kill_a_worker(killed: list[int], after: float) -> None:
    """End one process of the cluster that describes pictures, as the kernel does when memory is short."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not killed:
        for command in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                if WORKER in command.read_bytes():
                    time.sleep(after)
                    os.kill(int(command.parent.name), signal.SIGKILL)
                    killed.append(int(command.parent.name))
                    return
        time.sleep(0.05)


def main(folder: Path, runs: int, count: int) -> None:
    import ray

    ray.init(num_cpus=2, log_to_driver=False, logging_level="ERROR", include_dashboard=False)
    images = pictures(folder / "pictures", count)
    for number in range(runs):
        killed: list[int] = []
        killer = threading.Thread(target=kill_a_worker, args=(killed, 0.3 * number), daemon=True)
        killer.start()
        with grr_coca.Index.open(folder / f"index-{number}", create=True, batch_size=8) as index:
            update = index.add(images, on="ray")
            names = [entry.name for entry, _ in index.store.everything()]
            assert sorted(names) == sorted(str(path) for path in images.glob("[0-9]*.png")), len(names)
            assert len(index) == update.new == count
            assert [failure.name for failure in update.failures] == [str(images / "broken.png")]
            if number == 0:
                hits = index.search(image=str(images / "0.png"), n=1, fold=False)
                assert hits[0].score > 0.99
        assert killed, "no worker was found to kill"
        print(f"run {number + 1} of {runs}: {count} pictures once, worker {killed[0]} killed", flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
