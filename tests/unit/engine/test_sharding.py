import pytest
import torch

from tunewise.engine.ranks import Ranks
from tunewise.engine.sharding import by_kind, clip_gradients, distribution
from tunewise.engine.shards import Parked, collected, is_finite, is_shard, put, whole


def test_ordinary_tensors_are_whole():
    tensor = torch.arange(6.0)
    assert not is_shard(tensor) and torch.equal(whole(tensor), tensor) and torch.equal(Parked(tensor).tensor(), tensor)
    assert collected({"a": tensor}, keep=True)["a"] is tensor and collected({"a": tensor}, keep=False) == {}
    assert is_finite(tensor) and not is_finite(tensor / 0)


def test_values_are_written_into_a_parameter():
    parameter = torch.nn.Parameter(torch.zeros(3))
    put(parameter, torch.ones(3))
    assert parameter.tolist() == [1, 1, 1] and parameter.requires_grad


def test_a_group_of_one_kind_stays_as_it_is():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(2))], "lr": 1.0}, {"params": []}]
    assert by_kind(groups) == groups


@pytest.mark.parametrize("limit", [1.0, 100.0])
def test_gradients_are_clipped_as_torch_does(limit):
    parameters = [torch.nn.Parameter(torch.zeros(4)) for _ in range(3)]
    for parameter in parameters[:2]:
        parameter.grad = torch.tensor([3.0, 0.0, 4.0, 0.0])
    norm = clip_gradients(parameters, limit, Ranks())
    assert norm == pytest.approx(50**0.5)
    after = torch.cat([parameter.grad for parameter in parameters[:2]]).norm()
    assert float(after) == pytest.approx(min(limit, norm), rel=1e-5)


def test_every_rank_gets_equally_many_turns():
    items = list(range(5))
    shares = [Ranks(rank, 3, sharded=True).turns(items) for rank in range(3)]
    assert [len(share) for share in shares] == [2, 2, 2]
    assert sorted(item for share in shares for item, counts in share if counts) == items
    assert Ranks(2, 3).turns(items) == [(2, True)] and Ranks(0, 2, sharded=True).turns([]) == []


def test_a_whole_model_is_loaded_as_ever():
    with distribution(None, Ranks(0, 2)) as part:
        assert part is None
