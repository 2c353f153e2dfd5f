"""Files of each kind into documents."""

import io
import json
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pypdf import PdfWriter
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

from tunewise.core.errors import DataError, SettingError
from tunewise.retrieval.documents import Reading, read
from tunewise.retrieval.passage import Document


def write(folder, files):
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def rows(*values):
    return "".join(json.dumps(value) + "\n" for value in values)


def text_of(tmp_path, name, content):
    return read(write(tmp_path, {name: content}) / name).documents[0].text


def pdf(*pages):
    writer = PdfWriter()
    names = {key: NameObject(f"/{key}") for key in ("Type", "Font", "Subtype", "BaseFont", "F1")}
    font = DictionaryObject(
        {
            names["Type"]: names["Font"],
            names["Subtype"]: NameObject("/Type1"),
            names["BaseFont"]: NameObject("/Helvetica"),
        }
    )
    for text in pages:
        page, stream = writer.add_blank_page(300, 300), DecodedStreamObject()
        stream.set_data(f"BT /F1 12 Tf 20 200 Td ({text}) Tj ET".encode())
        page[NameObject("/Contents")] = writer._add_object(stream)
        fonts = DictionaryObject({names["F1"]: font})
        page[NameObject("/Resources")] = DictionaryObject({names["Font"]: fonts})
    file = io.BytesIO()
    writer.write(file)
    return file.getvalue()


def test_a_folder_is_read_in_order_of_names(tmp_path):
    write(tmp_path, {"b.md": "# B\n", "a/c.txt": "c", "a.txt": "a", "B.MD": "big", "a/d.docx": "d", ".git/x.txt": "x"})
    assert read(tmp_path) == Reading(
        (Document("B.MD", "big"), Document("a.txt", "a"), Document("a/c.txt", "c"), Document("b.md", "# B\n")),
        (("a/d.docx", 'the ending ".docx" is not one that is read'),),
    )
    assert read(str(tmp_path)) == read(tmp_path)


def test_one_file_has_its_own_name(tmp_path):
    write(tmp_path, {"a/b.txt": "text", "a/c.jsonl": rows({"id": "1", "text": "one"}, {"id": 2, "text": "two"})})
    assert read(tmp_path / "a/b.txt").documents == (Document("b.txt", "text"),)
    assert read(tmp_path / "a/c.jsonl").documents == (Document("1", "one"), Document("2", "two"))
    assert [document.name for document in read(tmp_path).documents] == ["a/b.txt", "a/c.jsonl#1", "a/c.jsonl#2"]


@pytest.mark.parametrize(
    "title, text, expected",
    [
        ("Brakes", "They squeak.", "# Brakes\n\nThey squeak."),
        ("Brakes", "Brakes squeak.", "Brakes squeak."),
        ("Brakes", "# Brakes\nThey squeak.", "# Brakes\nThey squeak."),
        (" Two\nlines ", "text", "# Two lines\n\ntext"),
        ("", "text", "text"),
        (None, "text", "text"),
        ("Title alone", " ", "Title alone"),
    ],
)
def test_a_rows_title_becomes_its_heading(tmp_path, title, text, expected):
    assert text_of(tmp_path, "a.jsonl", rows({"id": "1", "text": text, "title": title})) == expected


def test_rows_without_text_are_skipped_and_named(tmp_path):
    write(tmp_path, {"a.jsonl": rows({"id": "1", "text": ""}, {"id": "2", "text": "two", "url": "u"}) + "\n"})
    assert read(tmp_path / "a.jsonl") == Reading((Document("2", "two"),), (("1", "it holds no text"),))


@pytest.mark.parametrize(
    "line, problem",
    [
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ("[1]", "the row is a list, not an object"),
        ('{"text": "a"}', '"id" is missing, not text'),
        ('{"id": true, "text": "a"}', '"id" is true or false, not text'),
        ('{"id": "b"}', '"text" is missing, not text'),
        ('{"id": "b", "text": 3}', '"text" is a number, not text'),
        ('{"id": "b", "text": "a", "title": ["t"]}', '"title" is a list, not text'),
        ('{"id": "a", "text": "again"}', 'the id "a" is that of line 1 already'),
        ('{"id": " ", "text": "a"}', 'the id " " cannot be cited'),
        (r'{"id": "\ud800", "text": "a"}', r'the id "\ud800" cannot be cited'),
        (r'{"id": "a\nb", "text": "a"}', r'the id "a\nb" cannot be cited'),
    ],
)
def test_a_broken_row_refuses_its_file(tmp_path, line, problem):
    write(tmp_path, {"a.jsonl": rows({"id": "a", "text": "a"}) + "\n" + line, "b.txt": "b"})
    with pytest.raises(DataError) as caught:
        read(tmp_path / "a.jsonl")
    assert f"a.jsonl line 3: {problem}; " in str(caught.value) and caught.value.line == 3
    assert read(tmp_path) == Reading((Document("b.txt", "b"),), (("a.jsonl", f"line 3: {problem}"),))


