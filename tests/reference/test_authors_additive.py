"""Ladder side-tuning and P-tuning beside the authors' code."""

from itertools import groupby

import pytest
import torch

from authors_values import authors_values, drawn, tensor
from tunewise.fitting.scoring import encoder_for
from tunewise.techniques.building.structured_pruning import best, importance
from tunewise.techniques.registry import make
from tunewise.testing import attach, tiny_base, tiny_task

LST, P_TUNING = authors_values("lst"), authors_values("p_tuning")
# Networks that are added are in float32; the authors' ran in float64.
SINGLE, SUMMED = {"rtol": 1e-5, "atol": 1e-5}, {"rtol": 1e-4, "atol": 1e-4}


# Ladder side-tuning.


@pytest.fixture
def ladder():
    """Attach a ladder with the authors' weights; the base's blocks give fixed states, and side block i tanh(u M_i)."""
    seeds, tokens, width, narrow = LST["seeds"], LST["tokens"], LST["width"], LST["side_width"]
    base = tiny_base("llama")
    settings = {"output": "side", "init": "random", "reduction_factor": width / narrow}
    attachment = attach(make("lst", {"lst": settings}), base)
    assert attachment.side.config.hidden_size == narrow
    weights = {name: getattr(attachment, name) for name in ("entry", "exit", "rungs")}
    with torch.no_grad():
        for kind, module in weights.items():
            for name, parameter in module.named_parameters():
                parameter.copy_(drawn(seeds[f"{kind}.{name}"], *parameter.shape) / 4)
        attachment.side.norm.weight.copy_(1 + drawn(seeds["norm"], narrow) / 8)
        attachment.alpha.copy_(tensor(LST["alpha"]))
    x = drawn(seeds["x"], 1, tokens, width).float()
    base.anatomy.embedding.forward = lambda ids: x
    taken = []

    def side_block(mixer):
        def forward(hidden_states, **arguments):
            taken.append(hidden_states.detach())
            return torch.tanh(hidden_states @ mixer)

        return forward

    for block, seed in zip(base.anatomy.blocks, seeds["states"], strict=True):
        state = drawn(seed, 1, tokens, width).float()
        block.forward = lambda *arguments, state=state, **named: state
    for block, seed in zip(attachment.side.layers, seeds["mixers"], strict=True):
        block.forward = side_block(drawn(seed, narrow, narrow).float() / 2)
    return attachment, taken


def test_a_ladder_climbs_as_the_authors_and_has_their_gradients(ladder):
    """The authors' T5 stack; its norm and the Llama's are the same."""
    attachment, taken = ladder
    hidden = attachment.base.anatomy.inner(torch.zeros(1, LST["tokens"], dtype=torch.long)).last_hidden_state
    for actual, expected in zip(taken, LST["side_inputs"], strict=True):
        torch.testing.assert_close(actual[0].double(), tensor(expected), **SINGLE)
    torch.testing.assert_close(hidden[0].double(), tensor(LST["hidden"]), **SINGLE)
    (hidden * drawn(LST["seeds"]["upstream"], *hidden.shape).float()).sum().backward()
    torch.testing.assert_close(attachment.alpha.grad.double(), tensor(LST["alpha_gradient"]), **SUMMED)
    for rung, expected in zip(attachment.rungs, LST["rung_bias_gradients"], strict=True):
        torch.testing.assert_close(rung.bias.grad.double(), tensor(expected), **SUMMED)
    torch.testing.assert_close(attachment.entry.bias.grad.double(), tensor(LST["entry_bias_gradient"]), **SUMMED)


def test_the_columns_of_the_embeddings_that_are_kept_are_the_authors():
    """Only these: the authors choose columns anew in each layer, and here one set is chosen (the file says so)."""
    base = tiny_base("llama")
    with torch.no_grad():
        base.anatomy.embedding.weight.copy_(drawn(LST["seeds"]["embedding"], 320, LST["width"]))
    scores = importance(base)[f"{base.anatomy.embedding_path}.weight"]
    assert best(scores, LST["side_width"]).tolist() == LST["kept_columns"]


# P-tuning.


AUTHORS_MODULES = {"table": "embedding.weight", "0": "lstm_head", "1": "mlp_head.0", "3": "mlp_head.2"}


def authors_name(name):
    """Return the authors' name of a parameter of the table, the BiLSTM, or one of the MLP's two layers."""
    module, _, tensor_name = name.removeprefix("encoder.").partition(".")
    return ".".join(filter(None, (AUTHORS_MODULES[module], tensor_name)))


def test_the_encoder_makes_the_authors_rows_and_has_their_gradients():
    attachment = attach(make("p_tuning"), tiny_base("llama"))
    parameters = {authors_name(name): parameter for name, parameter in attachment.params().items()}
    assert parameters.keys() == P_TUNING["seeds"].keys()
    with torch.no_grad():
        for name, parameter in parameters.items():
            scale = P_TUNING["scale_of_embedding" if name == "embedding.weight" else "scale_of_weights"]
            parameter.copy_(drawn(P_TUNING["seeds"][name], *parameter.shape) * scale)
    rows = attachment.make()["embeddings"]
    torch.testing.assert_close(rows.double(), tensor(P_TUNING["rows"]), **SINGLE)
    (rows * drawn(P_TUNING["upstream_seed"], *rows.shape).float()).sum().backward()
    for name, key in (("embedding.weight", "embedding_gradient"), ("mlp_head.2.bias", "last_bias_gradient")):
        torch.testing.assert_close(parameters[name].grad.double(), tensor(P_TUNING[key]), **SUMMED)
    for name, expected in P_TUNING["recurrent_gradient_norms"].items():
        assert float(parameters[name].grad.norm()) == pytest.approx(expected, rel=1e-4), name


def test_virtual_tokens_stand_where_the_authors_put_them():
    """The template for GPT, in which x is the question and y the answer, each of any length."""
    base, task = tiny_base("llama"), tiny_task()
    attachment = attach(make("p_tuning"), base, task)
    (sequence,) = encoder_for(attachment, task).encode([task.train[0]])
    first = base.anatomy.vocabulary
    own = [
        f"h{token - first + 1}" if token >= first else "y" if labelled else "x"
        for token, labelled in zip(sequence.ids, sequence.labelled, strict=True)
    ]
    authors = [place.rstrip("12") if place.startswith("x") else place for place in P_TUNING["order"]]
    assert [place for place, _ in groupby(own)] == [place for place, _ in groupby(authors)]
