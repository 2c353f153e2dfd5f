"""Hostile files are named and left out, at once and without a traceback; what is beside them is read."""

from __future__ import annotations

import io
import logging
import os
import time
import warnings
import zlib
from pathlib import Path

import pytest
from pypdf import PdfWriter

from tunewise.core.errors import DataError
from tunewise.retrieval import documents, parsers
from tunewise.retrieval.documents import read


def skipped(folder: Path, name: str, content: bytes) -> str:
    """Why a file is skipped beside a good one; given alone, it is refused for the same reason."""
    (folder / "good.txt").write_text("good")
    (folder / name).write_bytes(content)
    start = time.process_time()
    reading = read(folder)
    assert time.process_time() - start < 20
    assert [document.text for document in reading.documents] == ["good"]
    ((skipped_name, why),) = reading.skipped
    assert skipped_name == name and why.isprintable() and len(why) < 400
    with pytest.raises(DataError) as caught:
        read(folder / name)
    # What a reader says in brackets can depend on how deep the stack was when it gave up.
    assert why.partition(" (")[0] in str(caught.value) and "; " in str(caught.value)
    return why


def writer() -> PdfWriter:
    pdf_writer = PdfWriter()
    pdf_writer.add_blank_page(100, 100)
    return pdf_writer


def saved(pdf_writer: PdfWriter) -> bytes:
    file = io.BytesIO()
    pdf_writer.write(file)
    return file.getvalue()


def pdf(*objects: bytes) -> bytes:
    """A PDF of numbered objects; the first is its catalogue."""
    body = b"%PDF-1.4\n"
    for number, content in enumerate(objects, 1):
        body += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    return body + b"trailer <</Root 1 0 R>>\nstartxref\n0\n%%EOF"


def stream(data: bytes, filters: bytes = b"") -> bytes:
    return b"<</Length %d %s>>stream\n%s\nendstream" % (len(data), filters, data)


@pytest.mark.parametrize(
    "content, why",
    [
        (b"", "it is empty"),
        (b" \r\n\t", "it holds no text"),
        (b"\x01\x02", "it holds no text"),
        ("text".encode("utf-16"), "it is UTF-16, not UTF-8"),
        ("text".encode("utf-16-be"), "it is not text: there is a NUL byte at byte offset 0"),
        ("caf\u00e9".encode("latin-1"), "it is not UTF-8 (byte 0xe9 at byte offset 3)"),
        (b"\xef\xbb\xbfa\xff", "it is not UTF-8 (byte 0xff at byte offset 4)"),
        (b"\x89PNG\r\n\x1a\n\0\0\0", "it is not text: there is a NUL byte at byte offset 8"),
        (b"\xed\xa0\x80", "it is not UTF-8 (byte 0xed at byte offset 0)"),
    ],
)
@pytest.mark.parametrize("name", ["bad.txt", "bad.md", "bad.html", "bad.jsonl"])
def test_what_is_not_text_is_skipped(tmp_path: Path, name: str, content: bytes, why: str) -> None:
    reason = skipped(tmp_path, name, content)
    if name == "bad.jsonl" and content == b"\x01\x02":
        assert reason == "line 1: not valid JSON"
    else:
        assert reason == why


@pytest.mark.parametrize("name", ["bad.txt", "bad.html", "bad.pdf", "bad.jsonl"])
def test_a_large_file_is_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(documents, "MAX_BYTES", 1000)
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda path: {"good.txt": read_bytes}[path.name](path))
    assert skipped(tmp_path, name, b"x" * 1001) == "its 1,001 bytes are more than 1,000"


def test_the_limit_is_a_hundred_megabytes(tmp_path: Path) -> None:
    with (tmp_path / "a.txt").open("wb") as file:
        file.truncate(100_000_001)  # a hole: no disk is used
    with pytest.raises(DataError, match="its 100,000,001 bytes are more than 100,000,000"):
        read(tmp_path)


def test_an_empty_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no documents; add files with text in them, as \.txt"):
        read(tmp_path)


def test_a_folder_with_nothing_to_use_says_why(tmp_path: Path) -> None:
    for number in range(5):
        (tmp_path / f"{number}.txt").touch()
    with pytest.raises(DataError, match=r"0\.txt: it is empty; 1\.txt: .*; and 2 more"):
        read(tmp_path)


