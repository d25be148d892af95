"""Makes tests/fixtures/data_images (additions), data_layouts and data_presets: files of other writers, with what Pillow makes of the images.

Needs Pillow, pyarrow and datasets; a development oracle, no part of build or tests. Usage: python bench/peers/data_fixtures.py tests/fixtures
"""

import io
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Image as HubImage, Sequence, Value
from PIL import Image, ImageOps

ROOT = Path(sys.argv[1])


def picture(width=37, height=22, phase=0):
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack([x * 255 // width, y * 255 // height, (x * 5 + y * 3 + phase) % 256], -1).astype(np.uint8)
    rgb[5:12, 8:20] = (200, 30, 40)
    return Image.fromarray(rgb)


def rgba(width=37, height=22):
    image = picture(width, height).convert("RGBA")
    alpha = np.tile((np.arange(width) * 255 // width).astype(np.uint8), (height, 1))
    image.putalpha(Image.fromarray(alpha))
    return image


def encoded(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def expected(data):
    """As `datasets` decodes, with transparency on white."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        white.alpha_composite(image)
        image = white
    return image.convert("RGB")


def without_adobe(jpeg):
    at = jpeg.index(b"\xff\xee")
    return jpeg[:at] + jpeg[at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big") :]


def with_transform(jpeg, transform):
    at = jpeg.index(b"Adobe") + 11
    return jpeg[:at] + bytes([transform]) + jpeg[at + 1 :]


def turned(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def images(out):
    cmyk = encoded(picture().convert("CMYK"), "JPEG", quality=92)
    frames = [picture(phase=p) for p in (0, 90)]
    clear = picture().quantize(16)
    files = {
        "cmyk.jpg": cmyk,
        "cmyk_plain.jpg": without_adobe(cmyk),
        "ycck.jpg": with_transform(cmyk, 2),
        "progressive.jpg": encoded(picture(), "JPEG", quality=90, progressive=True),
        "grey.jpg": encoded(picture().convert("L"), "JPEG", quality=90),
        "oriented.png": encoded(picture(), "PNG", exif=turned(6)),
        "lossless.webp": encoded(picture(), "WEBP", lossless=True),
        "alpha.webp": encoded(rgba(), "WEBP", lossless=True, exact=True),
        "lossy.webp": encoded(picture(), "WEBP", quality=90),
        "oriented.webp": encoded(picture(), "WEBP", lossless=True, exif=turned(8)),
        "animated.webp": encoded(frames[0], "WEBP", lossless=True, save_all=True, append_images=frames[1:]),
        "still.gif": encoded(picture().quantize(64), "GIF"),
        "clear.gif": encoded(clear, "GIF", transparency=3),
        "animated.gif": encoded(frames[0].quantize(32), "GIF", save_all=True, append_images=[frames[1].quantize(32)]),
        "rgb.bmp": encoded(picture(), "BMP"),
        "palette.bmp": encoded(picture().quantize(16), "BMP"),
        "one_bit.bmp": encoded(picture().convert("1"), "BMP"),
    }
    for name, data in files.items():
        (out / name).write_bytes(data)
        expected(data).save(out / (name.replace(".", "_") + ".expected.png"), optimize=True)


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def cell(data, path=None):
    return {"bytes": data, "path": path}


def layouts(out):
    out.mkdir(exist_ok=True)
    png = [encoded(picture(12, 8, p), "PNG") for p in (0, 60, 120)]
    one = ["<image>one", "<image><image>two", "none"]
    lists = [[cell(png[0], "a.png")], [cell(png[1]), cell(png[2], "c.png")], []]

    def write(name, columns, **options):
        pq.write_table(pa.table(columns), out / name, **options)

    def problems(texts=one):
        return pa.array(texts)

    write("list_element.parquet", {"problem": problems(), "images": pa.array(lists, pa.list_(IMAGE))})
    write("list_item.parquet", {"problem": problems(), "images": pa.array(lists, pa.list_(pa.field("item", IMAGE)))}, use_compliant_nested_type=False)
    write("list_array.parquet", {"problem": problems(), "images": pa.array(lists, pa.list_(pa.field("array", IMAGE)))}, use_compliant_nested_type=False)
    required = pa.struct([pa.field("bytes", pa.binary(), nullable=False)])
    write(
        "list_required.parquet",
        {"problem": problems(), "images": pa.array([[{"bytes": png[0]}], [{"bytes": png[1]}, {"bytes": png[2]}], []], pa.list_(pa.field("element", required, nullable=False)))},
    )
    write("list_bytes.parquet", {"problem": problems(), "images": pa.array([[png[0]], png[1:], []], pa.list_(pa.binary()))})
    write(
        "large.parquet",
        {
            "problem": pa.array(one, pa.large_string()).dictionary_encode(),
            "images": pa.array(lists, pa.large_list(pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())]))),
        },
        row_group_size=1,
        compression="zstd",
    )
    write(
        "nulls.parquet",
        {
            "problem": problems(["<image>a", None, "<image>c", "<image>d", "<image>e", "  "]),
            "images": pa.array([lists[0], lists[0], None, [None], [cell(None, None)], lists[0]], pa.list_(IMAGE)),
            "answer": pa.array([1.5, 2.0, 3.0, 4.0, 5.0, 6.0]),
        },
    )
    write("bytes.parquet", {"question": problems(["a", "b"]), "image": pa.array([png[0], None], pa.binary()), "answer": pa.array([7, None], pa.uint32())})
    write("fixed.parquet", {"question": problems(["a"]), "image": pa.array([png[0]], pa.binary(len(png[0]))), "answer": pa.array([True])})
    write("floats.parquet", {"question": ["a", "b", "c"], "answer": pa.array([0.1, float("nan"), float("inf")], pa.float32())})
    write("text.parquet", {"question": ["What is 2 + 3?", "And 4 + 4?"], "answer": pa.array([5, 8]), "unused": pa.array([[1], [2]])})
    write("bad_utf8.parquet", {"question": pa.array([b"good", b"\xff\xfe", b"also"], pa.binary())})
    write("question_list.parquet", {"question": pa.array([["a"]]), "image": pa.array([png[0]])})
    write("image_number.parquet", {"question": ["a"], "image": pa.array([3])})
    write("image_named_otherwise.parquet", {"question": ["a"], "scan": pa.array([cell(png[0])], IMAGE)})
    for codec in ("none", "snappy", "gzip", "zstd", "brotli", "lz4"):
        write(f"codec_{codec}.parquet", {"problem": problems(), "images": pa.array(lists, pa.list_(IMAGE))}, compression=codec)


def presets(out):
    drawing = [Image.open(io.BytesIO(encoded(picture(24, 16, p).quantize(8), "PNG"))) for p in range(4)]

    def write(name, columns, features):
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Dataset.from_dict(columns, features=Features(features)).to_parquet(str(path))

    text = Value("string")
    geometry = {"images": Sequence(HubImage()), "problem": text, "answer": text}
    for i, split in enumerate(("train", "validation", "test")):
        rows = {
            "images": [[drawing[i]], [drawing[i + 1]]],
            "problem": ["<image>Find x.", "<image>Find the area of the parallelogram. Round to the nearest tenth if necessary."],
            "answer": ["3", "11 \\sqrt { 3 }"],
        }
        write(f"geometry3k/data/{split}-00000-of-00001.parquet", rows, geometry)
    write(
        "geoqa/data/train-00000-of-00001.parquet",
        {
            "image": drawing[:2],
            "problem": ["As shown in the figure, what is the degree of angle AOB? ()", "What is the length of AB?"],
            "solution": ["<answer> 145° </answer>", "<answer> 2√3 </answer>"],
        },
        {"image": HubImage(), "problem": text, "solution": text},
    )
    write(
        "mmr1/data/train-00000-of-00001.parquet",
        {"images": [[drawing[0]], [drawing[1]]], "problem": ["<image>How many?", "<image>What is x?"], "answer": ["4", "\\frac{1}{2}"]},
        {"images": Sequence(HubImage()), "problem": text, "answer": text},
    )
    vista = {
        "pid": text, "question": text, "image": text, "decoded_image": HubImage(), "choices": Sequence(text), "unit": text,
        "precision": Value("float64"), "answer": text, "question_type": text, "answer_type": text,
        "metadata": {"category": text, "skills": Sequence(text)}, "query": text,
    }
    rows = {
        "pid": ["1", "2"],
        "question": ["How far is it? (Unit: m)", "Which angle is right?"],
        "image": ["images/1.jpg", "images/2.jpg"],
        "decoded_image": drawing[:2],
        "choices": [None, ["45°", "90°", "135°"]],
        "unit": ["m", None],
        "precision": [1.0, None],
        "answer": ["1.2", "90°"],
        "question_type": ["free_form", "multi_choice"],
        "answer_type": ["float", "text"],
        "metadata": [{"category": "general-vqa", "skills": ["arithmetic reasoning"]}] * 2,
        "query": ["Hint: … Question: How far is it? (Unit: m)", "Hint: … Choices: (A) 45° …"],
    }
    write("mathvista/data/testmini-00000-of-00001-725687bf7a18d64b.parquet", rows, vista)
    write("mathvista/data/test-00000-of-00001-6b81bd7f7e2065e6.parquet", {**rows, "answer": ["", ""]}, vista)


images(ROOT / "data_images")
layouts(ROOT / "data_layouts")
presets(ROOT / "data_presets")
