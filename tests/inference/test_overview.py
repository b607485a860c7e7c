"""The page of a run, parsed as a browser does, and its pictures, decoded: who is on it, and which side is which."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from droseg.inference import InputCase, Predictor, SkippedInput, predict_cases
from droseg.inference.overview import case_pictures

MakeBundle = Callable[..., Path]
Plant = Callable[..., tuple[np.ndarray, np.ndarray]]
Save = Callable[..., Path]

PLANES = ("axial", "coronal", "sagittal")
VOID = {"img", "meta", "br", "hr", "link", "input"}


class Page(HTMLParser):
    """Tags, attributes, headings and the pictures of each case, in the order of the page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.text = path.read_text(encoding="utf-8")
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.sections: list[str] = []
        self.cases: list[str] = []
        self.pictures: dict[str, list[bytes]] = {}
        self.open: list[str] = []
        self.words: dict[str, str] = {}
        self.feed(self.text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "h3":
            self.cases.append("")
        if tag == "img":
            kind, _, content = dict(attrs)["src"].partition(",")
            assert kind == "data:image/png;base64"
            self.pictures.setdefault(self.cases[-1], []).append(base64.b64decode(content, validate=True))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "h3":
            self.cases[-1] += data
        elif self.open and self.open[-1] == "h2":
            self.sections.append(data)
        elif self.cases:
            self.words[self.cases[-1]] = self.words.get(self.cases[-1], "") + data


@pytest.fixture
def segment(make_bundle: MakeBundle, tmp_path: Path, plant: Plant, save: Save) -> Callable[..., Page]:
    """Return a function that segments a good, a flagged and a damaged image, and gives the page."""
    image, label = plant()
    model, out = Predictor(make_bundle()), tmp_path / "out"
    images = {"good": image, "flagged": np.where(label == 7, image, 0), "also_good": image + 1}
    cases = [InputCase(name, (save(tmp_path / f"{name}.nii", array),)) for name, array in images.items()]
    (tmp_path / "damaged.nii").write_bytes(b"x")
    cases.insert(1, InputCase("damaged", (tmp_path / "damaged.nii",)))

    def run(others: Sequence[InputCase] = (), skipped: Sequence[SkippedInput] = ()) -> Page:
        predict_cases([*cases, *others], model, out, skipped=skipped, overview=True)
        return Page(out / "overview.html")

    return run


def test_the_page_shows_each_case_and_those_to_look_at_first(segment: Callable[..., Page], tmp_path: Path) -> None:
    page = segment(skipped=[SkippedInput("series 1 'scout'", tmp_path / "scout", "a localizer")])
    assert page.cases == list(ORDER)
    for case_id, badge in ORDER.items():
        assert page.words[case_id].startswith(badge)
    assert page.sections == [
        "Not segmented (1)",
        "With a flag (1)",
        "Without a flag (2)",
        "Skipped: no candidates (1)",
    ]
    assert "damaged.nii: " in page.words["damaged"]
    assert "structure anterior is empty." in page.words["flagged"]
    assert re.search(r"posterior\s+0.33 ml", page.words["good"])  # 330 voxels of 1 mm3
    assert "a localizer." in page.words["series 1 'scout'"]
    assert "not a medical device" in page.text


ORDER = {  # case -> its badge
    "damaged": "failed",
    "flagged": "1 flag",
    "good": "segmented",
    "also_good": "segmented",
    "series 1 'scout'": "skipped",
}


def test_the_page_needs_nothing_but_itself(segment: Callable[..., Page], tmp_path: Path) -> None:
    page = segment()
    for name, value in page.attributes:
        assert name not in ("href", "srcset", "background", "action", "data")
        assert name != "src" or value.startswith("data:image/png;base64,")
    assert not set(page.tags) & {"script", "link", "iframe", "object", "embed", "base"}
    text = re.sub(r"data:image/png;base64,[A-Za-z0-9+/=]+", "", page.text)
    assert not re.search(r"//|url\(|@import|file:/", text)
    assert str(tmp_path) not in text.replace(str(tmp_path / "damaged.nii"), "")  # a file that is no image is named


def test_the_pictures_on_the_page_are_the_png_files_beside_it(segment: Callable[..., Page], tmp_path: Path) -> None:
    page = segment()
    assert list(page.pictures) == ["flagged", "good", "also_good"]
    for name, pictures in page.pictures.items():
        files = [tmp_path / "out" / "overview" / f"{name}_{plane}.png" for plane in PLANES]
        assert pictures == [path.read_bytes() for path in files]
        for content in pictures:
            picture = Image.open(io.BytesIO(content))
            picture.load()
            assert picture.format == "PNG"
            assert picture.size == (300, 300)


def test_the_page_keeps_the_cases_of_earlier_commands(
    make_bundle: MakeBundle, tmp_path: Path, plant: Plant, save: Save
) -> None:
    model, image = Predictor(make_bundle()), plant()[0]
    for name in ("first", "second"):
        case = InputCase(name, (save(tmp_path / f"{name}.nii", image),))
        predict_cases([case], model, tmp_path / "out", overview=True)
    page = Page(tmp_path / "out" / "overview.html")
    assert [name.split("segmented")[0] for name in page.cases] == ["first", "second"]
    assert list(page.pictures) == page.cases


def test_a_resumed_run_has_the_same_page(segment: Callable[..., Page]) -> None:
    first, resumed = segment(), segment()
    assert resumed.cases == first.cases
    assert resumed.pictures == first.pictures
    assert resumed.words == first.words


HOSTILE = "<img src=x onerror=alert(1)>&\"'`"


def test_names_and_messages_are_text_and_never_markup(
    segment: Callable[..., Page], tmp_path: Path, plant: Plant, save: Save
) -> None:
    scan = save(tmp_path / "hostile.nii", plant()[0])
    damaged = tmp_path / f"{HOSTILE}.nii"
    damaged.write_bytes(b"x")
    others = [
        InputCase(HOSTILE, (scan,)),
        InputCase("</h3><script>alert(2)</script>", (scan,)),
        InputCase("named", (damaged,)),
    ]
    reason = "<svg onload=alert(3)>"
    page = segment(others, [SkippedInput("<b>name</b>", tmp_path, reason)])
    assert not set(page.tags) & {"script", "svg"}
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.words[HOSTILE].startswith("segmented")
    assert page.words["</h3><script>alert(2)</script>"].startswith("failed")
    assert f"{HOSTILE}.nii" in page.words["named"]
    assert reason in page.words["<b>name</b>"]
    assert len(page.pictures[HOSTILE]) == 3


# --- pictures ---

SPACING_MM = (1.0, 1.5, 2.5)  # along right, front and up
FIRST, SECOND = 1, 2  # blue, orange


def two_boxes() -> tuple[nib.Nifti1Image, nib.Nifti1Image]:
    """Return an image and labels, axes to right, front and up: a box, and a second one more to the left, front and top.

    The image is black, but for a corner that no slice through both boxes meets.
    """
    label, image = np.zeros((60, 50, 40), np.uint8), np.zeros((60, 50, 40), np.float32)
    label[25:45, 12:32, 10:30] = FIRST
    label[17:37, 20:40, 18:38] = SECOND
    image[:16, :11, :9] = 100
    affine = np.diag([*SPACING_MM, 1.0])
    affine[:3, 3] = -30, -20, 7
    return nib.Nifti1Image(image, affine), nib.Nifti1Image(label, affine)


def drawn(axes: str) -> dict[str, tuple[str, np.ndarray]]:
    """Return plane -> caption and RGB of the boxes, stored with their axes in some order and direction."""
    target = nib.orientations.axcodes2ornt(tuple(axes))
    turn = nib.orientations.ornt_transform(nib.orientations.axcodes2ornt("RAS"), target)
    image, label = (volume.as_reoriented(turn) for volume in two_boxes())
    assert "".join(nib.aff2axcodes(label.affine)) == axes
    structures = {"first": FIRST, "second": SECOND}
    pictures = case_pictures(np.asarray(image.dataobj)[None], np.asarray(label.dataobj), label.affine, structures)
    found = {}
    for plane, (caption, content) in zip(PLANES, pictures, strict=True):
        found[plane] = caption, np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
    return found


def center(mask: np.ndarray) -> tuple[float, float]:
    """Return where the middle of a mask is, pixels from the left and from the top."""
    rows, columns = np.nonzero(mask)
    return float(columns.mean()), float(rows.mean())


def blue_and_orange(rgb: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    blue_minus_red = rgb[..., 2] - rgb[..., 0]
    return blue_minus_red > 25, blue_minus_red < -25


@pytest.mark.parametrize("axes", ["RAS", "LPS", "SLA", "PIR"])
def test_left_is_on_the_right_front_and_up_are_on_top_whatever_the_order_of_the_axes(axes: str) -> None:
    for plane, (_, rgb) in drawn(axes).items():
        blue, orange = blue_and_orange(rgb)
        assert min(blue.sum(), orange.sum()) > 2000
        (first_x, first_y), (second_x, second_y) = center(blue), center(orange)
        assert second_y < first_y - 20, plane  # front (axial) and up (coronal, sagittal) are on top
        if plane == "sagittal":
            assert second_x < first_x - 20  # the front is on the left
        else:
            assert second_x > first_x + 20  # the patient's left is on the right


def test_millimeters_are_square() -> None:
    edges = {"axial": (0, 1), "coronal": (0, 2), "sagittal": (1, 2)}
    for plane, (_, rgb) in drawn("RAS").items():
        _, orange = blue_and_orange(rgb)
        rows, columns = np.nonzero(orange)
        across, up = (20 * SPACING_MM[axis] for axis in edges[plane])
        found = (np.ptp(columns) + 1) / (np.ptp(rows) + 1)
        assert found == pytest.approx(across / up, rel=0.06)


def test_the_caption_says_where_the_slice_lies() -> None:
    where = {plane: caption for plane, (caption, _) in drawn("LPS").items()}
    # Slices through both boxes show most voxels: 25 to 36 to the right, 20 to 31 to the front, 18 to 29 up.
    for plane, axis, offset, voxels in (
        ("axial", 2, 7, (18, 29)),
        ("coronal", 1, -20, (20, 31)),
        ("sagittal", 0, -30, (25, 36)),
    ):
        match = re.fullmatch(rf"{plane}, ([RLAPSI]) (\d+) mm", where[plane])
        assert match, where[plane]
        sign = 1 if match[1] == "RAS"[axis] else -1
        low, high = (offset + SPACING_MM[axis] * voxel for voxel in voxels)
        assert low - 0.5 <= sign * int(match[2]) <= high + 0.5


def letter_at(rgb: np.ndarray, x: int, y: int) -> str:
    """Return which letter is written around a place, by comparison with each of them as Pillow draws it."""
    part = rgb[max(0, y - 16) : y + 16, max(0, x - 16) : x + 16].min(axis=-1) > 200
    rows, columns = np.nonzero(part)
    cut = part[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    likeness = {}
    for letter in "RLAPSI":
        blank = Image.new("L", (60, 60))
        ImageDraw.Draw(blank).text((20, 20), letter, 255, ImageFont.load_default(23))
        rendered = np.asarray(blank) > 200
        rows, columns = np.nonzero(rendered)
        rendered = rendered[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        size = np.maximum(cut.shape, rendered.shape)
        first, second = (
            np.pad(mask, [(0, int(s - n)) for s, n in zip(size, mask.shape, strict=True)]) for mask in (cut, rendered)
        )
        likeness[letter] = float((first & second).sum() / (first | second).sum())
    best = max(likeness, key=lambda letter: likeness[letter])
    assert likeness[best] > 0.6, likeness
    return best


def test_letters_name_the_sides_of_the_patient() -> None:
    sides = {"axial": "ARPL", "coronal": "SRIL", "sagittal": "SAIP"}  # top, left, bottom, right
    for plane, (_, rgb) in drawn("PIR").items():
        height, width = rgb.shape[:2]
        places = ((width // 2, 14), (12, height // 2), (width // 2, height - 14), (width - 14, height // 2))
        assert "".join(letter_at(rgb, *place) for place in places) == sides[plane]


def test_an_image_without_any_structure_is_shown_without_a_color() -> None:
    image = np.random.default_rng(0).uniform(0, 1, (1, 20, 18, 16)).astype(np.float32)
    for _, content in case_pictures(image, np.zeros((20, 18, 16), np.uint8), np.eye(4), {"first": FIRST}):
        rgb = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
        assert not np.ptp(rgb, axis=-1).any()
