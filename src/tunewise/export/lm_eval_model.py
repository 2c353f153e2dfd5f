"""An adaptation as a model of EleutherAI's lm-evaluation-harness, which scores it by its own tasks.

`model_class()` is registered there as "tunewise" and takes `adaptation` and, where the base is elsewhere, `model`:

    lm_eval.simple_evaluate(model=model_class()("runs/lora"), tasks=["arc_easy"])
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypedDict

from tunewise.adaptation.artifact import Adaptation, load
from tunewise.core.errors import SettingError, TunewiseError
from tunewise.core.extras import require
from tunewise.core.text import first_line
from tunewise.export.raw_text import RawText

_ROOM = 256  # tokens of an answer where a task names no number


class TaskScores(TypedDict):
    """What the harness reports of one task: its version and each metric by the harness's own name."""

    task: str
    version: str
    examples: int
    metrics: dict[str, float]


@cache
def model_class() -> Any:
    """Return the class that the harness calls, registered under the name "tunewise".

    Raises:
        SettingError: lm-eval is not installed.
    """
    require("the evaluation harness", "lm_eval")
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    @register_model("tunewise")
    class TunewiseLM(TemplateLM):
        """Answers the harness's requests with an adaptation."""

        def __init__(
            self, adaptation: str | Path | Adaptation, model: str | None = None, as_given: bool = False, **_: Any
        ) -> None:
            super().__init__()
            loaded = adaptation if isinstance(adaptation, Adaptation) else load(adaptation, model=model)
            self.raw = RawText(loaded, as_given=as_given)
            self.tokenizer = self.raw.encoder.tokenizer
            self._device = self.raw.base.device

        @property
        def eot_token_id(self) -> int:
            """The token that stands before a text without a context."""
            return int(self.tokenizer.eos_token_id or 0)

        @property
        def prefix_token_id(self) -> int:
            """The token that begins a sequence, or else the one that ends it."""
            first = self.tokenizer.bos_token_id
            return int(first) if first is not None else self.eot_token_id

        @property
        def tokenizer_name(self) -> str:
            """The name that the harness keeps cached requests under."""
            return self.raw.base.name.replace("/", "__")

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            """Tokenize a text."""
            return self.raw.ids(string, start=add_special_tokens is not False)

        def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
            """Write a conversation in the model's chat template."""
            return str(
                self.tokenizer.apply_chat_template(
                    chat_history,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=not add_generation_prompt,
                )
            )

        def _loglikelihood_tokens(
            self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **_: Any
        ) -> list[tuple[float, bool]]:
            return self.raw.likelihoods([(context, continuation) for _, context, continuation in requests])

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
            """Return the log-likelihood of whole texts, in windows that each predict every token once."""
            totals = []
            for request in requests:
                windows = get_rolling_token_windows(
                    token_list=self.tok_encode(request.args[0]),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.raw.encoder.limit - 1,
                    context_len=1,
                )
                totals.append(sum(self.raw.log_likelihoods([make_disjoint_window(window) for window in windows])))
            return totals

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            """Continue each context greedily."""
            answers = []
            for context, options in (request.args for request in requests):
                if options.get("do_sample") and options.get("temperature", 1.0):
                    raise SettingError(
                        "answers are greedy here, and the task asks for sampling; set do_sample to false"
                    )
                until = options.get("until") or []
                texts = [until] if isinstance(until, str) else list(until)
                room = int(options.get("max_gen_toks") or options.get("max_new_tokens") or _ROOM)
                answers.append(self.raw.continued(self.tok_encode(context), texts, room))
            return answers

    return TunewiseLM


def evaluate_tasks(
    loaded: Adaptation,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    num_fewshot: int | None = None,
    include_path: Path | None = None,
    chat: bool = False,
    as_given: bool = False,
) -> list[TaskScores]:
    """Score an adaptation by tasks of the harness.

    A task is code and data of its author, which the harness runs and downloads.

    Args:
        loaded: the adaptation.
        tasks: the harness's names.
        limit: examples of each task; None: all.
        num_fewshot: worked examples in each prompt; None: as each task says.
        include_path: a folder with definitions of further tasks.
        chat: write prompts in the model's chat template.
        as_given: leave out what the technique would write into the prompt, instead of refusing it.

    Raises:
        SettingError: lm-eval is not installed, or there is no such task.
        TunewiseError: the harness failed, for example to download a data set.
    """
    model = model_class()(loaded, as_given=as_given)
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    further = str(include_path) if include_path is not None else None
    manager = TaskManager(include_path=further, include_defaults=False) if further else None
    if manager is None or not set(tasks) <= set(manager.all_tasks):
        manager = TaskManager(include_path=further)  # reads the thousands of the harness's own, which takes a while
    unknown = [name for name in tasks if name not in manager.all_tasks]
    if unknown or not tasks:
        raise SettingError(
            f"the harness has no task {', '.join(unknown) or 'without a name'}; lm_eval ls tasks lists them"
        )
    try:
        results: Mapping[str, Any] = simple_evaluate(
            model=model,
            tasks=list(tasks),
            limit=limit,
            num_fewshot=num_fewshot,
            task_manager=manager,
            apply_chat_template=chat,
            log_samples=False,
            bootstrap_iters=0,
        )
    except TunewiseError:
        raise
    except Exception as error:  # the tasks' own code, and the client that fetches their data
        raise TunewiseError(f"the harness could not run {', '.join(tasks)} ({first_line(error)})") from error
    counts: Mapping[str, Mapping[str, int]] = results.get("n-samples", {})
    return [
        {
            "task": name,
            "version": str(results.get("versions", {}).get(name, "")),
            "examples": int(counts.get(name, {}).get("effective", 0)),
            "metrics": {key: float(value) for key, value in values.items() if _is_score(key, value)},
        }
        for name, values in results["results"].items()
    ]


def _is_score(key: str, value: object) -> bool:
    return "," in key and not key.partition(",")[0].endswith("_stderr") and isinstance(value, int | float)
