"""Every way to fine-tune a language model behind one interface, measured on your own task.

The names below are the public interface; each is imported when it is first used, so that `import tunewise` is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tunewise.core.addresses import register
from tunewise.core.version import __version__ as __version__

if TYPE_CHECKING:
    from tunewise.adaptation.artifact import Adaptation, load
    from tunewise.adaptation.fit import fit
    from tunewise.advice.advise import advise
    from tunewise.comparison.budget import Budget
    from tunewise.comparison.compare import compare
    from tunewise.contract.attachment import Attachment
    from tunewise.contract.places import Places
    from tunewise.contract.settings import setting
    from tunewise.contract.technique import Citation, Technique
    from tunewise.data.task import Example, Message, Task
    from tunewise.engine.model import Base, load_base
    from tunewise.fitting.settings import TrainSettings
    from tunewise.techniques.registry import all_techniques, make

_HOMES = {
    "adaptation.artifact": ("Adaptation", "load"),
    "adaptation.fit": ("fit",),
    "advice.advise": ("advise",),
    "comparison.budget": ("Budget",),
    "comparison.compare": ("compare",),
    "contract.attachment": ("Attachment",),
    "contract.places": ("Places",),
    "contract.settings": ("setting",),
    "contract.technique": ("Citation", "Technique"),
    "data.task": ("Example", "Message", "Task"),
    "engine.model": ("Base", "load_base"),
    "fitting.settings": ("TrainSettings",),
    "techniques.registry": ("all_techniques", "make"),
}
register("world", lambda: import_module("tunewise.data.world"))

__all__ = [
    "Adaptation",
    "Attachment",
    "Base",
    "Budget",
    "Citation",
    "Example",
    "Message",
    "Places",
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
    if name == "world":
        return import_module(f"{__name__}.data.world")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
