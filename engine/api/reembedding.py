"""The methods of ``Store`` that change its encoder."""

from __future__ import annotations

from collections.abc import Callable

from engine.api.encoder_files import install, installed_bytes
from engine.api.open_store import NO_ENCODER, OpenStore, encoder_named
from engine.errors import UsageError
from engine.maintenance.reembed.run import Reembed
from engine.maintenance.reembed.staging import discard_staged
from engine.records import ReembedReport


class Reembedding(OpenStore):
    """The methods of ``Store`` that change its encoder."""

    def reembed(
        self,
        encoder: str,
        *,
        allow_missing: bool = False,
        dry_run: bool = False,
        workers: int | None = None,
        progress: Callable[[int, int | None], None] | None = None,
        stop: Callable[[], bool] | None = None,
    ) -> ReembedReport:
        """Give every image a vector of another encoder, and switch to these in one commit.

        ``encoder`` is a name or a folder, as in ``open``. Images are read again from kept pixels or from
        a source that still has them. Until the switch, searches use the old encoder, and other processes
        may ingest and remove images. Vectors are kept in the store as they are made. So a run that was
        ended goes on when it is called again with the same encoder; another one drops them.

        With the encoder that the store has, only images without a vector are embedded, as in an ingest.
        A store without an encoder gets this one.

        Images whose pixels are gone would lose their vectors: this raises ``MissingError``, as soon as
        it is known, unless ``allow_missing``. Then they are found as identical and near only.
        ``dry_run`` only reports how many there are, and the disk that is needed. ``progress(done,
        total)`` counts images; ``stop()`` is polled often.

        Raises ``UsageError`` (also for imported vectors), ``EncoderError``, ``MissingError``,
        ``StoreLockedError``, ``StoreError``.
        """
        if encoder == NO_ENCODER:
            raise UsageError(
                f'encoder="{NO_ENCODER}" makes no vectors: name an encoder, or make another store'
            )
        chosen = encoder_named(encoder)
        with self._alone("reembed"):
            self._session.follow()
            run = Reembed(
                self._session,
                chosen,
                install,
                installed_bytes=installed_bytes(chosen),
                allow_missing=allow_missing,
                workers=workers,
                device=self._device,
                progress=progress,
                stop=stop,
            )
            return run.plan() if dry_run else run.run()

    def discard_reembed(self) -> int:
        """Drop the vectors of an unfinished ``reembed``; returns how many bytes of disk that freed.

        Raises ``StoreLockedError`` while a reembed runs.
        """
        if self._session.read_only:
            raise UsageError(f"{self.path} was opened read-only")
        with self._alone("discard_reembed"):
            self._session.follow()
            return discard_staged(self._session)
