"""Text for people."""

import pytest

from tunewise.core.text import model_name


@pytest.mark.parametrize(
    ("name", "local", "shown"),
    [
        ("world", False, "world"),
        ("org/name", False, "org/name"),
        ("models/stories-3m", True, "stories-3m"),
        ("/data/models/stories-3m/", False, "stories-3m"),
        ("./stories-3m", False, "stories-3m"),
        ("~someone/stories-3m", False, "stories-3m"),
        ("a/b/c", False, "c"),
        ("/models/\x1b[31mred", False, "\\x1b[31mred"),
    ],
)
def test_names_of_models(name, local, shown):
    assert model_name(name, local=local) == shown


def test_a_folder_that_exists_is_shown_by_its_last_part(tmp_path, monkeypatch):
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert model_name("models/mine") == "mine"
    monkeypatch.chdir(tmp_path / "models" / "mine")
    assert model_name(".") == "mine"
