"""The pair store: what is written comes back, and a store that is not whole is never taken for one."""
import json
import resource
from contextlib import contextmanager

import numpy as np
import pytest

from data import store as store_module
from batching import row_lengths
from data.store import INDEX, PairStore, StoreWriter, building, read_json, token_dtype, write_json
from runtime.errors import UserError

ROWS = [([9, 1, 2], [0, 0, 1], [3, 9], [4, 5, 9]), ([9], [0], [6, 7, 8, 9], []), ([9, 8], [0, 0], [9], [0, 9])]


def write(folder, vocab_size=10, rows=ROWS):
    with StoreWriter(folder, vocab_size) as writer:
        for i, row in enumerate(rows):
            writer.add(*row, subset=i % 2, source_row=10 * i)
        writer.close({"kind": "pairs"})
    return PairStore(folder)


@contextmanager
def largest_file(size: int):
    """No file of this process may grow beyond `size` bytes: what a full disk looks like to a program."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_rows_come_back(tmp_path):
    store = write(tmp_path / "train")
    assert len(store) == 3 and row_lengths(store, 2).tolist() == [8, 5, 5]
    for i, (prompt, roles, chosen, rejected) in enumerate(ROWS):
        row = store.row(i)
        assert [part.tolist() for part in row] == [prompt, roles, chosen, rejected]
        assert row[0].dtype == row[2].dtype == row[3].dtype == np.int64  # torch indexes embeddings with int64
    assert store.index["offset"].tolist() == [0, 8, 13] and store.index["source_row"].tolist() == [0, 10, 20]
    assert store.index["subset"].tolist() == [0, 1, 0] and store.index["chosen_is_true"].tolist() == [1, 1, 1]
    assert store.meta == {"rows": 3, "tokens": 18, "token_dtype": "uint16", "kind": "pairs"}


def test_layout_on_disk_is_the_documented_one(tmp_path):
    write(tmp_path / "train")
    tokens = np.fromfile(tmp_path / "train" / "tokens.bin", dtype="<u2")
    assert tokens.tolist() == [9, 1, 2, 3, 9, 4, 5, 9, 9, 6, 7, 8, 9, 9, 8, 9, 0, 9]
    roles = np.fromfile(tmp_path / "train" / "roles.bin", dtype=np.uint8)
    assert roles.tolist() == [0, 0, 1, 2, 2, 2, 2, 2, 0, 2, 2, 2, 2, 0, 0, 2, 2, 2]
    assert np.load(tmp_path / "train" / "index.npy").dtype == INDEX and INDEX.itemsize == 36
    assert sorted(p.name for p in (tmp_path / "train").iterdir()) == ["index.npy", "meta.json", "roles.bin", "tokens.bin"]


def test_ids_are_stored_in_the_smallest_type_that_holds_the_vocabulary(tmp_path):
    assert token_dtype(65536) == np.uint16 and token_dtype(65537) == np.uint32
    store = write(tmp_path / "big", vocab_size=70_000, rows=[([69_999, 5], [0, 0], [65_536], [])])
    assert store.row(0)[0].tolist() == [69_999, 5] and store.row(0)[2].tolist() == [65_536]


def test_many_flushes_give_the_same_store(tmp_path, monkeypatch):
    rows = ROWS * 20
    once = write(tmp_path / "once", rows=rows)
    monkeypatch.setattr(store_module, "BUFFER_TOKENS", 7)
    often = write(tmp_path / "often", rows=rows)
    for name in ("tokens.bin", "roles.bin", "index.npy", "meta.json"):
        assert (once.folder / name).read_bytes() == (often.folder / name).read_bytes(), name


@pytest.mark.parametrize("row, problem", [
    (([9, 10], [0, 0], [1], []), "outside the vocabulary"),  # uint16 would have stored it, and an embedding would have failed
    (([9, -1], [0, 0], [1], []), "outside the vocabulary"),
    (([9, 1], [0], [1], []), "2 prompt ids but 1 roles"),
    (([9, 1], [0, 0], [], [1]), "nothing would be scored"),
    (([], [], [1], []), "start token"),
])
def test_wrong_rows_are_refused(tmp_path, row, problem):
    with pytest.raises(ValueError, match=problem), StoreWriter(tmp_path / "x", 10) as writer:
        writer.add(*row)
        writer.close({})
    assert list(tmp_path.iterdir()) == []


def test_a_writer_left_early_leaves_nothing(tmp_path):
    write(tmp_path / "train")
    with pytest.raises(RuntimeError), StoreWriter(tmp_path / "train", 10) as writer:
        writer.add(*ROWS[0])
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["train"] and len(PairStore(tmp_path / "train")) == 3  # the older one stands


@pytest.mark.parametrize("harm", [
    lambda f: (f / "tokens.bin").write_bytes((f / "tokens.bin").read_bytes()[:-2]),
    lambda f: (f / "roles.bin").unlink(),
    lambda f: (f / "index.npy").write_bytes(b""),
    lambda f: (f / "index.npy").write_bytes((f / "index.npy").read_bytes()[:-1]),
    lambda f: (f / "meta.json").write_text('{"rows": 3'),
    lambda f: (f / "meta.json").write_text("{}"),
    lambda f: np.save(f / "index.npy", np.zeros(3)),
])
def test_a_damaged_store_is_one_sentence(tmp_path, harm):
    write(tmp_path / "train")
    harm(tmp_path / "train")
    with pytest.raises(UserError, match="prepare it with"):
        PairStore(tmp_path / "train")


def test_a_missing_store_says_how_to_make_it(tmp_path):
    with pytest.raises(UserError, match=r"no prepared data in .*nowhere: prepare it with `python data/prepare_hh.py"):
        PairStore(tmp_path / "nowhere")


@pytest.mark.parametrize("size", [0, 1000, 30_000])  # room for nothing; for some tokens; for the tokens but not for the index
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch, size):
    monkeypatch.setattr(store_module, "BUFFER_TOKENS", 100)
    with pytest.raises(UserError, match="full and nothing half-made was kept"), largest_file(size):
        with building(tmp_path / "root") as folder, StoreWriter(folder / "train", 10) as writer:
            for row in ROWS * 700:
                writer.add(*row)
            writer.close({})
    assert list(tmp_path.iterdir()) == []


def test_building_is_all_or_nothing(tmp_path):
    with building(tmp_path / "root") as folder:
        (folder / "a").write_text("1")
        assert not (tmp_path / "root").exists()
    with pytest.raises(PermissionError), building(tmp_path / "root") as folder:  # an OSError that is no full disk stays itself
        (folder / "a").write_text("2")
        raise PermissionError
    assert (tmp_path / "root" / "a").read_text() == "1" and [p.name for p in tmp_path.iterdir()] == ["root"]


def test_json_is_replaced_whole(tmp_path):
    path = tmp_path / "x.json"
    assert read_json(path) is None
    write_json(path, {"a": "é"})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": "é"} and json.loads(path.read_bytes()) == {"a": "é"}
    path.write_text("{")
    assert read_json(path) is None
