"""Virtual tokens in a sequence: ids beyond the vocabulary whose embeddings come from a technique.

The encoder puts them where they belong; the embedding layer of the base looks them up in `table()`. Everything else,
packing, padding and cached generation included, sees ordinary tokens. `mask` and `index` tell where they are in the
current forward pass, for techniques that act on deeper layers too.

In shapes: B rows, T tokens a row, m virtual tokens, P of them in this pass, d the model's width.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from tunewise.core.errors import TechniqueError
from tunewise.engine.vocabulary import require_embeddings

if TYPE_CHECKING:
    from tunewise.contract.attachment import Attachment
    from tunewise.engine.model import Base

_FREQUENT = 5000  # ordinary tokens are drawn from the first entries of the vocabulary, as Lester et al. 2021


class Placeholders:
    """Inserts the virtual tokens of one attachment; `table()` gives their embeddings, (m, d)."""

    def __init__(self, attachment: Attachment, count: int, table: Callable[[], Tensor]) -> None:
        self.base, self.table = attachment.base, table
        name = attachment.recipe.name
        if count > self.base.window // 2:
            raise TechniqueError(
                f"{name} has {count} virtual tokens, more than half of the window of {self.base.window} tokens; use "
                f"fewer ({name}.num_virtual_tokens)"
            )
        # A token of the tokenizer's with such an id would be taken for a placeholder.
        require_embeddings(self.base.name, self.base.tokenizer, self.base.vocabulary)
        self.mask = torch.zeros(1, 1, dtype=torch.bool)
        self.index = torch.zeros(0, dtype=torch.long)
        attachment.hook(self.base.anatomy.embedding.register_forward_pre_hook(self._clamp))
        attachment.hook(self.base.anatomy.embedding.register_forward_hook(self._insert))

    def _clamp(self, module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        first = self.base.anatomy.vocabulary
        self.mask = args[0] >= first  # (B, T)
        self.index = args[0][self.mask] - first  # (P,) rows of the table
        return (args[0].masked_fill(self.mask, 0), *args[1:])

    def _insert(self, module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return self.put(output, self.table()) if len(self.index) or self.base.ranks.builds_alike else output

    def put(self, output: Tensor, rows: Tensor) -> Tensor:
        """Return the layer's output (B, T, n) with the rows of the table (m, n) in the places of virtual tokens."""
        return output.masked_scatter(self.mask[..., None], rows[self.index].to(output.dtype))  # (B, T, n), (P, n)


@torch.no_grad()
def embed(base: Base, ids: list[int]) -> Tensor:
    """Return the embeddings as the model's layer gives them, scaling included; (len(ids), d)."""
    output: Tensor = base.within(lambda: base.anatomy.embedding(torch.tensor([ids], device=base.device)))
    return output[0].float()


def ordinary_tokens(base: Base, count: int, generator: torch.Generator) -> list[int]:
    """Draw ids of ordinary tokens from the frequent ones."""
    special = set(base.tokenizer.all_special_ids)
    limit = min(_FREQUENT, base.anatomy.vocabulary, len(base.tokenizer))
    ordinary = [index for index in range(limit) if index not in special]
    return [ordinary[index] for index in torch.randint(len(ordinary), (count,), generator=generator).tolist()]


def text_tokens(base: Base, text: str, count: int) -> list[int]:
    """Return `count` ids of a text, repeated or truncated."""
    ids = base.tokenizer(text, add_special_tokens=False)["input_ids"]
    return (ids * count)[:count]
