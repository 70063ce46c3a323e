"""Word, EPUB, HTML and PDF: their text is read as a text file is, in a process with limits; what is damaged is refused."""

import io
import random
import zipfile

import pytest
from cases import check_each
from pypdf import PdfWriter

from persona.errors import InputError, PersonaError
from persona.store.pairs import Pair
from persona.write.importers import ImportOptions, registry
from persona.write.importers.text_source import open_source

pytestmark = pytest.mark.slow  # each file starts a process

TALK = ["Bob: What is under the bridge?", "Ann: Water & mud,\nmostly.", "Bob: And the rest?", "Ann: Trolls."]
WANTED = [("What is under the bridge?", "Water & mud, mostly."), ("And the rest?", "Trolls.")]


def packed(**members: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name.replace("__", "/").replace("_x_", "."), text)
    return out.getvalue()


def escape(text: str) -> str:
    return text.replace("&", "&amp;")


def docx(paragraphs) -> bytes:
    runs = "".join(
        "<w:p><w:pPr/><w:r><w:t xml:space='preserve'>"
        + escape(p).replace("\n", "</w:t><w:br/><w:t>")
        + "</w:t></w:r><w:del><w:r><w:delText>NO</w:delText></w:r></w:del></w:p>"
        for p in paragraphs
    )
    space = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
    return packed(word__document_x_xml=f"<w:document xmlns:w='{space}'><w:body>{runs}</w:body></w:document>")


def html(paragraphs) -> str:
    body = "".join(f"<p>{escape(p).replace(chr(10), '<br>')}</p>\n" for p in paragraphs)
    return f"<!DOCTYPE html><html><head><title>NO</title><style>NO</style></head><body>{body}<script>NO</script></body></html>"


def epub(paragraphs) -> bytes:
    half = len(paragraphs) // 2
    return packed(
        **{"META-INF__container_x_xml": '<container xmlns="urn:oasis:names:tc:opendocument:xmlns:container"><rootfiles><rootfile full-path="OEBPS/book.opf"/></rootfiles></container>'},
        OEBPS__book_x_opf='<package xmlns="http://www.idpf.org/2007/opf"><manifest><item id="b" href="two.xhtml"/><item id="a" href="text/one%20x.xhtml"/></manifest><spine><itemref idref="a"/><itemref idref="b"/></spine></package>',
        OEBPS__two_x_xhtml=html(paragraphs[half:]),
        **{"OEBPS__text__one x_x_xhtml": html(paragraphs[:half])},
    )  # fmt: skip


def pdf(*pages: list[str]) -> bytes:
    """Pages of lines in a font that every reader has."""
    contents = ["BT /F 12 Tf 72 720 Td 14 TL " + " ".join(f"({line}) Tj T*" for line in page) + " ET" for page in pages]
    kids = " ".join(f"{4 + 2 * n} 0 R" for n in range(len(pages)))
    objects = ["<< /Type /Catalog /Pages 2 0 R >>", f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
               "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]  # fmt: skip
    for n, content in enumerate(contents):
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Resources << /Font << /F 3 0 R >> >> /Contents {5 + 2 * n} 0 R >>"
        )
        objects.append(f"<< /Length {len(content)} >>\nstream\n{content}\nendstream")
    out, places = b"%PDF-1.4\n", []
    for number, made in enumerate(objects, 1):
        places.append(len(out))
        out += f"{number} 0 obj\n{made}\nendobj\n".encode()
    table = "".join(f"{place:010} 00000 n \n" for place in places)
    head = f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{table}"
    return out + f"{head}trailer << /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{len(out)}\n%%EOF\n".encode()


PAGES = ([*TALK[0:1], "Ann: Water & mud,", "mostly.", "1"], [*TALK[2:], "- 2 -"])
TELEGRAM = "<!DOCTYPE html><html><body>" + "".join(
    f'<div class="message {"service" if not who else "default"}"><div class="body">'
    + (f'<div class="pull_right date details" title="01.05.2026 10:0{n}:00 UTC+01:00">10:0{n}</div>' if who else "")
    + (f'<div class="from_name">{who}</div>' if who and who != "joined" else "")
    + (f'<div class="text">{text}</div></div></div>' if who else f"{text}</div></div>")
    for n, (who, text) in enumerate([("", "1 May"), ("Bob", "What is"), ("joined", "under <a>the</a> bridge?"), ("Ann", "Water."), ("", "pinned"), ("Bob", "And?"), ("Ann", "Trolls.<br>Two.")])
) + "</body></html>"  # fmt: skip


