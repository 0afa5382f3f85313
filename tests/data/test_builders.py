"""The datasets with files of their own, on a handful of made ones in the original layouts."""

import gzip
import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from segzoo import data
from segzoo.data import camvid, dsb2018_nuclei, isbi2012_em, mnist, oxford_iiit_pet
from segzoo.errors import SegzooError

RNG = np.random.default_rng(0)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)


def color(height=6, width=8):
    return RNG.integers(0, 256, (height, width, 3), np.uint8)


def ids(high, height=6, width=8):
    return RNG.integers(0, high, (height, width), np.uint8)


def listed(root, splits, image, mask, suffix=".png"):
    """Writes images/, masks/ and the lists; returns what was written by name."""
    made = {}
    for split, names in splits.items():
        (root / f"{split}.txt").write_text("\n".join(names) + "\n")
        for name in names:
            made[name] = image(), mask()
            save(root / "images" / f"{name}{suffix}", made[name][0])
            save(root / "masks" / f"{name}.png", made[name][1])
    return made


@pytest.fixture
def manual(tmp_path):
    folder = tmp_path / "manual"
    folder.mkdir()
    return folder


def get(name, tmp_path):
    return data.get(name, data_dir=tmp_path / "data", manual_dir=tmp_path / "manual")


CAMVID = {"train": ["b", "a"], "val": ["c"], "test": ["d"]}


@pytest.fixture
def few_camvid(monkeypatch):
    counts = {split: len(names) for split, names in CAMVID.items()}
    monkeypatch.setattr(camvid.Camvid, "SPLITS", counts)


def test_camvid_keeps_the_lists_order_and_makes_11_void(few_camvid, manual, tmp_path):
    made = listed(manual, CAMVID, color, lambda: ids(12))
    dataset = get("camvid", tmp_path)
    assert dataset.splits == {"train": 2, "val": 1, "test": 1}
    source = dataset.source("train")
    assert [source.name(i) for i in range(2)] == ["b", "a"]
    for name, example in zip("ba", (source[0], source[1]), strict=True):
        image, mask = made[name]
        np.testing.assert_array_equal(example["image"], image)
        np.testing.assert_array_equal(example["label"], np.where(mask == 11, 255, mask))


def test_camvid_takes_segnets_own_folder(few_camvid, manual, tmp_path):
    made = {}
    for split, names in CAMVID.items():
        lines = [
            f"/SegNet/CamVid/{split}/{n}.png /SegNet/CamVid/{split}annot/{n}.png" for n in names
        ]
        (manual / f"{split}.txt").write_text("\n".join(lines))
        for name in names:
            made[name] = ids(12)
            save(manual / split / f"{name}.png", color())
            save(manual / f"{split}annot" / f"{name}.png", made[name])
    label = get("camvid", tmp_path).source("val")[0]["label"]
    np.testing.assert_array_equal(label, np.where(made["c"] == 11, 255, made["c"]))


def test_missing_files_say_what_goes_where(few_camvid, tmp_path, manual):
    dataset = data.get("camvid", data_dir=tmp_path)
    where = tmp_path / "downloads" / "manual" / "camvid"
    with pytest.raises(
        SegzooError, match=f"in {where}: .*trainannot/.*Found 0 of 3; missing train"
    ):
        dataset.source("train")
    listed(manual, CAMVID, color, lambda: ids(12))
    (manual / "masks" / "d.png").unlink()
    with pytest.raises(
        SegzooError, match=r"Found 7 of 8 images and masks; missing e\.g\. .*d\.png"
    ):
        get("camvid", tmp_path).source("train")
    assert not list((tmp_path / "data").rglob("1.0.0"))


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda root: save(root / "masks/a.png", ids(12, 5)), "a.png: the image is 8x6 and the"),
        (
            lambda root: save(root / "masks/a.png", np.full((6, 8), 12, np.uint8)),
            r"masks/a.png: class ids outside 0\.\.10 \(found 12\)",
        ),
        (
            lambda root: (root / "images/a.png").write_bytes(
                (root / "images/a.png").read_bytes()[:90]
            ),
            "images/a.png: the image is damaged",
        ),
        (
            lambda root: (root / "train.txt").write_text("a\n"),
            "train.txt lists 1 images; expected 2",
        ),
        (lambda root: (root / "train.txt").write_text("a\na\n"), "'a' is listed twice"),
    ],
    ids=["size", "ids", "damaged", "short list", "twice"],
)
def test_wrong_files_are_named_and_leave_no_dataset(
    few_camvid, manual, tmp_path, break_it, message
):
    listed(manual, CAMVID, color, lambda: ids(12))
    break_it(manual)
    with pytest.raises(SegzooError, match=message):
        get("camvid", tmp_path).source("train")
    assert not [p for p in (tmp_path / "data").rglob("*") if p.is_file() and p.name != ".lock"]


