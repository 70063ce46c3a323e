"""A data set on the Hub: which of its files is downloaded, and what is refused."""

from pathlib import Path

import pytest
from row_files import A

from persona.errors import InputError
from persona.store.persona_folder import open_persona
from persona.write.importers import hub_dataset as datasets_hub
from tests.local_hub import Hub

pytest_plugins = "tests.cli_fixtures"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("time.sleep", lambda _: None)
    with Hub() as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


CHOICES = [
    (["README.md", "train.jsonl", "test.jsonl", "model.pt"], "train.jsonl"),
    (["data/test.csv", "data/train.csv", "old/train.jsonl"], "data/train.csv"),
    (["data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"], "data/train-00000-of-00001.parquet"),
    (["train.parquet", "train.json", "dataset_infos.json"], "train.json"),
    (["validation.json", "pairs.json"], "pairs.json"),
    (["extra.jsonl", "train.jsonl"], "train.jsonl"),
    (["deep/er/x.csv", "load.py"], "deep/er/x.csv"),
]


@pytest.mark.parametrize("names, chosen", CHOICES, ids=[" ".join(c[0]) for c in CHOICES])
def test_the_data_file_of_a_data_set_is_downloaded(hub, names, chosen, home):
    hub.add("ann/zhen", {name: f"{A} {name}".encode() for name in names})
    file = datasets_hub.download_dataset("ann/zhen")
    assert file.read_text() == f"{A} {chosen}" and file.suffix == Path(chosen).suffix and home in file.parents
    fetched = [r for r in hub.requests if "/resolve/" in r]
    assert fetched and all(r.endswith(chosen) for r in fetched), "nothing else is fetched"


SPLITS = [
    (["train.jsonl", "test.jsonl"], "test", "test.jsonl"),
    (["data/train-00000-of-00001.parquet", "data/validation-00000-of-00001.parquet"], "validation",
     "data/validation-00000-of-00001.parquet"),
    (["train.csv", "dev.csv"], "validation", "dev.csv"),
    (["alpaca_data.json", "alpaca_eval.json"], "train", "alpaca_data.json"),
    (["train_sft.jsonl", "train_gen.jsonl"], "train_gen", "train_gen.jsonl"),
]  # fmt: skip


def test_the_file_of_a_split_is_downloaded(hub, home):
    for n, (names, split, chosen) in enumerate(SPLITS):
        hub.add(f"ann/s{n}", {name: name.encode() for name in names})
        assert datasets_hub.download_dataset(f"ann/s{n}", split=split).read_text() == chosen
    with pytest.raises(InputError, match=r"no file of the split 'test'. It has: train\.csv, dev\.csv"):
        datasets_hub.download_dataset("ann/s2", split="test")


def test_some_rows_of_a_split_are_imported(hub, home, tmp_path, value):
    rows = {split: "".join(f'{{"instruction": "{split} {n}", "output": "a"}}\n' for n in range(9)).encode()
            for split in ("train", "test")}  # fmt: skip
    hub.add("ann/zhen", {f"{split}.jsonl": data for split, data in rows.items()})

    def imported(*words) -> list[str]:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        value("import", words[0], folder, *words[1:])
        return [pair.instruction for pair in open_persona(folder).pairs()]

    assert imported("ann/zhen[:2]") == ["train 0", "train 1"]
    assert imported("ann/zhen", "--split", "test[-3:]", "--rows", 2) == ["test 6", "test 7"]
    assert imported("ann/zhen/test.jsonl[:1]") == ["test 0"]


def test_a_file_and_a_revision_can_be_named(hub):
    old = hub.add("ann/zhen", {"a.jsonl": b"old", "b.jsonl": b"b"})
    hub.add("ann/zhen", {"a.jsonl": b"new", "b.jsonl": b"b"})
    assert datasets_hub.download_dataset("ann/zhen/a.jsonl").read_bytes() == b"new"
    assert datasets_hub.download_dataset("ann/zhen/a.jsonl", old).read_bytes() == b"old"
    assert datasets_hub.download_dataset(f"{hub.url}/datasets/ann/zhen/blob/main/b.jsonl").read_bytes() == b"b"
    with pytest.raises(InputError, match=r"which of its files\? a\.jsonl, b\.jsonl\. Name it: ann/zhen/a\.jsonl"):
        datasets_hub.download_dataset("ann/zhen")
    with pytest.raises(InputError, match="no file 'c.jsonl'"):
        datasets_hub.download_dataset("ann/zhen/c.jsonl")
    with pytest.raises(InputError, match="no such revision"):
        datasets_hub.download_dataset("ann/zhen/a.jsonl", "nowhere")


@pytest.mark.parametrize("name, why", [
    ("zhen", "not a data set on the Hub"), ("../../etc", "not a data set"), ("ann/none", "no such data set, or private"),
    ("ann/pickles", "nothing to import: it has data.pkl, load.py"), ("ann/secret", "no such data set, or private"),
])  # fmt: skip
def test_what_cannot_be_downloaded_is_refused_in_words(hub, name, why):
    hub.add("ann/pickles", {"data.pkl": b"x", "load.py": b"x"})
    hub.add("ann/secret", {"train.jsonl": b"x"}, private=True)
    with pytest.raises(InputError, match=why):
        datasets_hub.download_dataset(name)
    assert not [r for r in hub.requests if "/resolve/" in r]


def test_a_large_file_is_refused_before_it_is_downloaded(hub, monkeypatch):
    monkeypatch.setattr(datasets_hub, "MAX_BYTES", 1_000_000)
    hub.add("ann/zhen", {"train.jsonl": b"x" * 2_000_000})
    with pytest.raises(InputError, match="2 MB, where 1 MB is the limit"):
        datasets_hub.download_dataset("ann/zhen")
    assert not [r for r in hub.requests if "/resolve/" in r]


@pytest.mark.parametrize("status, why", [(500, "status 500"), (403, "status 403"), (0, "cannot be reached")])
def test_a_hub_in_trouble(hub, status, why):
    hub.add("ann/zhen", {"train.jsonl": b"x"})
    hub.fail("GET /api/datasets", 99, status)
    with pytest.raises(InputError, match=why):
        datasets_hub.download_dataset("ann/zhen")


def test_offline(hub, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(InputError, match="cannot be reached"):
        datasets_hub.download_dataset("ann/zhen")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="switched off"):
        datasets_hub.download_dataset("ann/zhen")
