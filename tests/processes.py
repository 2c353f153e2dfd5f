"""What became of processes."""

import time

import psutil


def still_running(processes, within=5.0):
    """Those that have not ended after so many seconds. One that was killed ends when the kernel has freed its memory,
    and stays a zombie where nobody waits for it."""
    until = time.monotonic() + within
    while (left := [each for each in processes if _runs(each)]) and time.monotonic() < until:
        time.sleep(0.05)
    return left


def _runs(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
