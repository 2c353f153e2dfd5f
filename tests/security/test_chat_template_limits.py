"""Chat templates that would hang, or fill the memory, end in one sentence; others render as in `transformers`."""

import resource
import threading
from contextlib import contextmanager
from copy import deepcopy
from pathlib import Path

import pytest

from chat_layouts import LAYOUTS, model_of
from tunewise.core.errors import DataError, ModelError
from tunewise.data.examples import Example, Message
from tunewise.engine.conversation import ChatTemplate
from tunewise.engine.template_environment import render
from tunewise.testing import tiny_base

pytestmark = pytest.mark.figure("S6")

SHOWN = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
LOOP = "{% for a in range(100000) %}"
# A list that holds the one before it twice, forty times: a few kilobytes, and a million million entries.
DOUBLED = "{% set n = namespace(x=['a']) %}{% for i in range(40) %}{% set n.x = [n.x, n.x] %}{% endfor %}"
PAIRED = DOUBLED.replace("[n.x, n.x]", "(n.x, n.x)").replace("['a']", "('a',)")
DEEP = "{% set n = namespace(x=()) %}" + LOOP + "{% set n.x = (n.x,) %}{% endfor %}"
LONG = "{% set s = 'ab' * 500000 %}"
CHAINED = "range(100000)" + "|map('string')" * 60
HOSTILE = {
    "loops": LOOP * 4 + "{% endfor %}" * 4,
    "loops that write": LOOP + LOOP + "x{% endfor %}{% endfor %}",
    "loops that write much": LOOP + "x" * 50_000 + "{% endfor %}",
    "loops that drop all": "{% for a in range(100000) if range(100000)|select('none')|list %}{% endfor %}",
    "loops that test": LOOP + "{% for b in range(100000) if false %}{% endfor %}{% endfor %}",
    "recursive loops": "{% for a in range(9) recursive %}{% if loop.depth < 9 %}{{ loop(range(9)) }}{% endif %}"
    "{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "calls": "{% macro f(n) %}{{ caller() }}{{ caller() }}{% if n %}{% call f(n - 1) %}{{ n }}{% endcall %}"
    "{% endif %}"
    "{% endmacro %}" + LOOP + "{% call f(40) %}a{% endcall %}{% endfor %}",
    "blocks": "{% block a %}"
    + LOOP
    + "{{ self.b() }}{% endfor %}{% endblock %}{% block b %}"
    + LOOP
    + "{% endfor %}{% endblock %}",
    "product": "{{ 'a' * 10**10 }}",
    "product in a condition": "{% if 'a' * 10**10 == 'b' %}{% endif %}",
    "product of a list": "{{ ([1] * 10**9)|length }}",
    "doubling by +": "{% set n = namespace(s='ab') %}" + LOOP + "{% set n.s = n.s + n.s %}{% endfor %}",
    "doubling by ~": "{% set n = namespace(s='ab') %}" + LOOP + "{% set n.s = n.s ~ n.s %}{% endfor %}",
    "doubling by join": "{% set n = namespace(s='ab') %}" + LOOP + "{% set n.s = [n.s, n.s]|join %}{% endfor %}",
    "doubling by replace": "{% set n = namespace(s='ab') %}"
    + LOOP
    + "{% set n.s = n.s.replace('a', n.s) %}{% endfor %}",
    "doubling by format": "{% set n = namespace(s='ab') %}" + LOOP + "{% set n.s = '{0}{0}'.format(n.s) %}{% endfor %}",
    "doubling by %": "{% set n = namespace(s='ab') %}" + LOOP + "{% set n.s = '%s%s' % (n.s, n.s) %}{% endfor %}",
    "doubling by blocks": "{% set a = 'ab' %}" + "{% set a %}{{ a }}{{ a }}{% endset %}" * 60,
    "slices that are kept": LONG + "{% set n = namespace(l=[]) %}" + LOOP + "{% set n.l = n.l + [s[a:]] %}{% endfor %}",
    "powers": "{{ 10**(10**10) }}",
    "powers in turn": "{% set n = namespace(x=7) %}" + LOOP + "{% set n.x = n.x * n.x %}{% endfor %}",
    "width of center": "{{ 'a'|center(10**10) }}",
    "width of a method": "{{ 'a'.ljust(10**10) }}",
    "width by name": "{{ 'a'['zfill'](10**10) }}",
    "width of format": "{{ '{:>10000000000}'.format(1) }}",
    "width in a field": "{{ '{:{w}}'.format(1, w=10**10) }}",
    "width of a mapping": "{{ '{a:>10000000000}'.format_map({'a': 1}) }}",
    "width of %": "{{ '%10000000000d' % 1 }}",
    "width of % given": "{{ '%*d' % (10**10, 1) }}",
    "width of % in a filter": "{{ '%10000000000d'|format(1) }}",
    "width of % in a test": "{{ '%10000000000d' is even }}",
    "width of tabs": "{{ '\t'.expandtabs(10**10) }}",
    "width of an indent": "{{ 'a\nb'|indent(10**10) }}",
    "width of JSON": "{{ [[1]]|tojson(indent=10**10) }}",
    "width of JSON in order": "{{ [[1]]|tojson(false, 10**10) }}",
    "width by map": "{{ ['a']|map('center', 10**10)|list }}",
    "rounding": "{{ 5|round(-10**9) }}",
    "rounding of a text": "{{ 'a'|round(10, 'floor') }}",
    "rounding of a list": "{{ [1]|round(10, 'floor') }}",
    "batches": "{{ [1]|batch(10**10, 'a')|list }}",
    "slices": "{{ [1]|slice(10**10)|list }}",
    "separators": LONG + "{{ ('a,' * 100000).split(',')|join(s) }}",
    "separators by name": LONG + "{{ ('a,' * 100000).split(',')|join(d=s) }}",
    "a list shown": DOUBLED + "{{ n.x }}",
    "a list as text": DOUBLED + "{{ (n.x|string)|length }}",
    "a list as JSON": DOUBLED + "{{ n.x|tojson }}",
    "a list in a text": DOUBLED + "{{ 'a' ~ n.x }}",
    "a list in %": DOUBLED + "{{ '%s' % n.x }}",
    "a list in a field": DOUBLED + "{{ '{}'.format(n.x) }}",
    "a list in an error": DOUBLED + "{{ raise_exception(n.x) }}",
    "a list as a name": DOUBLED + "{{ {}[n.x] }}",
    "a list that is not there": DOUBLED + "{{ [1].index(n.x) }}",
    "lists compared": DOUBLED
    + DOUBLED.replace("namespace", "namespace").replace("n.x", "m.x").replace("set n", "set m")
    + "{{ n.x == m.x }}",
    "lists in lists": DOUBLED + "{{ n.x in [n.x[0], [n.x]] }}",
    "lists changed": DOUBLED + "{% for a in [1, 2] %}{{ loop.changed(n.x) }}{% endfor %}",
    "a tuple as a key": PAIRED + "{{ {n.x: 1}|length }}",
    "a tuple in a dictionary": PAIRED + "{{ n.x in messages[0] }}",
    "a tuple got": PAIRED + "{{ messages[0].get(n.x) }}",
    "a tuple as an entry": PAIRED + "{{ messages[0][n.x] }}",
    "tuples made one": PAIRED + "{{ [n.x]|unique|list }}",
    "a tuple in dict": PAIRED + "{{ dict([(n.x, 1)]) }}",
    "a deep tuple": DEEP + "{{ {}[n.x] }}",
    "the same hashes": "{% set n = namespace(l=[]) %}{% for i in range(90000) %}"
    "{% set n.l = n.l + [i * 2305843009213693951] %}"
    "{% endfor %}{{ dict.fromkeys(n.l)|length }}",
    "chained generators": LOOP + "{{ " + CHAINED + "|list|length }}{% endfor %}",
    "sums of lists": "{{ ([[1] * 1000] * 100000)|sum(start=[])|length }}",
    "stripping": LONG + LOOP + "{% set t = s.strip(s) %}{% endfor %}",
    "searching from the end": "{{ ('a' * 1000000).rfind('b' + 'a' * 500000) }}",
    "searching": LONG + LOOP + "{{ 'abc' in s }}{% endfor %}",
    "splitting": "{% set s = 'a,' * 1000000 %}" + LOOP + "{% set t = s.split(',') %}{% endfor %}",
    "integers of texts": "{% set x = ('f' * 400000)|int(0, 16) %}" + LOOP + "{{ x == x + 1 }}{% endfor %}",
    "length": "{{ '' }}" * 20_000,
}
REFUSED = {
    "random words": "{{ lipsum(10**9) }}",
    "links": "{{ 'a'|urlize }}",
    "nesting": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "many operators": "{{ 1" + "+1" * 5000 + " }}",
    "many conditions": "{% if 0 %}" + "{% elif 0 %}" * 3000 + "{% endif %}",
    "endless recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "files": "{% include '/etc/passwd' %}",
    "Python": "{{ ''.__class__.__mro__ }}",
    "bytes": "{{ 'a'.encode() }}",
    "names of a namespace": "{% set n = namespace() %}{% set n.__init__ = 1 %}",
    "namespaces shown": "{% set n = namespace(x=1) %}{% for i in range(40) %}{% set n = namespace(a=n, b=n) %}"
    "{% endfor %}"
    "{{ raise_exception(n) }}",
}


