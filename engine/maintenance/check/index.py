"""Checks the files of the index by their checksums."""

from __future__ import annotations

from engine.maintenance.check.findings import Findings
from engine.storage import manifest
from engine.storage.index_files import file_problem, quantizer_path, segment_path
from engine.storage.session import Session


def check_index(store: Session, findings: Findings) -> None:
    """Check that segments and quantizers are those that were published."""
    named = store.snapshot.manifest
    found = [
        (segment_path(store.path, entry.number), entry.bytes, entry.xxh64)
        for entry in named.segments
    ]
    found += [
        (quantizer_path(store.path, entry.number), entry.bytes, entry.xxh64)
        for entry in named.quantizers
    ]
    bad = [(path, what) for path, size, xxh64 in found if (what := file_problem(path, size, xxh64))]
    findings.bytes_read += sum(size for _, size, _ in found)
    # A writer may have merged some of them during the check.
    if bad:
        live = manifest.load(store.path).index_files(store.path)
        bad = [(path, what) for path, what in bad if path in live]
    for path, what in bad:
        findings.damage.index.append(path)
        findings.report(str(path.relative_to(store.path)), what)
