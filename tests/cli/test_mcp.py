"""The commands as tools of the Model Context Protocol, asked by the SDK's own client."""

import json
import subprocess
import sys

import anyio
import pytest
from mcp.client import Client

from tunewise.cli import mcp_server
from tunewise.cli.main import app
from tunewise.core.errors import TunewiseError


def asked(call):
    """What a client of the server gets."""

    async def session():
        async with Client(mcp_server.server(app)) as client:
            return await call(client)

    return anyio.run(session)


def test_every_tool_has_the_options_of_its_command():
    tools = {tool.name: tool for tool in asked(lambda client: client.list_tools()).tools}
    assert [*tools] == [*mcp_server.COMMANDS]
    fields = tools["fit"].input_schema["properties"]
    assert {"technique", "model", "data", "out", "learning_rate", "warmup_steps", "set", "bf16"} <= {*fields}
    assert not {"config", "as_json", "json", "yes"} & {*fields}
    assert {"technique", "model", "data", "out"} <= {*tools["fit"].input_schema["required"]}
    assert "Learning rate" in fields["learning_rate"]["description"]
    assert all(tool.description for tool in tools.values())


def test_a_tool_runs_its_command(labels):
    result = asked(lambda client: client.call_tool("check", {"data": str(labels)}))
    assert not result.is_error
    shown = result.structured_content["result"]
    words = [sys.executable, "-m", "tunewise.cli", "check", "--data", str(labels), "--json"]
    assert shown == json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)


def test_a_wrong_request_is_told_in_the_command_s_own_words(tmp_path):
    result = asked(lambda client: client.call_tool("check", {"data": str(tmp_path / "nowhere.jsonl")}))
    assert result.is_error and "nowhere.jsonl" in result.content[0].text and "Traceback" not in result.content[0].text


@pytest.mark.parametrize("value", ["--help", "-m", "--out=/tmp/x"])
def test_a_value_never_becomes_an_option(value):
    options = mcp_server.options_of(mcp_server.command(app, "fit"))
    with pytest.raises(TunewiseError, match="begins with a dash"):
        mcp_server.words_of(options, {"technique": value})
    assert mcp_server.words_of(options, {"technique": "lora", "data": value}) == ["lora", f"--data={value}"]
    words = mcp_server.words_of(options, {"set": ["lora.r=2", value], "bf16": True, "resume": False, "seed": 3})
    assert words == ["--set=lora.r=2", f"--set={value}", "--bf16", "--seed=3"]


@pytest.mark.parametrize(("given", "words"), [(True, ["--shard"]), (False, ["--no-shard"]), (None, [])])
def test_an_option_that_can_be_ruled_out_is(given, words):
    options = mcp_server.options_of(mcp_server.command(app, "fit"))
    assert mcp_server.words_of(options, {"shard": given}) == words