def test_two_documents_of_one_name_are_not_read(tmp_path):
    write(tmp_path, {"a.jsonl": rows({"id": "b.txt", "text": "row"}), "a.jsonl#b.txt": "file"})
    reading = read(tmp_path)
    assert reading.documents == (Document("a.jsonl#b.txt", "row"),)
    assert reading.skipped == (("a.jsonl#b.txt", 'there is a document "a.jsonl#b.txt" already'),)


def test_text_has_one_kind_of_line_end_and_no_mark(tmp_path):
    assert text_of(tmp_path, "a.txt", b"\xef\xbb\xbfa\r\nb\rc\fd\te\x1b[0m\x00"[:-1]) == "a\nb\nc\nd\te[0m"


@given(text=st.text(min_size=1))
def test_texts_come_back_but_for_controls(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("text") / "a.jsonl"
    path.write_text(json.dumps({"id": "a", "text": "x" + text}))
    document = read(path).documents[0]
    assert document.fingerprint  # it can be written as UTF-8
    expected = [c for c in text if c.isspace() or unicodedata.category(c) not in {"Cc", "Cs"}]
    assert "".join(document.text.split()) == "x" + "".join("".join(expected).split())


def test_html_becomes_markdown(tmp_path):
    page = """<!DOCTYPE html><html><head><title>Site</title><style>p {}</style></head><body>
        <nav>Home</nav><script>if (1 < 2) {}</script><template>t</template><!-- comment -->
        <h1>Manual <em>of</em>
        bikes</h1><p>One &amp; two<br>three</p>loose<h2>Brakes<a></a></h2><ul><li>front</li><li>back</li></ul>
        <table><tr><th>part</th><td>size</td></tr><tr><td>disc</td><td></td><td>160&nbsp;mm</td></tr></table>
        <pre># not a heading\n  ``` \n</pre><h3></h3><div><div>end</div></div></body></html>"""
    assert text_of(tmp_path, "a.html", page) == (
        "# Manual of bikes\n\nOne & two\nthree\n\nloose\n\n## Brakes\n\nfront\nback\n\npart | size\ndisc | 160 mm\n\n"
        "````\n# not a heading\n  ``` \n````\n\nend"
    )


@pytest.mark.parametrize(
    "page, expected",
    [
        ("<title>Site</title><p>text", "# Site\n\ntext"),
        ("<title>Site</title><h2>Part</h2>text", "# Site\n\n## Part\n\ntext"),
        ("<h1>Open<p>one<p>two", "# Open\n\none\n\ntwo"),
        ("<h2><div>In a box</div></h2>text", "## In a box\n\ntext"),
        ("text <!-- open", "text"),
        ("a < b &lt; c", "a < b < c"),
        ("<p>one</b></p>two</div>", "one\n\ntwo"),
    ],
)
def test_html_as_it_is_written(tmp_path, page, expected):
    assert text_of(tmp_path, "a.htm", page) == expected


@given(paragraphs=st.lists(st.lists(st.from_regex("[a-z]{1,8}", fullmatch=True), min_size=1), min_size=1))
def test_html_keeps_words_and_paragraphs(tmp_path_factory, paragraphs):
    path = tmp_path_factory.mktemp("html") / "a.html"
    path.write_text("\n".join(f"<p>{'<b> </b>'.join(words)}</p>" for words in paragraphs))
    assert read(path).documents[0].text == "\n\n".join(" ".join(words) for words in paragraphs)


def test_pdf_pages_are_apart(tmp_path):
    assert text_of(tmp_path, "a.PDF", pdf("The first page.", "", "The last.")) == "The first page.\n\nThe last."


@pytest.mark.parametrize("name, library, content", [("a.html", "bs4", "<p>a"), ("a.pdf", "pypdf", pdf("a"))])
def test_a_missing_library_is_named(tmp_path, monkeypatch, name, library, content):
    write(tmp_path, {name: content, "b.txt": "b"})
    monkeypatch.setitem(sys.modules, library, None)
    for path in (tmp_path, tmp_path / name):
        with pytest.raises(SettingError, match=r"pip install 'tunewise\[rag\]'"):
            read(path)
    assert read(tmp_path / "b.txt").documents


@pytest.mark.parametrize("path", ["nowhere", "nowhere.txt", "a\0b", "x" * 5000])
def test_a_missing_path_says_what_to_do(tmp_path, path):
    with pytest.raises(DataError, match="check the path"):
        read(tmp_path / path)


def test_one_file_of_another_kind_says_what_is_read(tmp_path):
    write(tmp_path, {"a.docx": "a"})
    with pytest.raises(DataError, match=r'\.docx" is not one that is read; save it as \.txt, .* or \.jsonl'):
        read(tmp_path / "a.docx")
