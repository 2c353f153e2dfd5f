"""The command that opens the studio; the page itself is tested in a browser."""

import importlib.util

import pytest

pytestmark = pytest.mark.fast


def test_a_dry_run_says_where_it_would_be(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("studio", "mine", "--port", 0, "--dry-run")
    assert result.code == 0 and result.out.startswith("would serve mine at http://127.0.0.1:")
    assert not (tmp_path / "mine").exists()


def test_a_port_in_use_is_said(refused, tmp_path):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert "choose another --port" in refused("studio", tmp_path, "--port", taken.getsockname()[1])


def test_a_missing_extra_is_named(refused, tmp_path, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "nicegui" else found(name, *rest)
    )
    assert "pip install 'tunewise[studio]'" in refused("studio", tmp_path)
