"""The notice tells readers that something was committed, and is never what an answer depends on."""

from pathlib import Path

from engine.storage.notice import NAME, Notice, commit_of, is_of_another_commit


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
    assert (tmp_path / NAME).stat().st_size == 8
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


def test_where_it_cannot_be_written_nothing_happens(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    notice = Notice(tmp_path)
    notice.publish(1)
    notice.publish_index()
    assert notice.read() == b""
    assert commit_of(b"") == 0
    notice.close()
