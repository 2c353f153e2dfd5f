"""What a Ray cluster does as an actor starts becomes a sentence; `tests/distributed/test_ray.py` has a real cluster."""

from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest

from tunewise.comparison.ray_pool import RaySeat, _Places
from tunewise.core.errors import RequestError, TunewiseError


class TooLate(Exception):
    pass


class Died(Exception):
    pass


def seat(answer):
    """A seat on a cluster whose calls end as `answer()` does."""
    ray = MagicMock()
    ray.exceptions = SimpleNamespace(GetTimeoutError=TooLate, RayActorError=Died)
    ray.get = lambda asked, timeout: answer()
    return RaySeat(ray, _Places(count=1, cores=1, variables={}), ("", "", ""), 10.0)


def raised(error):
    def answer():
        raise error

    return answer


def test_a_busy_cluster_is_said_to_be_busy():
    with pytest.raises(TunewiseError, match=r"started no worker within .* seconds; see whether others use its GPUs"):
        seat(raised(TooLate())).check()


def test_a_worker_that_ends_at_once_is_said_to_have_by_its_last_line():
    said = "Traceback (most recent call last):\n  File x\nModuleNotFoundError: No module named 'tunewise'"
    with pytest.raises(TunewiseError, match="ended as it started: ModuleNotFoundError") as caught:
        seat(raised(Died(said))).check()
    assert "Traceback" not in str(caught.value)


def test_a_node_that_does_not_see_a_folder_is_named():
    with pytest.raises(RequestError, match="node /runs of the Ray cluster does not see /runs"):
        seat(lambda: "/runs").check()
    seat(lambda: "").check()
