"""A GGUF file and the Modelfile that Ollama makes a model of it with, in the prompt's form that was trained.

`ollama create NAME -f Modelfile` in the folder. The template is Ollama's own (Go's): made from the model's chat
template by rendering it around marks, or from the adaptation's prompt template where there is none.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tunewise.core.errors import TechniqueError
from tunewise.data.task import Example, Message
from tunewise.export.format import Asked, Written
from tunewise.export.formats.gguf import FILE, Gguf
from tunewise.fitting.scoring import encoder_for

if TYPE_CHECKING:
    from tunewise.adaptation.artifact import Adaptation
    from tunewise.engine.encoding import Encoder

_SYSTEM, _USER, _ANSWER = "\ue000system\ue001", "\ue000user\ue001", "\ue000answer\ue001"


class Ollama(Gguf):
    """A GGUF file with a Modelfile."""

    name = "ollama"
    summary = "a GGUF file with a Modelfile for Ollama"

    def write(self, loaded: Adaptation, folder: Path, asked: Asked) -> Written:
        """Write both."""
        text = modelfile(loaded)
        written = super().write(loaded, folder, asked)
        (folder / "Modelfile").write_text(text, "utf-8")
        return Written((*written.notes, "To use it: ollama create NAME -f Modelfile, in the folder."))


def modelfile(loaded: Adaptation) -> str:
    """The Modelfile of an adaptation: greedy, with its template and what ends an answer."""
    encoder = encoder_for(loaded.attachment, loaded.style)
    stops = [] if encoder.eos is None else [str(encoder.tokenizer.decode([encoder.eos]))]
    stop = loaded.record.get("style", {}).get("stop")
    stops += [stop] if stop and not encoder.chat else []
    lines = [f"FROM ./{FILE}", f'TEMPLATE """{template(encoder)}"""', "PARAMETER temperature 0"]
    lines += [f"PARAMETER num_ctx {loaded.attachment.base.window}"]
    lines += ["PARAMETER stop " + '"' + text.replace("\n", "\\n").replace('"', '\\"') + '"' for text in stops]
    return "\n".join(lines) + "\n"


def template(encoder: Encoder) -> str:
    """Ollama's template: `.System`, where the model takes one, `.Prompt`, and `.Response` as it was trained.

    Raises:
        TechniqueError: the text has what would end or alter the template.
    """
    alone = _rendered(encoder, [Message("user", _USER)])
    text = alone
    if encoder.chat:
        with_system = _with_system(encoder)
        if with_system is not None and alone is not None and with_system.endswith(alone):
            head = with_system.removesuffix(alone)
            text = "{{ if .System }}" + head + "{{ end }}" + alone
        elif with_system is not None:
            text = "{{ if .System }}" + with_system + "{{ else }}" + alone + "{{ end }}"
    if '"""' in text or "{{" in alone:
        raise TechniqueError(
            'the adaptation cannot be exported to ollama: its template holds """ or {{, which end or alter a '
            "Modelfile's; use gguf"
        )
    return text.replace(_SYSTEM, "{{ .System }}").replace(_USER, "{{ .Prompt }}") + "{{ .Response }}"


def _with_system(encoder: Encoder) -> str | None:
    """The rendered prompt with a system message, or None where the model takes none."""
    from tunewise.core.errors import DataError

    try:
        found = _rendered(encoder, [Message("system", _SYSTEM), Message("user", _USER)])
    except DataError:
        return None
    return found if _SYSTEM in found else None


def _rendered(encoder: Encoder, messages: list[Message]) -> str:
    """The prompt as text, less the start mark, which Ollama puts itself."""
    before, _ = encoder.text(Example(tuple(messages), _ANSWER))
    tokenizer = encoder.tokenizer
    adds = list(tokenizer("a")["input_ids"])[:1] == [tokenizer.bos_token_id]
    return before.removeprefix(tokenizer.bos_token or "") if adds and tokenizer.bos_token else before


FORMAT = Ollama()
