"""The notice tells readers that something was committed, and is never what an answer depends on."""

from pathlib import Path

from engine.storage.notice import NAME, Notice


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


def test_where_it_cannot_be_written_nothing_happens(tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    notice = Notice(tmp_path)
    notice.publish(1)
    assert notice.read() == b""
    notice.close()
