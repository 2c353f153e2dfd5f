"""Which worker gets which device or which cores, and what is refused."""

import pytest
import torch

from tunewise.comparison import slots
from tunewise.comparison.slots import local_slots, require_one_kind, threads_each
from tunewise.comparison.workers import Workers
from tunewise.core.errors import SettingError


@pytest.fixture
def machine(monkeypatch):
    """A function that gives this machine other cores and GPUs."""

    def has(cores, gpus=0, threads=None, kinds=("GPU",) * 3):
        monkeypatch.setattr(slots, "usable_cores", lambda: list(range(cores)))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda number: kinds[number])
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        if threads:
            monkeypatch.setenv("OMP_NUM_THREADS", threads)

    return has


def test_cores_are_divided_into_groups_of_one_size(machine):
    machine(cores=8)
    found = local_slots(3, None)
    assert [slot.cores for slot in found] == [(0, 1), (2, 3), (4, 5)]
    assert {slot.environment["OMP_NUM_THREADS"] for slot in found} == {"2"} and all(slot.shares for slot in found)
    assert not local_slots(1, None)[0].shares


def test_the_users_threads_are_kept(machine):
    machine(cores=8, threads="1")
    assert threads_each(2) == 1
    assert {slot.environment["OMP_NUM_THREADS"] for slot in local_slots(2, "cpu")} == {"1"}


def test_each_worker_has_a_gpu_of_those_that_the_user_lets_it_see(machine, monkeypatch):
    machine(cores=8, gpus=3)
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in local_slots(2, None)] == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b,GPU-c")
    found = local_slots(3, "cuda")
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in found] == ["GPU-a", "GPU-b", "GPU-c"]
    assert not any(slot.shares or slot.cores for slot in found)
    assert [len(slot.cores) for slot in local_slots(2, "cpu")] == [4, 4]


def test_devices_of_several_kinds_are_refused_by_their_names_unless_asked_for(machine):
    machine(cores=8, gpus=3, kinds=("A100", "T4", "T4"))
    kinds = [slot.kind for slot in local_slots(3, None)]
    with pytest.raises(SettingError, match=r"2 kinds \(2 x T4 and 1 x A100\), .*; choose others, or give --mixed"):
        require_one_kind(kinds, False, "choose others")
    assert require_one_kind(kinds, True, "choose others")
    cores = [slot.kind for slot in local_slots(2, "cpu")]
    assert all(cores) and not any(require_one_kind(cores, mixed, "") for mixed in (True, False))


@pytest.mark.parametrize(
    ("cores", "gpus", "workers", "device", "message"),
    [
        (2, 0, 3, None, "--workers is 3, but there are 2 cores here; give at most 2"),
        (8, 2, 3, None, "--workers is 3, but torch sees 2 GPUs here; give at most 2, or --device cpu"),
        (8, 2, 2, "cuda:1", "--workers is 2, but cuda:1 is one device; give at most 1, or --device cpu"),
    ],
)
def test_more_workers_than_there_is_room_for_are_refused(machine, cores, gpus, workers, device, message):
    machine(cores, gpus)
    with pytest.raises(SettingError) as caught:
        local_slots(workers, device)
    assert str(caught.value) == message


def test_what_workers_can_be():
    assert Workers.read(" 4 ") == Workers(4)
    assert Workers.read("ray://head:10001").address == "ray://head:10001"
    assert Workers.read("auto").address == "auto"
    for text in ("two", "-1", "1.5", "ray://", ""):
        with pytest.raises(SettingError, match="must be a number, the address of a Ray cluster"):
            Workers.read(text)
    with pytest.raises(SettingError, match=r"^--workers is 0 but must be at least 1$"):
        Workers.read("0")