def test_isbi_takes_the_challenge_stacks(monkeypatch, manual, tmp_path):
    monkeypatch.setattr(isbi2012_em.Isbi2012Em, "SPLITS", {"train": 2, "val": 1})
    volume = [ids(256) for _ in range(3)]
    labels = [ids(2) * np.uint8(255) for _ in range(3)]
    for name, pages in (("train-volume.tif", volume), ("train-labels.tif", labels)):
        first, *rest = map(Image.fromarray, pages)
        first.save(manual / name, save_all=True, append_images=rest)
    dataset = get("isbi2012_em", tmp_path)
    with pytest.raises(SegzooError, match="no split 'test'"):
        dataset.source("test")
    example = dataset.source("val")[0]
    np.testing.assert_array_equal(example["image"], volume[2][..., None])
    np.testing.assert_array_equal(example["label"], labels[2] // 255)


def test_isbi_takes_single_files_with_0_and_1_or_255(monkeypatch, manual, tmp_path):
    monkeypatch.setattr(isbi2012_em.Isbi2012Em, "SPLITS", {"train": 1, "val": 1})
    made = listed(manual, {"train": ["00"], "val": ["01"]}, lambda: ids(256), lambda: ids(2))
    save(manual / "masks" / "01.png", made["01"][1] * np.uint8(255))
    dataset = get("isbi2012_em", tmp_path)
    for split, name in (("train", "00"), ("val", "01")):
        np.testing.assert_array_equal(dataset.source(split)[0]["label"], made[name][1])


DSB = {"train": ["aa"], "val": ["bb"], "test": ["cc"]}


def test_dsb_keeps_instances(monkeypatch, manual, tmp_path):
    monkeypatch.setattr(dsb2018_nuclei.Dsb2018Nuclei, "SPLITS", dict.fromkeys(DSB, 1))
    made = listed(manual, DSB, lambda: ids(256), lambda: ids(5))
    example = get("dsb2018_nuclei", tmp_path).source("val")[0]
    assert example["instances"].dtype == np.int32
    np.testing.assert_array_equal(example["instances"], made["bb"][1])
    np.testing.assert_array_equal(example["label"], made["bb"][1] > 0)


def test_dsb_is_also_a_dataset_of_objects(monkeypatch, manual, tmp_path):
    monkeypatch.setattr(dsb2018_nuclei.Dsb2018Nuclei, "SPLITS", dict.fromkeys(DSB, 1))
    made = listed(manual, DSB, lambda: ids(256), lambda: ids(5) * 3)
    dataset = get("dsb2018_nuclei_instances", tmp_path)
    assert dataset.spec.task == "instance"
    assert dataset.spec.class_names == ("background", "nucleus")
    example = dataset.source("val")[0]
    np.testing.assert_array_equal(example["instances"], made["bb"][1] // 3)
    assert example["classes"].tolist() == [1] * 4
    # By default its files are where those of the semantic dataset are.
    with pytest.raises(SegzooError, match="downloads/manual/dsb2018_nuclei: "):
        data.get("dsb2018_nuclei_instances", data_dir=tmp_path).source("train")


def test_dsb_takes_the_competitions_folders(monkeypatch, manual, tmp_path):
    monkeypatch.setattr(dsb2018_nuclei.Dsb2018Nuclei, "SPLITS", dict.fromkeys(DSB, 1))
    first, second = np.zeros((2, 6, 8), np.uint8)
    first[:, :4], second[:, 3:6] = 255, 255
    for split, (name,) in DSB.items():
        (manual / f"{split}.txt").write_text(name)
        folder = manual / "stage1_train" / f"{name}0123"
        save(folder / "images" / f"{name}0123.png", np.repeat(ids(256)[..., None], 4, -1))
        save(folder / "masks" / "1.png", first)
        save(folder / "masks" / "2.png", second)
    example = get("dsb2018_nuclei", tmp_path).source("test")[0]
    # Column 3 belongs to both: the earlier file's nucleus keeps it.
    np.testing.assert_array_equal(example["instances"], [[1, 1, 1, 1, 2, 2, 0, 0]] * 6)
    assert example["image"].shape == (6, 8, 1)


def write_idx(path, array, pack=lambda raw: raw):
    header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
    path.write_bytes(pack(header + array.tobytes()))


def test_mnist_reads_idx_files_gzipped_or_not(monkeypatch, manual, tmp_path):
    monkeypatch.setattr(mnist.Mnist, "SPLITS", {"train": 5, "test": 3})
    digits = {}
    for split, prefix, count, pack, end in (
        ("train", "train", 5, gzip.compress, ".gz"),
        ("test", "t10k", 3, lambda raw: raw, ""),
    ):
        images = RNG.integers(0, 256, (count, 28, 28), np.uint8)
        labels = RNG.integers(0, 10, count, np.uint8)
        digits[split] = images, labels
        write_idx(manual / f"{prefix}-images-idx3-ubyte{end}", images, pack)
        write_idx(manual / f"{prefix}-labels-idx1-ubyte{end}", labels, pack)
    dataset = get("mnist", tmp_path)
    for split, (images, labels) in digits.items():
        source = dataset.source(split)
        for i in range(len(source)):
            np.testing.assert_array_equal(source[i]["image"], images[i][..., None])
            assert source[i]["label"].dtype == np.int32
            assert source[i]["label"].shape == ()
            assert source[i]["label"] == labels[i]
    assert len(dataset.source("train[:3]")) == 3


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "not an idx file"),
        (b"\x1f\x8b\x08 cut", "gzip file is damaged"),
        (bytes([0, 0, 8, 3]) + np.array([5, 28, 28], ">u4").tobytes(), "0 bytes of values"),
        (bytes([0, 0, 8, 1]) + np.array([5], ">u4").tobytes() + bytes(5), "with 3 axes"),
    ],
)
def test_damaged_idx_files_are_named(tmp_path, raw, message):
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(raw)
    with pytest.raises(SegzooError, match=f"{path.name}: .*{message}"):
        mnist.read_idx(path, (5, 28, 28))


