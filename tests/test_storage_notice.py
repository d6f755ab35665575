"""The notice tells readers that something was committed, and is never what an answer depends on."""

import os
import shutil
from pathlib import Path

import pytest

from engine import Store
from engine.storage.commit_file import NAME, Notice, commit_of, is_of_another_commit, pack


def test_a_reader_sees_what_the_writer_publishes(tmp_path: Path) -> None:
    writer, reader = Notice(tmp_path), Notice(tmp_path)
    assert reader.read() == b""
    writer.publish(1)
    first = reader.read()
    writer.publish(2)
    assert reader.read() != first
    writer.close()
    again = Notice(tmp_path)
    again.publish(2)
    assert reader.read() == Notice(tmp_path).read()
    assert (tmp_path / NAME).stat().st_size == 24
    for notice in (again, reader):
        notice.close()


def test_a_new_index_is_told_of_and_is_no_commit(tmp_path: Path) -> None:
    writer, reader = Notice(tmp_path), Notice(tmp_path)
    writer.publish(7)
    seen = [reader.read()]
    for _ in range(3):
        writer.publish_index()
        seen.append(reader.read())
    assert len(set(seen)) == 4
    assert {commit_of(notice) for notice in seen} == {7}
    assert not is_of_another_commit(seen[-1], seen[0])
    writer.close()
    again = Notice(tmp_path)  # another writer goes on counting
    again.publish_index()
    assert reader.read() not in seen
    again.publish(8)
    assert is_of_another_commit(reader.read(), seen[-1])
    for notice in (again, reader):
        notice.close()


def test_no_bit_of_a_notice_is_believed_that_was_not_written() -> None:
    sound = pack(7, 3)
    assert commit_of(sound) == commit_of(sound + b"of a later version") == 7
    for bit in range(8 * len(sound)):
        damaged = bytearray(sound)
        damaged[bit // 8] ^= 1 << bit % 8
        assert commit_of(bytes(damaged)) == 0
    for size in range(len(sound)):  # earlier versions wrote 8 bytes, and 16
        assert commit_of(sound[:size]) == 0
    assert commit_of(bytes(24)) == 0


def test_where_it_cannot_be_written_nothing_happens(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    notice = Notice(tmp_path)
    notice.publish(1)
    notice.publish_index()
    assert notice.read() == b""
    assert commit_of(b"") == 0
    notice.close()


@pytest.mark.slow
def test_readers_follow_a_writer_that_copies_a_linked_notice_apart(tmp_path: Path) -> None:
    """After ``cp -al`` the name stands for another file, and what the copy has stays as it was."""
    path, copy = tmp_path / "store", tmp_path / "copy"
    with Store.open(path, create=True, encoder="none") as store:
        store.ingest("synthetic:bits?n=2")
    with Store.open(path) as reader:
        assert (len(reader), reader.refresh()) == (2, None)
        shutil.copytree(path, copy, copy_function=os.link)
        before = (copy / NAME).read_bytes()
        for count in (5, 9):
            with Store.open(path) as writer:
                writer.ingest(f"synthetic:bits?n={count}")
            assert reader.lookup(f"synthetic:bits#{count - 1}").identical
    assert (copy / NAME).read_bytes() == before


def test_a_reader_goes_on_with_what_it_has_where_the_notice_is_gone(tmp_path: Path) -> None:
    writer, reader = Notice(tmp_path), Notice(tmp_path)
    writer.publish(3)
    seen = reader.read()
    (tmp_path / NAME).unlink()
    assert reader.read() == seen
    writer.close()
    again = Notice(tmp_path)
    again.publish(4)
    assert commit_of(reader.read()) == 4
    for notice in (again, reader):
        notice.close()
