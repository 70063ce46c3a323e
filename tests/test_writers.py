"""Every place of the project that writes a file replaces it whole, or is named here with the reason why it need not."""

import ast
from collections.abc import Iterator

from tests.messages_in_source import PERSONA

WRITING_MODES = set("wax+")
# methods and functions that write to the path they are given, wherever they come from
WRITERS = {
    "write_text", "write_bytes", "savefig", "save", "save_pretrained", "save_file", "to_parquet", "to_csv", "to_excel",
    "to_html", "copyfile", "copy2", "copytree", "tofile", "savez", "GGUFWriter", "dump_to_file", "make_archive",
    "symlink_to", "hardlink_to", "write_html",
}  # fmt: skip
# file, function -> why a reader cannot see a part of what it writes
ALLOWED = {
    ("store/files.py", "open_atomic"): "writes aside and renames: what all others use",
    ("store/jsonl.py", "append_rows"): "appends; readers skip a line that is cut short",
    ("train/run_folder.py", "log"): "appends; readers skip a line that is cut short",
    ("train/launcher.py", "_spawn"): "appends what a process prints",
    ("store/edit_history.py", "append"): "an undo step under the name .part, renamed when it is whole",
    ("models/adapter.py", "write_weights"): "a scratch folder that is renamed",
    ("models/blend.py", "write_weights"): "a scratch folder that is renamed",
    ("train/parent.py", "copy_parent"): "the folder of a run that is not queued yet",
    ("share/exports/character_card.py", "_write_charx"): "inside create_output, which renames",
    ("ui/steps/write/picture_editor.py", "save_picture"): "into open_atomic",
    ("ui/steps/write/picture_editor.py", "picture_html"): "into memory",
    ("models/gguf_import.py", "_dequantize"): "a scratch folder that is renamed",
    ("ui/middleware/visitor_cookie.py", "_read_key"): "a new file beside it, linked or renamed",
    ("train/snapshots.py", "replace_adapter"): "a scratch folder that is renamed",
    ("train/trainer.py", "_save"): "a checkpoint, which counts once its marker is there",
    ("train/ray_cluster.py", "connect_to_ray"): "a temporary folder of this process",
    ("write/importers/packed_file.py", "_copy"): "a temporary folder of this process",
    ("write/importers/chat_saves.py", "_open_kobold"): "a temporary folder of this process",
    ("write/importers/row_shapes.py", "write_rows"): "a temporary folder of this process",
    ("share/archive.py", "pack_adapter"): "into open_atomic",
    ("share/archive.py", "_copy_file"): "a temporary folder of this process, or a scratch folder that is renamed",
    ("share/archive.py", "_extract"): "a scratch folder that is renamed",
    ("share/loss_plot.py", "draw_loss_plot"): "into open_atomic",
    ("share/exports/character_card.py", "export_card"): "inside create_output, which renames",
    ("share/exports/gguf_files.py", "write_adapter_gguf"): "inside create_output, which renames",
    ("share/exports/gguf_files.py", "write_model_gguf"): "inside create_output, which renames",
    ("share/exports/gguf_folder.py", "export_adapter_gguf"): "inside create_output, which renames",
    ("share/exports/merged_model.py", "save_checkpoint"): "inside create_output, which renames",
    ("write/importers/text_source.py", "save_pasted"): "a temporary folder of this process",
    ("write/importers/documents.py", "open_document"): "a temporary folder of this process",
    ("ui/steps/share/export_tab.py", "_write_export"): "a new folder for one download, offered when it is whole",
    ("ui/steps/compare/blind_vote_tab.py", "export_votes"): "a new folder for one download, offered when it is whole",
    (
        "ui/steps/compare/conversation_view.py",
        "export_conversation",
    ): "a new folder for one download, offered when whole",
    ("ui/steps/compare/judge_tab.py", "_report_file"): "a new folder for one download, offered when it is whole",
}


def _writes(call: ast.Call) -> bool:
    function = call.func
    name = (
        function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""
    )
    if name in ("open", "ZipFile", "fdopen"):
        # Path.open(mode), open(file, mode), ZipFile(file, mode), zip.open(member, mode)
        modes = [*call.args[:2], *(k.value for k in call.keywords if k.arg == "mode")]
        texts = [m.value for m in modes if isinstance(m, ast.Constant) and isinstance(m.value, str)]
        return any(set(text) <= set("rwaxbt+") and set(text) & WRITING_MODES for text in texts)
    return name in WRITERS


def find_writers(source: str, file: str) -> Iterator[tuple[str, str, int]]:
    """(file, innermost function, line) of each call that writes a file."""

    def visit(node: ast.AST, function: str) -> Iterator[tuple[str, str, int]]:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = node.name
        if isinstance(node, ast.Call) and _writes(node):
            yield file, function, node.lineno
        for child in ast.iter_child_nodes(node):
            yield from visit(child, function)

    yield from visit(ast.parse(source), "")


def test_every_writer_writes_aside_and_renames() -> None:
    found = {
        (file, function): line
        for path in sorted(PERSONA.rglob("*.py"))
        for file, function, line in find_writers(path.read_text(encoding="utf-8"), path.relative_to(PERSONA).as_posix())
    }
    bare = [
        f"persona/{file}:{line} {function}"
        for (file, function), line in found.items()
        if (file, function) not in ALLOWED
    ]
    assert not bare, f"write through store/files.py (write_atomic, open_atomic), or say here why not: {bare}"
    assert not set(ALLOWED) - set(found), "no longer there"


def test_a_bare_writer_is_found() -> None:
    source = """
def f(path, image, zip):
    path.write_text("x")
    open(path, "w")
    path.open("ab")
    path.open(mode="r+")
    image.save(path, "PNG")
    zip.open("name", "w")
    path.open("rb")
    open(path)
    path.read_text()
"""
    assert [line for _, _, line in find_writers(source, "a.py")] == [3, 4, 5, 6, 7, 8]
