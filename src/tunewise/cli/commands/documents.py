"""Commands that make an index of documents and search it."""

from __future__ import annotations

from typing import Annotated

import typer

from tunewise.cli.console import echo, print_json, print_text
from tunewise.cli.options import Json, grouped_options
from tunewise.cli.progress_display import progress_display
from tunewise.core.errors import SettingError
from tunewise.core.logs import quiet
from tunewise.core.progress import for_row


@grouped_options
def index(
    documents: Annotated[str, typer.Argument(help="Folder or file: .txt .md .html .pdf .jsonl.")],
    out: Annotated[
        str, typer.Option("--out", "--index", "-o", help="Folder for the index, or qdrant://host:port/name.")
    ],
    embedder: Annotated[str, typer.Option(help="Folder or Hub id of a sentence-transformers model.")],
    embedder_dtype: Annotated[
        str, typer.Option(help="Type that the embedder computes in: float32 or bfloat16.")
    ] = "float32",
    chunk_size: Annotated[int, typer.Option(help="Maximum number of tokens per passage.")] = 256,
    chunk_overlap: Annotated[int, typer.Option(help="Tokens that a passage repeats from the one before.")] = 32,
    as_json: Json = False,
) -> None:
    """Create or update an index of documents; unchanged documents are not embedded again."""
    quiet()
    from tunewise.retrieval.build import build

    with progress_display() as display:
        report = for_row(display, out)
        result = build(documents, out, embedder, embedder_dtype, chunk_size, chunk_overlap, report)
    if as_json:
        print_json(result)
        return
    counts = ", ".join(f"{value:,} {name}" for name, value in result["documents"].items())
    print_text(f"{result['index']}: documents {counts}; {result['passages']:,} passages")
    for name, reason in result["skipped"]:
        echo(f"skipped {name}: {reason}", err=True)


def search(
    index: Annotated[str, typer.Argument(help="Folder of an index, or qdrant://host:port/name.")],
    question: Annotated[str, typer.Argument(help="What to look for.")],
    k: Annotated[int, typer.Option(help="Maximum number of passages.")] = 5,
    mode: Annotated[str, typer.Option(help="Kind of search: bm25, dense or hybrid.")] = "hybrid",
    embedder: Annotated[
        str | None, typer.Option(help="Embedder that the index was built with; for dense and hybrid search.")
    ] = None,
    floor: Annotated[float, typer.Option(help="Passages that fit less than this are left out (0 to 1).")] = 0.0,
    as_json: Json = False,
) -> None:
    """Show the passages of an index that fit a question, each with its document and span."""
    if mode not in ("bm25", "dense", "hybrid"):
        raise SettingError(f'mode is "{mode}" but must be bm25, dense or hybrid')
    quiet()
    from tunewise.retrieval.build import find

    hits = find(index, question, k, mode, floor, embedder)
    if as_json:
        print_json([{"source": hit.passage.id, "score": hit.score, "text": hit.passage.text} for hit in hits])
        return
    for number, hit in enumerate(hits, 1):
        print_text(f"[{number}] {hit.passage.id}  {hit.score:.4f}\n{hit.passage.indexed}\n")
    if not hits:
        print_text("no passage fits the question")
