"""Every way to fine-tune a language model behind one interface, measured on your own task.

The names below are the public interface; each is imported when it is first used, so that `import tunewise` is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tunewise.adaptation import Adaptation, load
    from tunewise.comparison import compare
    from tunewise.consulting import advise
    from tunewise.fitting import fit
    from tunewise.model import Base, load_base
    from tunewise.registry import all_techniques, make
    from tunewise.rows import Budget
    from tunewise.task import Example, Message, Task
    from tunewise.technique import Attachment, Citation, Technique, setting
    from tunewise.train import TrainSettings

__version__ = "0.1.0"
_HOMES = {
    "adaptation": ("Adaptation", "load"),
    "comparison": ("compare",),
    "consulting": ("advise",),
    "fitting": ("fit",),
    "model": ("Base", "load_base"),
    "task": ("Example", "Message", "Task"),
    "registry": ("all_techniques", "make"),
    "rows": ("Budget",),
    "technique": ("Attachment", "Citation", "Technique", "setting"),
    "train": ("TrainSettings",),
}
__all__ = [
    "Adaptation",
    "Attachment",
    "Base",
    "Budget",
    "Citation",
    "Example",
    "Message",
    "Task",
    "Technique",
    "TrainSettings",
    "advise",
    "all_techniques",
    "compare",
    "fit",
    "load",
    "load_base",
    "make",
    "setting",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            value = getattr(import_module(f"{__name__}.{home}"), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
