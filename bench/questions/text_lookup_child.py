"""Writes a ViT-B-32 of open_clip with seeded weights as an encoder with a text tower.

A process of its own, because torch takes memory that the measured processes must not have.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

SEED = 0
MODEL = "ViT-B-32"


def write_encoder(out: Path) -> None:
    """Import the model, as fp32, into the new folder ``out``."""
    import open_clip
    import safetensors.torch
    import torch

    from engine.encoders.importers.run import import_model
    from engine.encoders.importers.specs import ImportSettings, ModelSpec

    with tempfile.TemporaryDirectory(dir=out.parent) as work:
        weights = Path(work) / "seeded.safetensors"
        torch.manual_seed(SEED)
        safetensors.torch.save_file(open_clip.create_model(MODEL).state_dict(), weights)
        settings = ImportSettings(weights=str(weights), precision="fp32")
        import_model(ModelSpec("open-clip", MODEL, settings), out)


if __name__ == "__main__":
    write_encoder(Path(sys.argv[1]))
