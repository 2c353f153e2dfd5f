"""Renders chat templates as `transformers` does, under a limit of steps and of size.

A chat template is a program of whoever made the model's folder. Jinja's sandbox keeps it away from files and from
Python. What it may cost is counted here: the code that Jinja makes of it asks `tunewise.engine.template_allowance`
before every pass of a loop, every call, filter and operator, and for every text that it writes. Filters and methods
that no chat template needs are not there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import lru_cache, wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError, TemplateError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedEscapeFormatter, SandboxedFormatter
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer
from markupsafe import Markup

from tunewise.core.errors import DataError, ModelError
from tunewise.core.text import one_line
from tunewise.engine import template_allowance as allowance
from tunewise.engine.template_allowance import TemplateLimitError

if TYPE_CHECKING:
    from jinja2 import Template
    from transformers import PreTrainedTokenizerBase

_LONGEST = 1 << 16  # characters of a template; those of large models have 20,000
_DATE_FORMAT = 200  # characters
_REASONING = ("reasoning_content", "thinking", "reasoning")  # what a turn's reasoning is called
_FILTERS = frozenset(
    {"abs", "attr", "batch", "capitalize", "center", "count", "d", "default", "dictsort", "e", "escape", "first"}
    | {"float", "forceescape", "format", "groupby", "indent", "int", "items", "join", "last", "length", "list", "lower"}
    | {"map", "max", "min", "reject", "rejectattr", "replace", "reverse", "round", "safe", "select", "selectattr"}
    | {"slice", "sort", "string", "sum", "title", "tojson", "trim", "truncate", "unique", "upper", "wordcount"}
)
_LITERALS = (nodes.TemplateData, nodes.Const)
_BUILT_IN = (str, bytes, int, float, list, tuple, dict)
_N = TypeVar("_N", bound=nodes.Node)


class _Counting(NodeTransformer):
    """Puts the counting of costs into a template's syntax tree."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        cost = _step_cost(node.body)
        if node.test is not None:
            node.test = nodes.And(_call("spend", node, nodes.Const(allowance.STEP)), node.test)
        node.body.insert(0, _step(node, cost))
        return node

    def visit_Macro(self, node: _N) -> _N:
        self.generic_visit(node)
        body: list[nodes.Node] = node.body  # type: ignore[attr-defined]
        body.insert(0, _step(node, _step_cost(body)))
        return node

    visit_Block = visit_CallBlock = visit_Macro

    def visit_Output(self, node: nodes.Output) -> nodes.Output:
        self.generic_visit(node)
        node.nodes = [each if isinstance(each, _LITERALS) else _call("show", each) for each in node.nodes]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Concat:
        self.generic_visit(node)
        node.nodes = [_call("show", each) for each in node.nodes]
        return node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)
        sides = (node.expr, *(operand.expr for operand in node.ops))
        if len(node.ops) == 1 and node.ops[0].op in ("eq", "ne") and any(isinstance(s, nodes.Const) for s in sides):
            return node  # what stands in the template is short
        node.expr = _call("read", node.expr)
        for operand in node.ops:
            operand.expr = _call("search" if operand.op in ("in", "notin") else "read", operand.expr)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Getitem:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _call("copy", node.node)
        return node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Dict:
        self.generic_visit(node)
        for pair in node.items:
            pair.key = _call("read", pair.key)
        return node


def _call(name: str, node: nodes.Node, *args: nodes.Expr) -> nodes.Call:
    """Return the call of a function of the environment, of a node or of what is given."""
    called = nodes.EnvironmentAttribute(name, lineno=node.lineno)
    return nodes.Call(called, list(args) or [node], [], None, None, lineno=node.lineno)


def _step(node: nodes.Node, cost: int) -> nodes.ExprStmt:
    return nodes.ExprStmt(_call("spend", node, nodes.Const(cost)), lineno=node.lineno)


def _step_cost(body: Sequence[nodes.Node]) -> int:
    """Return what one pass costs: a step, and the text that stands in the template."""
    texts = [len(text.data) for node in body for text in node.find_all(nodes.TemplateData)]
    texts += [len(c.value) for node in body for c in node.find_all(nodes.Const) if isinstance(c.value, str)]
    return allowance.STEP + sum(texts)


