"""A tokenizer larger than the embeddings is refused wherever a model is read, or the embeddings are resized."""

import copy

import pytest
import torch

from tunewise.advice.plan.weightless import consulted, outline, sketch
from tunewise.core.errors import ModelError
from tunewise.engine.model import Base, load_base
from tunewise.engine.vocabulary import rows_needed, tokens_without_embeddings
from tunewise.techniques.registry import make
from tunewise.testing import attach, tiny_base

ADDED = torch.tensor([[0, 5, 320, 321, 7]])


def folder_with(path, tokens, architecture="llama"):
    """A model folder to whose tokenizer tokens were added, and whose embeddings stayed as they were."""
    base = tiny_base(architecture)
    tokenizer = copy.deepcopy(base.tokenizer)
    tokenizer.add_tokens([f"<{index}>" for index in range(len(tokenizer), 320)])
    tokenizer.add_tokens(tokens)
    base.model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(params=["llama", "llama-tied", "phi", "opt"])
def added(request, tmp_path):
    return folder_with(tmp_path / "added", ["<tool>", "<result>"], request.param)


@torch.no_grad()
def logits_of(model):
    return model(input_ids=ADDED).logits[0]


@pytest.mark.parametrize("read", [load_base, sketch, outline, consulted])
def test_ids_beyond_the_embeddings_are_refused_with_the_remedy(read, tmp_path):
    folder = str(folder_with(tmp_path / "added", ["<tool>", "<result>"]))
    with pytest.raises(
        ModelError, match=r'"<tool>" \(id 320\) and 1 more, up to id 321.*320 rows.*--resize-embeddings'
    ):
        read(folder)


@pytest.mark.parametrize("read", [load_base, sketch, outline, consulted])
def test_the_flag_gives_them_embeddings(read, tmp_path):
    folder = str(folder_with(tmp_path / "added", ["<tool>", "<result>"]))
    model = read(folder, resize_embeddings=True)
    assert (model.config.vocab_size if read is sketch else model.vocabulary) == 322


def test_a_smaller_tokenizer_is_fine(tmp_path):
    base = tiny_base()
    base.model.resize_token_embeddings(384)
    base.model.save_pretrained(tmp_path)
    base.tokenizer.save_pretrained(tmp_path)
    loaded = load_base(tmp_path)
    assert loaded.vocabulary == 384 and loaded.embedding_rows is None
    assert load_base(tmp_path, resize_embeddings=True).vocabulary == 384
    assert tokens_without_embeddings(loaded.tokenizer, 384) is None and rows_needed(loaded.tokenizer) == len(
        loaded.tokenizer
    )


def test_new_rows_are_the_mean_of_the_others_every_time(added):
    torch.manual_seed(1)
    random_state = torch.get_rng_state()
    base, again = load_base(added, resize_embeddings=True), load_base(added, resize_embeddings=322)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert base.fingerprint == again.fingerprint and base.embedding_rows == 322
    for module in (base.anatomy.embedding, base.anatomy.head):
        assert module.weight.shape[0] == 322
        assert torch.allclose(module.weight[320:], module.weight[:320].mean(0), atol=1e-6)
    assert base.anatomy.tied == tiny_base(added_architecture(base)).anatomy.tied
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert logits_of(base.model).shape == (5, 322)


def added_architecture(base):
    kind = base.model.config.model_type
    return "llama-tied" if kind == "llama" and base.anatomy.tied else kind


def test_an_attached_base_is_not_resized():
    base = tiny_base()
    attach(make("lora"), base)
    with pytest.raises(ModelError, match="before anything is attached"):
        base.resize_embeddings(400)


def test_a_placeholder_is_never_a_token(tmp_path):
    base = tiny_base()
    tokenizer = copy.deepcopy(base.tokenizer)
    tokenizer.add_tokens([f"<{index}>" for index in range(len(tokenizer), 320)])
    tokenizer.add_tokens(["<tool>"])
    with pytest.raises(ModelError, match='"<tool>"'):
        attach(make("prompt_tuning"), Base(base.model, tokenizer))
