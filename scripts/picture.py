"""Draw the picture of README.md: one lookup and its three answers, light and dark.

python scripts/picture.py            writes docs/lookup-light.webp and docs/lookup-dark.webp

The answers come from a real lookup among the shipped photographs.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import examples
from PIL import Image, ImageDraw, ImageFont

from engine import LookupResult, Store

DOCS = Path(__file__).resolve().parent.parent / "docs"
SCALE = 2  # for screens of high density
WIDTH, HEIGHT = 860, 330
PICTURE = (168, 98)
TOP, GAP = 72, 34
TIERS = (
    ("identical", "#1a7f37", "#3fb950", "this very picture"),
    ("near", "#0969da", "#58a6ff", "a copy of it"),
    ("similar", "#8250df", "#bc8cff", "looks like it"),
)


@dataclass(frozen=True, slots=True)
class Theme:
    """The colours of one of the two pictures."""

    name: str
    background: str
    text: str
    quiet: str
    line: str
    tier: int  # which of a tier's two colours


THEMES = (
    Theme("light", "#ffffff", "#1f2328", "#59636e", "#d1d9e0", 1),
    Theme("dark", "#0d1117", "#f0f6fc", "#9198a1", "#3d444d", 2),
)


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer of one tier."""

    file: Path
    how: str


def looked_up(work: Path) -> tuple[Path, list[Answer]]:
    """The query and the answer of each tier."""
    examples.make(work)
    query = work / "kingfisher.png"
    with Store.open(work / "photos.store", create=True) as store:
        store.ingest(
            work / "photos", *(work / f"kingfisher-{how}.jpg" for how in ("small", "cropped"))
        )
        found: LookupResult = store.lookup(query, k=1)
    (same,), (near,), (like,) = found.identical, found.near, found.similar
    return query, [
        Answer(Path(same.sources[0]), "every pixel is the same"),
        Answer(Path(near.sources[0]), f"{near.distance} of 256 bits differ"),
        Answer(Path(like.sources[0]), f"cosine {like.score:.2f}"),
    ]


def drawn(theme: Theme, query: Path, answers: list[Answer]) -> Image.Image:
    """The picture in the colours of a theme."""
    image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), theme.background)
    draw = ImageDraw.Draw(image)
    left = GAP // 2

    def text(x: float, y: float, words: str, size: int, colour: str) -> None:
        font = ImageFont.load_default(size * SCALE)
        draw.text((x * SCALE, y * SCALE), words, colour, font, anchor="mm")

    def picture(x: int, path: Path, words: list[tuple[str, int, str]], edge: str) -> None:
        with Image.open(path) as opened:
            size = (PICTURE[0] * SCALE, PICTURE[1] * SCALE)
            # Pictures keep their relative sizes, so a small copy looks small.
            share = min(1.0, opened.width / 320)
            shown = opened.convert("RGB")
            shown.thumbnail((int(size[0] * share), int(size[1] * share)), Image.Resampling.LANCZOS)
        middle = (x + PICTURE[0] // 2) * SCALE, (TOP + PICTURE[1] // 2) * SCALE
        at = middle[0] - shown.width // 2, middle[1] - shown.height // 2
        image.paste(shown, at)
        box = (at[0] - 3, at[1] - 3, at[0] + shown.width + 2, at[1] + shown.height + 2)
        draw.rectangle(box, outline=edge, width=2 * SCALE)
        for number, (line, size_of, colour) in enumerate(words):
            text(x + PICTURE[0] / 2, TOP + PICTURE[1] + 24 + 22 * number, line, size_of, colour)

    text(left + PICTURE[0] / 2, TOP - 32, "one lookup", 19, theme.text)
    picture(left, query, [(query.name, 13, theme.quiet)], theme.line)
    for number, (tier, answer) in enumerate(zip(TIERS, answers, strict=True)):
        x = left + (PICTURE[0] + GAP + 10) * (number + 1)
        colour = tier[theme.tier]
        text(x + PICTURE[0] / 2, TOP - 42, tier[0], 19, colour)
        text(x + PICTURE[0] / 2, TOP - 18, tier[3], 13, theme.quiet)
        words = [(answer.file.name, 13, theme.quiet), (answer.how, 14, theme.text)]
        picture(x, answer.file, words, colour)
    y = (TOP + PICTURE[1] / 2) * SCALE
    x = (left + PICTURE[0] + 8) * SCALE
    tip = x + (GAP - 8) * SCALE
    draw.line([(x, y), (tip - 8, y)], theme.quiet, 2 * SCALE)
    draw.polygon([(tip, y), (tip - 14, y - 9), (tip - 14, y + 9)], theme.quiet)
    return image.crop((0, 0, image.width, (TOP + PICTURE[1] + 64) * SCALE))


def main() -> None:
    """Write both pictures."""
    with tempfile.TemporaryDirectory(prefix="engine-picture-") as folder:
        query, answers = looked_up(Path(folder))
        for theme in THEMES:
            out = DOCS / f"lookup-{theme.name}.webp"
            drawn(theme, query, answers).save(out, quality=88, method=6)
            print(f"{out}: {out.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