class _CountingGenerator(CodeGenerator):
    """Writes the code of a template with the counting in it."""

    def visit_Template(self, node: nodes.Template, frame: Frame | None = None) -> None:
        _Counting().visit(node)
        node.set_environment(self.environment)
        super().visit_Template(node, frame)

    def visit_Call(self, node: nodes.Call, frame: Frame, forward_caller: bool = False) -> None:
        if not isinstance(node.node, nodes.EnvironmentAttribute):
            super().visit_Call(node, frame, forward_caller=forward_caller)
            return
        self.write(f"environment.{node.node.name}(")  # not through the sandbox, which would count the counting
        self.visit(node.args[0], frame)
        self.write(")")


class _Generation(Extension):
    """Reads `{% generation %}`, which marks what an assistant says, as its content."""

    tags = frozenset({"generation"})  # type: ignore[assignment]  # Jinja only looks into it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("said"), [], [], body).set_lineno(line)

    @staticmethod
    def said(caller: Callable[[], str]) -> str:
        """Return what stands in the block."""
        return caller()


class _Limited(SandboxedFormatter):
    def format_field(self, value: Any, format_spec: str) -> Any:
        allowance.field_format(value, format_spec)
        return super().format_field(value, format_spec)

    def convert_field(self, value: Any, conversion: Any) -> Any:
        return super().convert_field(allowance.show(value), conversion)


class _LimitedEscaping(_Limited, SandboxedEscapeFormatter):
    pass


class _Namespace(Namespace):
    def __init__(*args: Any, **named: Any) -> None:
        values = dict(*args[1:], **named)
        for name in values:
            _require_public(name)
        Namespace.__init__(args[0], values)

    def __setitem__(self, name: str, value: Any) -> None:
        _require_public(name)
        super().__setitem__(name, value)

    def __repr__(self) -> str:
        return "<Namespace>"  # and not what is in it, which may be other namespaces


