"""The tour of ``scripts/demo``: ingests real photographs and bit images, and looks them up."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from PIL import Image, ImageOps

ROOT = Path(__file__).resolve().parent.parent
PHOTOS = Path("scripts/photos")
HELD_OUT = Path("scripts/photos-held-out")
WORK = Path(".demo")
STORE = WORK / "demo.store"
BITS = 20_000
ENGINE = Path(sys.executable).parent / "engine"


def main() -> int:
    os.chdir(ROOT)
    started = time.monotonic()
    shutil.rmtree(WORK, ignore_errors=True)  # the same tour every time
    WORK.mkdir()
    photo = PHOTOS / "kingfisher.jpg"
    png, cropped = WORK / "kingfisher.png", WORK / "kingfisher-cropped.jpg"
    smaller = WORK / "kingfisher-small.jpg"
    with Image.open(photo) as opened:
        original = ImageOps.exif_transpose(opened).convert("RGB")
    original.save(png)
    width, height = original.size
    box = (width // 10, height // 10, width - width // 10, height - height // 10)
    original.crop(box).save(cropped, quality=50)
    original.resize((width // 2, height // 2)).save(smaller, quality=40)
    stranger = next(iter(sorted(HELD_OUT.glob("*.jpg"))))

    count = sum(1 for path in PHOTOS.iterdir() if path.suffix != ".md")
    say(
        f"1. Ingest {count} photographs. Each gets a key, a fingerprint and a vector of 128 numbers."
    )
    run("ingest", PHOTOS, "--store", STORE)

    say(
        f"2. Ingest {BITS:,} bit images of 100×100 RGB with 1-bit channels into the same store.",
        "They are noise, in which an encoder sees nothing, so they need no vectors: --encoder none.",
    )
    run("ingest", f"synthetic:bits?n={BITS}&seed=0", "--encoder", "none", "--store", STORE)

    say("3. The photo again, saved as PNG: other bytes, the same pixels. It is *identical*.")
    found = lookup(png)
    expect(names(found, "identical") == [photo.name], "the original is found as identical")

    say(
        "4. The photo at half its size, saved at JPEG quality 40: no pixel is the same, but few of its",
        "fingerprint's 256 bits have changed. It is a *near* copy.",
    )
    found = lookup(smaller)
    expect(not found["identical"], "nothing is identical")
    expect(names(found, "near") == [photo.name], "the original, and nothing else, is near")

    say(
        "5. The photo with a tenth cut off each side: the fingerprint has changed too much, but the",
        "original is the most *similar* image.",
    )
    found = lookup(cropped)
    expect(not found["identical"] and not found["near"], "nothing is identical or near")
    expect(names(found, "similar")[:1] == [photo.name], "the original is the most similar image")

    say(
        "6. A photo that was never ingested. Nothing is identical; *similar* gives the closest images,",
        "and their scores say how close they are (1 is the same direction, 0 is unrelated).",
    )
    found = lookup(stranger)
    expect(not found["identical"], "nothing is identical")

    say(
        "7. A bit image of the store (row 17 of the set), verified byte for byte, and a missing one."
    )
    inside, outside = "synthetic:bits?seed=0#17", "synthetic:bits?seed=1#17"
    found = lookup(inside, "--tier", "identical")
    expect(
        found["identical"][0]["verified"] == "bytes", "row 17 is found and verified by its bytes"
    )
    found = lookup(outside, "--tier", "identical")
    expect(not found["identical"], "row 17 of another seed is not in the store")

    say("8. The contents of the store, and its size on disk.")
    run("info", "--store", STORE)
    print(f"\nDone in {time.monotonic() - started:.0f} s. The store is {STORE}; try it yourself:")
    print(f"  .venv/bin/engine lookup YOUR.jpg --store {STORE}")
    return 0


def say(*lines: str) -> None:
    print("\n" + "\n   ".join(lines), flush=True)


def run(*arguments: object) -> None:
    words = [str(argument) for argument in arguments]
    print(f"   $ engine {shlex.join(words)}", flush=True)
    done = subprocess.run([ENGINE, *words], capture_output=True, text=True, check=False)
    text = done.stdout + done.stderr
    print("".join(f"     {line}\n" for line in text.splitlines()), end="", flush=True)
    if done.returncode:
        sys.exit(f"demo: the command failed (status {done.returncode})")


def lookup(image: object, *options: str) -> dict:
    """Print a lookup as people see it, and return its JSON result."""
    words = ["lookup", str(image), "-k", "3", *options, "--store", str(STORE)]
    run(*words)
    done = subprocess.run([ENGINE, *words, "--json"], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def names(found: dict, tier: str) -> list[str]:
    return [Path(hit["sources"][0]).name for hit in found[tier]]


def expect(holds: bool, what: str) -> None:
    print(f"   {'✓' if holds else '✗'} {what}", flush=True)
    if not holds:
        sys.exit("demo: the lookup did not find the expected images")


if __name__ == "__main__":
    sys.exit(main())