@contextmanager
def limited_memory(more):
    """Let this process take so many bytes more than it has."""
    statistics = Path("/proc/self/statm")
    if not statistics.exists():  # such a limit is Linux's
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(statistics.read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def with_template(text):
    tokenizer = deepcopy(tiny_base().tokenizer)
    tokenizer.chat_template = text
    return tokenizer


@pytest.mark.parametrize("name", HOSTILE)
def test_what_would_not_end_is_one_sentence(name, cases):
    tokenizer = with_template(HOSTILE[name] + SHOWN)
    with (
        limited_memory(1 << 29),  # beyond which Python raises another error
        pytest.raises(ModelError, match="chat template was stopped, as it takes more steps or memory"),
    ):
        ChatTemplate(tokenizer)
    cases.passed()


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_run_is_one_sentence(name, cases):
    with pytest.raises((DataError, ModelError)) as refusal:
        ChatTemplate(with_template(REFUSED[name] + SHOWN))
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 500
    cases.passed()


def test_a_template_that_waits_for_a_word_is_stopped_there():
    template = ChatTemplate(
        with_template("{% if 'now' in messages[0].content %}" + HOSTILE["loops"] + "{% endif %}" + SHOWN)
    )
    quiet = Example((Message("user", "later"),), "yes")
    assert template.render(quiet, ["later"], reasons=False).prompt.startswith("user: later")
    with pytest.raises(ModelError, match="was stopped"):
        template.render(Example((Message("user", "now"),), "yes"), ["now"], reasons=False)
    assert template.render(quiet, ["later"], reasons=False).prompt.startswith("user: later"), "it goes on with the next"


def test_renderings_side_by_side_do_not_share_what_they_may_cost():
    tokenizer, refused = (
        with_template("{% if messages[0].content == 'now' %}" + HOSTILE["loops"] + "{% endif %}" + SHOWN),
        [],
    )

    def hostile():
        with pytest.raises(ModelError):
            rendered(tokenizer, [{"role": "user", "content": "now"}])
        refused.append(True)

    thread = threading.Thread(target=hostile)
    thread.start()
    texts = {rendered(tokenizer, [{"role": "user", "content": "later"}]) for _ in range(50)}
    thread.join()
    assert refused and texts == {"user: later\n"}


def rendered(tokenizer, turns, tools=None, generate=False, **options):
    return render(tokenizer, turns, tools=tools, generate=generate, options=options)


QUESTION = {"role": "user", "content": "Hi {there} 100% <b>  "}
CALL = {
    "type": "function",
    "id": "call00001",
    "function": {"name": "find", "arguments": {"name": "Bö", "n": [1, 2.5, None]}},
}
CONVERSATIONS = {
    "question": [QUESTION],
    "answer": [QUESTION, {"role": "assistant", "content": "Ho\n"}],
    "system": [{"role": "system", "content": "Be brief."}, QUESTION],
    "call": [QUESTION, {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "7"}],
    "reasoning": [QUESTION, {"role": "assistant", "content": "Ho", "reasoning_content": "why"}, QUESTION],
    "reasoning by another name": [QUESTION, {"role": "assistant", "content": "Ho", "thinking": "why"}, QUESTION],
    "long": [
        {**QUESTION, "content": f"{'word ' * 3000}{i}"} if i % 2 == 0 else {"role": "assistant", "content": "x"}
        for i in range(61)
    ],
    "nothing in a turn": [{**QUESTION, "name": None}],
}
TOOLS = [{"type": "function", "function": {"name": "find", "description": "Find.", "parameters": {"type": "object"}}}]
# What templates of well-known models use beyond the layouts: macros that call themselves, namespaces that gather lists,
# slices, filters with arguments, methods, marks of what an assistant says, continued loops, dates and formats.
FEATURES = {
    "macros": "{% macro show(v, level=0) %}{% if v is mapping %}{ {%- for k, e in v|dictsort %}{{ k }}"
    ":{{ show(e, level + 1) }}"
    "{{ ',' if not loop.last }}{% endfor %}}{% elif v is string %}{{ v|trim|upper }}{% elif v is sequence %}"
    "[{% for e in v %}{{ show(e) }}{% endfor %}]{% else %}{{ v|tojson }}{% endif %}{% endmacro %}"
    "{% for m in messages %}{{ show(m) }}{% endfor %}{{ show(tools or []) }}",
    "namespaces": "{% set n = namespace(kept=[], text='', last=none) %}{% for m in messages[::-1] %}"
    "{% set n.kept = n.kept + [m.role] %}{% set n.text = n.text ~ loop.index ~ m.content[:3] %}"
    "{% if n.last is none and m.role == 'user' %}{% set n.last = loop.revindex0 %}{% endif %}{% endfor %}"
    "{{ n.kept }}{{ n.text }}{{ n.last }}{{ n.kept|join(', ') }}{{ n.kept|unique|list }}"
    "{{ ('user' in n.kept)|string }}",
    "filters": "{% for m in messages if m.role != 'system' %}{{ m.content|replace('Hi', 'Ho')|indent(2)|title }}"
    "{{ '%-8s|%5.1f%%' % (m.role, 2.5) }}{{ '%s' |format(m.role) }}{{ m.role|center(12) }}{{ m|length }}{% endfor %}"
    "{{ messages|map(attribute='role')|list|tojson }}{{ messages|selectattr('role', 'equalto', 'user')|list|length }}"
    "{{ messages|rejectattr('tool_calls', 'defined')|map(attribute='content')|join('; ') }}"
    "{{ tools|tojson(indent=2) }}"
    "{{ [3, 1, 2]|sort|reverse|list }}{{ [3, 1]|sum }}{{ 7.345|round(1) }}{{ '12'|int + 3 }}"
    "{{ messages|first|items|list }}"
    "{{ [1, 2, 3, 4]|batch(2)|list }}{{ x|default('none given') }}{{ messages|groupby('role')|length }}",
    "methods": "{% for m in messages %}{{ m.get('name', 'nobody') }}"
    "{{ m.content.split(' ')[0].strip('H').rstrip().lower() }}"
    "{{ '{:>9}|{r!r}'.format(m.role, r=m.role) }}{{ m.content.startswith('Hi') }}{{ m.content.rfind('e') }}"
    "{% for k, v in m.items() %}{{ k }}{% endfor %}{{ ','.join(m.keys()) }}{{ m.content.removeprefix('Hi')[1:4] }}"
    "{{ loop.cycle('a', 'b') }}{{ loop.changed(m.role) }}{{ 2 ** 8 // 3 % 7 }}{{ -(m.content|length) }}{% endfor %}",
    "marks": "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}{{ bos_token }}"
    "{% generation %}"
    "{{ m.content }}{{ eos_token }}{% endgeneration %}{% if loop.index > 20 %}{% break %}{% endif %}{% endfor %}"
    "{{ m is defined }}{{ documents is none }}{{ add_generation_prompt }}",
    "sets": "{% set text %}{% for m in messages %}{{ m.thinking or m.content }}|{% endfor %}{% endset %}"
    "{{ text|trim('|') }}"
    "{% filter upper %}{{ text }}{% endfilter %}{% set d = dict(a=1, **{'b': 2}) %}{{ d }}{{ d.a }}"
    "{{ {'k': [1]}['k'][0] }}"
    "{% set a, b = (1, 'x') %}{{ b * 3 ~ a }}{{ range(3)|list }}{{ (1, 'a') }}{{ strftime_now('%Y') }}"
    "{{ [1, 2] == [1, 2] }}",
    "refusals": "{% if messages|length > 1 %}{{ raise_exception('Only one turn, not ' ~ messages|length) }}"
    "{% endif %}ok",
    "loops": "{% macro tree(v) %}{% for e in v recursive %}{{ e if e is not iterable or e is string else loop(e) }}"
    "{% else %}empty{% endfor %}{% endmacro %}{{ tree([1, [2, [3, 'x']], []]) }}{% for m in messages|reverse %}"
    "{{ loop.previtem.role if loop.previtem }}{{ loop.length }}{% endfor %}{% with a = 1 %}{{ a }}{% endwith %}"
    "{% call(x) tree2() %}{{ x }}{% endcall %}".replace("tree2()", "twice()").join(
        ["{% macro twice() %}{{ caller(1) }}{{ caller(2) }}{% endmacro %}", ""]
    ),
}
TEMPLATES = {**{name: layout.template for name, layout in LAYOUTS.items() if layout.template}, **FEATURES}


@pytest.mark.parametrize("name", TEMPLATES)
def test_templates_render_as_transformers_renders_them(name, cases):
    tokenizer = deepcopy(model_of(LAYOUTS.get(name, LAYOUTS["llama-3"])).tokenizer)
    tokenizer.chat_template = TEMPLATES[name]
    refused = 0
    for turns in CONVERSATIONS.values():
        if name == "parts":
            turns = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
        for tools in (None, TOOLS):
            for generate in (False, True):
                named = {"add_generation_prompt": generate, "tokenize": False, "enable_thinking": False}
                try:
                    expected = tokenizer.apply_chat_template(turns, tools=tools, **named)
                except Exception as error:
                    refused += 1
                    with pytest.raises(DataError) as refusal:
                        rendered(tokenizer, turns, tools, generate, enable_thinking=False)
                    assert " ".join(str(error).split()) in str(refusal.value)
                else:
                    assert rendered(tokenizer, turns, tools, generate, enable_thinking=False) == expected
                cases.passed()
    assert refused < 4 * len(CONVERSATIONS), "some are rendered"


def test_several_templates_by_name_are_chosen_as_transformers_chooses_them():
    tokenizer = with_template({"default": "plain {{ messages[0].content }}", "tool_use": "tools {{ tools|length }}"})
    assert rendered(tokenizer, [QUESTION]) == "plain Hi {there} 100% <b>  "
    assert rendered(tokenizer, [QUESTION], TOOLS) == "tools 1"
