"""Checks the files of the index by their checksums."""

from __future__ import annotations

from engine.index import segment
from engine.index.search import quantizer_path
from engine.maintenance.check.findings import Findings
from engine.storage import manifest
from engine.storage.writer import StoreFiles


def check_index(store: StoreFiles, findings: Findings) -> None:
    """Whether segments and quantizers are what was published."""
    named = store.manifest
    found = [
        (segment.path_of(store.path, entry.number), entry.bytes, entry.xxh64)
        for entry in named.segments
    ]
    found += [
        (quantizer_path(store.path, entry.number), entry.bytes, entry.xxh64)
        for entry in named.quantizers
    ]
    bad = [(path, what) for path, *sums in found if (what := segment.problem(path, *sums))]
    findings.bytes_read += sum(size for _, size, _ in found)
    if bad:  # a writer may have merged them while we read
        live = manifest.load(store.path).index_files(store.path)
        bad = [(path, what) for path, what in bad if path in live]
    for path, what in bad:
        findings.damage.index.append(path)
        findings.report(str(path.relative_to(store.path)), what)
