"""What helper programs do in `test_isolated`."""

import ctypes
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

from grr_coca.data.sources.base import BadSample, Cause


def reverse(data, name, *, times):
    return {"name": name, "size": len(data)}, data[::-1] * times


def reject(data, name):
    raise BadSample(f"{name}: bad", Cause.NOT_AN_IMAGE)


def loop(data, name):
    while True:
        pass


def fill(data, name, *, size=2**31, seconds=0):
    filled = bytes(size)
    time.sleep(seconds)
    return {}, filled


def crash_at(data, name, *, number):
    return {}, crash(data, name) if data == number else data


def crash(data, name):
    ctypes.string_at(0)


def abort(data, name):
    os.abort()


def kill(data, name):
    os.kill(os.getpid(), signal.SIGKILL)


def stop(data, name):
    os.kill(os.getpid(), signal.SIGSTOP)


def sleep(data, name):
    time.sleep(600)


def fail(data, name):
    return {}, 1 // 0


def open_something(data, name, *, attempt, path):
    attempts = {
        "read": lambda: Path(path).read_text(),
        "listen": lambda: socket.socket(),
        "run": lambda: subprocess.run(["true"], check=False),
    }
    try:
        attempts[attempt]()
    except Exception as error:
        return {"error": type(error).__name__}, b""
    return {"error": None}, b""