def test_one_name_in_two_folders_is_two_documents(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same.txt").write_text(folder)
    assert [(d.name, d.text) for d in read(tmp_path).documents] == [("a/same.txt", "a"), ("b/same.txt", "b")]


def test_links_are_not_followed_out_of_the_folder(tmp_path: Path) -> None:
    folder, outside = tmp_path / "folder", tmp_path / "folder-beside"
    for path in (folder / "sub", outside):
        path.mkdir(parents=True)
        (path / "text.txt").write_text(path.name)
    (folder / "file.txt").symlink_to(outside / "text.txt")
    (folder / "out").symlink_to(outside)
    (folder / "up").symlink_to("..")
    (folder / "self").symlink_to(".")
    (folder / "circle.txt").symlink_to("circle.txt")
    (folder / "gone.txt").symlink_to("nowhere.txt")
    (folder / "inside.txt").symlink_to("sub/text.txt")
    reading = read(folder)
    assert [(d.name, d.text) for d in reading.documents] == [("inside.txt", "sub"), ("sub/text.txt", "sub")]
    reasons = dict(reading.skipped)
    assert reasons.keys() == {"file.txt", "out", "up", "self", "circle.txt", "gone.txt"}
    assert {reasons[name] for name in ("file.txt", "out", "up")} == {"a link that leaves the folder"}
    assert reasons["self"] == "a link to a folder" and reasons["gone.txt"] == "not a regular file"
    (tmp_path / "link").symlink_to(folder)  # the folder that was asked for may be one itself
    assert read(tmp_path / "link") == reading


def test_pipes_and_unreadable_files_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.txt")
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / "secret.txt").write_text("secret")
    read_bytes = Path.read_bytes

    def refuse(path: Path) -> bytes:
        if path.name == "secret.txt":
            raise PermissionError(13, "Permission denied")
        return read_bytes(path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    expected = (("pipe.txt", "not a regular file"), ("secret.txt", "it cannot be read (Permission denied)"))
    assert read(tmp_path).skipped == expected
    with pytest.raises(DataError, match="not a regular file"):
        read(tmp_path / "pipe.txt")


def test_names_that_cannot_be_cited_are_skipped(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("good")
    for name in (b"a\nb.txt", b"\xff.txt", b"\x1b[31m.txt"):
        Path(os.fsdecode(bytes(tmp_path) + b"/" + name)).write_text("text")
    reading = read(tmp_path)
    assert len(reading.documents) == 1 and len(reading.skipped) == 3
    assert all(name.isprintable() and "control characters or is not UTF-8" in why for name, why in reading.skipped)


def step(here: int, name: str) -> int:
    there = os.open(name, os.O_RDONLY, dir_fd=here)
    os.close(here)
    return there


def test_deep_folders_end(tmp_path: Path) -> None:
    (tmp_path / "good.txt").write_text("good")
    here = os.open(tmp_path, os.O_RDONLY)
    depth = 2500  # deeper than a path can be long, and than Python recurses
    for _ in range(depth):
        os.mkdir("d", dir_fd=here)
        here = step(here, "d")
    reading = read(tmp_path)
    for _ in range(depth):  # shutil, which clears up after tests, does recurse
        here = step(here, "..")
        os.rmdir("d", dir_fd=here)
    os.close(here)
    assert len(reading.documents) == 1 and len(reading.skipped) == 1
    assert "File name too long" in reading.skipped[0][1] and len(reading.skipped[0][0]) <= documents.MAX_NAME + 1


@pytest.mark.parametrize("tag", ["div", "b", "h1", "table", "li", "p", "pre", "font"])
def test_deep_html_is_read(tmp_path: Path, tag: str) -> None:
    depth = 100_000
    (tmp_path / "a.html").write_text(f"<{tag}>" * depth + "found" + f"</{tag}>" * (depth if tag == "div" else 0))
    start = time.process_time()
    assert "found" in read(tmp_path).documents[0].text
    assert time.process_time() - start < 60


@pytest.mark.parametrize("open_end", ["<!--", "<![CDATA[", "<![if", "<!a", "<?", "</a", "<a b='", "<script>", "&#x"])
def test_html_without_an_end_is_read_at_once(tmp_path: Path, open_end: str) -> None:
    (tmp_path / "a.html").write_text("<p>found</p>" + f"{open_end} {'x' * 200} " * 20_000)
    start = time.process_time()
    assert read(tmp_path).documents[0].text.startswith("found")
    assert time.process_time() - start < 20


def test_html_of_too_many_tags_is_skipped(tmp_path: Path) -> None:
    why = "its 200,001 tags and entities are more than 200,000"
    assert skipped(tmp_path, "bad.html", b"<p>" * 200_000 + b"&amp;") == why


def test_html_is_never_traced_or_fetched(tmp_path: Path) -> None:
    page = "<![bad[ <p>a</p> &#xD800;&#99999999999; <base href='file:///etc/'><link href='/etc/passwd'>b"
    (tmp_path / "a.html").write_text(page + "<iframe src='file:///etc/passwd'></iframe>")
    try:
        text = read(tmp_path).documents[0].text
    except DataError as error:
        assert "not readable as HTML" in str(error)
    else:
        assert "root:" not in text and text.encode()


def test_a_parser_that_gives_up_skips_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def give_up(*_: object, **__: object) -> None:
        raise RecursionError("maximum recursion depth exceeded")

    monkeypatch.setattr("bs4.BeautifulSoup.__init__", give_up)
    assert skipped(tmp_path, "bad.html", b"<p>a") == "not readable as HTML (maximum recursion depth exceeded)"
    (tmp_path / "bad.html").unlink()
    monkeypatch.setattr("pypdf.PdfReader.__init__", give_up)
    assert skipped(tmp_path, "bad.pdf", b"%PDF") == "not a readable PDF (maximum recursion depth exceeded)"


CATALOGUE, PAGES = b"<</Type/Catalog/Pages 2 0 R>>", b"<</Type/Pages/Kids[3 0 R]/Count 1>>"
PAGE = b"<</Type/Page/Parent 2 0 R/Contents 4 0 R/Resources<</Font<</F1 5 0 R>>>>>>"
FONT = b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"
BROKEN = {
    "empty head": b"%PDF-1.4\n",
    "not a pdf": b"hello",
    "no catalogue": pdf(),
    "cut": saved(writer())[:200],
    "its own parent": pdf(CATALOGUE, b"<</Type/Pages/Kids[2 0 R]/Count 1>>"),
    "catalogue of itself": pdf(b"1 0 R"),
    "pages that are text": pdf(b"<</Type/Catalog/Pages (text)>>"),
    "a million pages": pdf(CATALOGUE, b"<</Type/Pages/Kids[3 0 R]/Count 1000000000>>", b"null"),
    "deep lists": pdf(CATALOGUE, PAGES, PAGE, stream(b"[" * 50_000), FONT),
    "deep objects": pdf(b"<</Type/Catalog/Pages " + b"<</A" * 20_000),
    "bomb": pdf(CATALOGUE, PAGES, PAGE, stream(zlib.compress(b"0 " * 60_000_000, 9), b"/Filter/FlateDecode"), FONT),
    "a form in itself": pdf(
        CATALOGUE,
        PAGES,
        b"<</Type/Page/Parent 2 0 R/Contents 4 0 R/Resources<</XObject<</A 5 0 R>>>>>>",
        stream(b"/A Do"),
        stream(b"/A Do /A Do", b"/Type/XObject/Subtype/Form/Resources<</XObject<</A 5 0 R>>>>"),
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_pdfs_are_skipped(
    tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        why = skipped(tmp_path, "bad.pdf", BROKEN[name])
    assert why.startswith(("not a readable PDF (", "its pages hold no text"))
    assert not caplog.records and capfd.readouterr() == ("", "")


def test_pypdf_is_as_loud_as_before(tmp_path: Path) -> None:
    logger = logging.getLogger("pypdf")
    before = logger.level
    skipped(tmp_path, "bad.pdf", b"%PDF")
    assert logger.level == before


@pytest.mark.parametrize("password", ["secret", ""])
def test_encrypted_pdfs_are_skipped(tmp_path: Path, password: str) -> None:
    pdf_writer = writer()
    pdf_writer.encrypt(password, owner_password="owner", algorithm="RC4-128")
    assert skipped(tmp_path, "bad.pdf", saved(pdf_writer)) == "it is encrypted"


def test_a_pdf_of_scans_is_skipped(tmp_path: Path) -> None:
    assert skipped(tmp_path, "bad.pdf", saved(writer())) == "its pages hold no text, as scans do"


def test_a_pdf_that_takes_too_long_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parsers, "MAX_SECONDS", -1.0)
    assert skipped(tmp_path, "bad.pdf", saved(writer())) == "its pages hold too much text"


def test_control_characters_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("a\x1b]0;title\x07b\x7f\u009bc\td\r\ne".encode())
    assert read(tmp_path).documents[0].text == "a]0;titlebc\td\ne"
    (tmp_path / "a.txt").unlink()
    (tmp_path / "a.jsonl").write_text(r'{"id": "1", "text": "a\u0000b\ud800c\u001b"}')
    assert read(tmp_path).documents[0].text == "abc"
