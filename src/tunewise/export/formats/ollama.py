"""A GGUF file with the Modelfile from which Ollama creates a model, in the prompt format that was trained.

Run `ollama create NAME -f Modelfile` in the folder. The template is in Ollama's language (Go's): made from the model's
chat template by rendering it around marks, or from the adaptation's prompt template where there is none.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tunewise.core.errors import DataError, TechniqueError
from tunewise.data.task import Example, Message
from tunewise.export.format import ExportOptions, Written
from tunewise.export.formats.gguf import FILE, GgufFormat
from tunewise.fitting.scoring import encoder_for

if TYPE_CHECKING:
    from tunewise.adaptation.artifact import Adaptation
    from tunewise.engine.encoding import Encoder

# Marks of Unicode's private use area, which a template does not contain.
_SYSTEM, _USER, _ANSWER = "\ue000system\ue001", "\ue000user\ue001", "\ue000answer\ue001"


class OllamaFormat(GgufFormat):
    """Writes a GGUF file and a Modelfile."""

    name = "ollama"
    summary = "a GGUF file with a Modelfile for Ollama"

    def write(self, loaded: Adaptation, folder: Path, options: ExportOptions) -> Written:
        """Write both files."""
        text = modelfile(loaded)
        written = super().write(loaded, folder, options)
        (folder / "Modelfile").write_text(text, "utf-8")
        return Written((*written.notes, "To use it: ollama create NAME -f Modelfile, in the folder."))


def modelfile(loaded: Adaptation) -> str:
    """Write the Modelfile of an adaptation: greedy decoding, its template, and the texts that end an answer."""
    encoder = encoder_for(loaded.attachment, loaded.style)
    stops = [encoder.spell(stop) for stop in sorted(encoder.ends.stops)]
    stops += [loaded.stop] if loaded.stop and not encoder.chat else []
    lines = [f"FROM ./{FILE}", f'TEMPLATE """{template(encoder)}"""', "PARAMETER temperature 0"]
    lines += [f"PARAMETER num_ctx {loaded.attachment.base.window}"]
    lines += ["PARAMETER stop " + '"' + text.replace("\n", "\\n").replace('"', '\\"') + '"' for text in stops]
    return "\n".join(lines) + "\n"


def template(encoder: Encoder) -> str:
    """Write the prompt format in Ollama's template language.

    It has `.Prompt`, `.Response`, and `.System` where the model takes a system message.

    Raises:
        TechniqueError: the format contains text that would end or alter the template.
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
            'the adaptation cannot be exported to ollama: its template contains """ or {{, which end or alter a '
            "Modelfile's; use gguf"
        )
    return text.replace(_SYSTEM, "{{ .System }}").replace(_USER, "{{ .Prompt }}") + "{{ .Response }}"


def _with_system(encoder: Encoder) -> str | None:
    """Render a prompt with a system message; None where the model takes none."""
    try:
        prompt = _rendered(encoder, [Message("system", _SYSTEM), Message("user", _USER)])
    except DataError:
        return None
    return prompt if _SYSTEM in prompt else None


def _rendered(encoder: Encoder, messages: list[Message]) -> str:
    """Render a prompt without its beginning-of-sequence token, which Ollama adds itself."""
    prompt, _ = encoder.text(Example(tuple(messages), _ANSWER))
    tokenizer = encoder.tokenizer
    adds_bos = list(tokenizer("a")["input_ids"])[:1] == [tokenizer.bos_token_id]
    return prompt.removeprefix(tokenizer.bos_token) if adds_bos and tokenizer.bos_token else prompt


FORMAT = OllamaFormat()