def read(folder, name, data, *speakers):
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    opened = open_source(path)
    format = registry.detect_format(opened)
    found = list(registry.read_source(opened, format, ImportOptions(speakers=speakers or ("Ann",))))
    return format, [(p.instruction, p.output) for p in found if isinstance(p, Pair)]


def test_the_text_of_a_document_is_read_as_text(tmp_path):
    cases = {"x.docx": docx(TALK), "x.epub": epub(TALK), "x.html": html(TALK), "x.htm": html(TALK).encode("utf-16"),
             "x.pdf": pdf(*PAGES)}  # fmt: skip

    def check(name):
        assert read(tmp_path, name, cases[name]) == ("screenplay", WANTED)

    check_each([(name,) for name in cases], check)


def test_a_pdf_without_text_says_why(tmp_path):
    (tmp_path / "scan.pdf").write_bytes(pdf([], ["3"]))
    with pytest.raises(InputError, match=r"scan.pdf: its pages are pictures, without text. Run a text recognition"):
        open_source(tmp_path / "scan.pdf")
    writer = PdfWriter(io.BytesIO(pdf(*PAGES)))
    writer.encrypt("secret", algorithm="RC4-128")
    writer.write(tmp_path / "locked.pdf")
    with pytest.raises(InputError, match=r"locked.pdf: it is protected with a password. Save a copy without one"):
        open_source(tmp_path / "locked.pdf")
    (tmp_path / "cut.pdf").write_bytes(b"%PDF-1.7\n%\xe2\xe3")
    with pytest.raises(InputError, match="cut.pdf: no pdf file that can be read"):
        open_source(tmp_path / "cut.pdf")


def test_a_chat_that_telegram_exported_as_html(tmp_path):
    assert read(tmp_path, "messages.html", TELEGRAM) == (
        "screenplay",
        [("What is\nunder the bridge?", "Water."), ("And?", "Trolls.\nTwo.")],
    )


def test_a_source_names_the_document(tmp_path):
    (tmp_path / "play.docx").write_bytes(docx(TALK))
    opened = open_source(tmp_path / "play.docx")
    preview = registry.preview_import(opened, "screenplay", ImportOptions(speakers=("Ann",)))
    assert [p.source for p in preview.pairs] == ["play.docx:2", "play.docx:5"]


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr("persona.write.importers.budget.MIN_BYTES", 1_000_000)
    (tmp_path / "x.docx").write_bytes(packed(word__document_x_xml=" " * 50_000_000))
    with pytest.raises(InputError, match="more than [0-9]+ MB come out of it"):
        open_source(tmp_path / "x.docx")


def test_entities_of_xml_are_not_expanded_without_end(tmp_path):
    laughs = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10 if n else "ha"}">' for n in range(10))
    (tmp_path / "x.docx").write_bytes(packed(word__document_x_xml=f"<!DOCTYPE d [{laughs}]><d>&a9;</d>"))
    with pytest.raises(InputError, match="no docx file that can be read|too much memory"):
        open_source(tmp_path / "x.docx")


def test_damaged_documents_end_in_text_or_a_sentence(tmp_path):
    chance = random.Random(1)
    for name, data in (
        ("x.docx", docx(TALK)),
        ("x.epub", epub(TALK)),
        ("x.html", html(TALK).encode()),
        ("x.pdf", pdf(*PAGES)),
    ):
        for _ in range(6):
            made = bytearray(data)
            for _ in range(chance.randint(1, 3)):
                at = chance.randrange(len(made))
                made[at : at + chance.choice((1, 8, 40))] = chance.randbytes(chance.choice((0, 1, 8)))
            (tmp_path / name).write_bytes(made)
            try:
                list(open_source(tmp_path / name).lines())
            except PersonaError as e:
                assert 0 < len(str(e)) < 1_000


def test_further_sheets_of_an_excel_file_are_listed(tmp_path):
    from openpyxl import Workbook

    book = Workbook()
    for sheet in (book.active, book.create_sheet("More"), book.create_sheet("Empty")):
        for row in (("question", "answer"), ("What?", "Water.")) if sheet.title != "Empty" else ():
            sheet.append(row)
    book.save(tmp_path / "x.xlsx")
    found = list(registry.read_source(open_source(tmp_path / "x.xlsx"), "table", ImportOptions()))
    assert [i.why for i in found if not isinstance(i, Pair)] == ["sheet 'More' is not read: only the first one is"]
    assert sum(isinstance(i, Pair) for i in found) == 1