def add(tar, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def encoded(image, kind):
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


PETS = {"trainval": ["Abyssinian_1", "beagle_1", "beagle_2"], "test": ["Bombay_1"]}


def write_pets(manual, skip=None, trimap_values=(1, 4)):
    trimaps = {}
    with tarfile.open(manual / "annotations.tar.gz", "w:gz") as tar:
        for split, names in PETS.items():
            lines = [f"{name} 1 1 1" for name in names]
            add(tar, f"annotations/{split}.txt", "\n".join(["#header", *lines]).encode())
            for i, name in enumerate(names):
                trimaps[name] = RNG.integers(*trimap_values, (6 + i, 8), np.uint8)
                png = encoded(Image.fromarray(trimaps[name]), "PNG")
                add(tar, f"annotations/trimaps/{name}.png", png)
                add(tar, f"annotations/trimaps/._{name}.png", b"a Mac's note")
    with tarfile.open(manual / "images.tar.gz", "w:gz") as tar:
        for i, name in enumerate(n for names in PETS.values() for n in names):
            picture = Image.fromarray(color(*trimaps[name].shape))
            # Of the real files, some are not what their suffix says.
            kind = ("JPEG", "PNG", "GIF", "JPEG")[i]
            picture = picture.convert("CMYK") if i == 3 else picture
            if name != skip:
                add(tar, f"images/{name}.jpg", encoded(picture, kind))
        add(tar, "images/Abyssinian_1.mat", b"not an image")
    return trimaps


def test_pets_come_from_the_archives(monkeypatch, manual, tmp_path):
    monkeypatch.setattr(oxford_iiit_pet.OxfordIiitPet, "SPLITS", {"trainval": 3, "test": 1})
    trimaps = write_pets(manual)
    dataset = get("oxford_iiit_pet", tmp_path)
    assert dataset.splits == {"trainval": 3, "test": 1}
    source = dataset.source("trainval+test")
    assert {source.name(i) for i in range(4)} == set(trimaps)
    for i in range(4):
        trimap = trimaps[source.name(i)]
        np.testing.assert_array_equal(source[i]["label"], trimap - 1)
        assert source[i]["image"].shape == (*trimap.shape, 3) == source.image_shape(i)


def test_pets_wrong_archives_are_named(monkeypatch, manual, tmp_path):
    monkeypatch.setattr(oxford_iiit_pet.OxfordIiitPet, "SPLITS", {"trainval": 3, "test": 1})
    dataset = get("oxford_iiit_pet", tmp_path)
    with pytest.raises(SegzooError, match=r"Found 0 of 2; missing images\.tar\.gz, annotations"):
        dataset.source("test")
    write_pets(manual, skip="beagle_2")
    with pytest.raises(SegzooError, match=r"1 of 3 listed images are missing.*beagle_2\.jpg"):
        dataset.source("test")
    write_pets(manual, trimap_values=(1, 6))
    with pytest.raises(SegzooError, match=r"its trimap holds values .*expected 1\.\.3"):
        dataset.source("test")
    archive = manual / "annotations.tar.gz"
    archive.write_bytes(archive.read_bytes()[:200])
    with pytest.raises(SegzooError, match=r"annotations\.tar\.gz: the archive is damaged"):
        dataset.source("test")