def _require_public(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace has no {name!r}")


class _Dictionaries:
    """Is what templates call `dict`."""

    def __call__(self, *args: Any, **named: Any) -> dict[Any, Any]:
        allowance.apply("unique", False, *args or ({},), *named.values())
        return dict(*args, **named)

    def fromkeys(self, keys: Any, value: Any = None) -> dict[Any, Any]:
        """Return a dictionary with these keys and one value."""
        allowance.apply("unique", False, keys)
        return dict.fromkeys(keys, value)


def _to_json(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise(message: Any) -> None:
    raise TemplateError(str(allowance.show(message)))


def _now(format: str) -> str:
    if len(format) > _DATE_FORMAT:
        raise TemplateLimitError
    return datetime.now().strftime(format)


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, with what chat templates of `transformers` use, and with the counting of costs."""

    code_generator_class = _CountingGenerator
    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)
    # What the code of a template calls.
    spend, show, read = staticmethod(allowance.spend), staticmethod(allowance.show), staticmethod(allowance.read)
    search, copy = staticmethod(allowance.search), staticmethod(allowance.copy)

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"])
        tests: dict[str, Callable[..., Any]] = cast(Any, self.tests)
        filters: dict[str, Callable[..., Any]] = {**self.filters, "tojson": _to_json}
        self.filters = {name: _counted(name, filters[name], allowance.SHALLOW_FILTERS) for name in sorted(_FILTERS)}
        self.tests = {name: _counted(name, test, allowance.SHALLOW_TESTS) for name, test in tests.items()}
        kept = {name: self.globals[name] for name in ("cycler", "joiner", "range")}
        functions = {"dict": _Dictionaries(), "namespace": _Namespace, "raise_exception": _raise, "strftime_now": _now}
        self.globals = {**kept, **functions}

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute `left operator right`, once it is paid for."""
        allowance.operate(operator, left, right)
        return super().call_binop(context, operator, left, right)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """Tell whether an attribute may be used; of texts, numbers and containers, those that are counted."""
        if isinstance(obj, _BUILT_IN) and attr not in allowance.METHODS:
            return False
        return super().is_safe_attribute(obj, attr, value)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """Return an entry; what it is looked up by is hashed, and shown where there is none."""
        return super().getitem(obj, argument if isinstance(argument, int | slice) else allowance.show(argument))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Return `str.format` of a text with its widths checked."""
        if super().wrap_str_format(value) is None:
            return None
        text, of_mapping = value.__self__, value.__name__ == "format_map"

        def formatted(*args: Any, **named: Any) -> str:
            allowance.spend(len(text))
            formatter = _LimitedEscaping(self, escape=text.escape) if isinstance(text, Markup) else _Limited(self)
            if of_mapping:
                [named], args = args, ()
            return type(text)(formatter.vformat(text, args, named))

        return formatted

    def call(self, context: Context, obj: Any, /, *args: Any, **named: Any) -> Any:
        """Call an object of a template, once it is paid for."""
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, _BUILT_IN):
            args = tuple(list(arg) if hasattr(arg, "__next__") else arg for arg in args)
            allowance.call_method(owner, obj.__name__, args, named)
        elif isinstance(owner, LoopContext):
            allowance.apply("changed", False, None, *args)
        else:
            allowance.call_function((*args, *named.values()))
        return super().call(context, obj, *args, **named)


def _counted(name: str, function: Callable[..., Any], shallow: frozenset[str]) -> Callable[..., Any]:
    """Return a filter or a test that asks for its cost first."""
    is_shallow = name in shallow
    leading = 1 if getattr(function, "jinja_pass_arg", None) is not None else 0  # the context or the environment

    @wraps(function)
    def counted(*args: Any, **named: Any) -> Any:
        values = args[leading:]
        if name in allowance.GATHERED and values and hasattr(values[0], "__next__"):
            values = (list(values[0]), *values[1:])
        allowance.apply(name, is_shallow, *(values or (None,)), **named)
        result = function(*args[:leading], *values, **named)
        return allowance.counted(result) if hasattr(result, "__next__") else result

    return counted


@lru_cache(maxsize=32)
def _compiled(text: str) -> Template:
    if len(text) > _LONGEST:
        raise TemplateLimitError
    return BoundedEnvironment().from_string(text)


def render(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[Mapping[str, object]],
    *,
    tools: list[object] | None,
    generate: bool,
    options: Mapping[str, object],
) -> str:
    """Return a conversation as the tokenizer's chat template writes it.

    Args:
        tokenizer: the tokenizer, with its template and its special tokens.
        turns: the turns, of plain JSON values; what is None in one is left out.
        tools: schemas of the tools, or None.
        generate: whether the beginning of an answer follows the last turn.
        options: further variables of the template.

    Raises:
        DataError: the template refuses the conversation.
        ModelError: it takes more steps or memory than the conversation needs.
    """
    try:
        if not turns:
            raise ValueError("it has no turn")
        variables: dict[str, object] = {**tokenizer.special_tokens_map, **options}
        variables |= {"messages": [_turn(turn) for turn in turns], "tools": tools, "documents": None}
        variables["add_generation_prompt"] = generate
        with allowance.allowing(variables):
            return _compiled(cast(Any, tokenizer).get_chat_template(None, tools)).render(variables)
    except TemplateLimitError as error:
        raise ModelError(
            "the model's chat template was stopped, as it takes more steps or memory than a conversation needs; use "
            "the tokenizer and the template of the model's own publisher"
        ) from error
    except Exception as error:  # the template is the model's own code and may raise anything
        raise DataError(
            f"the model's chat template refuses a conversation: {one_line(error)}",
            remedy="check the roles and their order",
        ) from error


def _turn(turn: Mapping[str, object]) -> dict[str, object]:
    """Return a turn without what is None, and with its reasoning under each name that templates read."""
    kept = {name: value for name, value in turn.items() if value is not None}
    reasoning = next((kept[name] for name in _REASONING if name in kept), None)
    return kept if reasoning is None else {"thinking": reasoning, **kept, "reasoning_content": reasoning}
