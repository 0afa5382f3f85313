"""The tables of models: the numbers kept are those counted, and those published."""

import json
from pathlib import Path

import pytest

import segzoo
from segzoo import SegzooError, registry, zoo

ROOT = Path(__file__).parents[1]
FACTS = json.loads((ROOT / zoo.FACTS).read_text())


def smallest_of_each_file():
    families = {}
    for name in segzoo.list_models():
        families.setdefault(registry.entry(name).builder.__module__, []).append(name)
    return [min(names, key=lambda n: FACTS[n]["parameters"]) for names in families.values()]


SMALLEST = smallest_of_each_file()


@pytest.mark.parametrize("name", SMALLEST)
def test_the_numbers_kept_are_those_counted(name):
    assert zoo.count(name) == FACTS[name]


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", sorted(set(segzoo.list_models()) - set(SMALLEST)))
def test_the_numbers_kept_are_those_counted_for_all(name):
    assert zoo.count(name) == FACTS[name]


@pytest.mark.parametrize("name", segzoo.list_models())
def test_the_published_numbers(name):
    entry = registry.entry(name)
    if entry.parameters is not None:
        assert FACTS[name]["parameters"] == entry.parameters
    if entry.gmacs is not None:
        assert FACTS[name]["multiply_adds"] / 1e9 == pytest.approx(entry.gmacs, rel=0.01)


def test_every_model_is_counted_once():
    assert sorted(FACTS) == segzoo.list_models()
    assert zoo.update(ROOT, check=True) == []


class TestUpdate:
    @pytest.fixture
    def house(self, tmp_path, monkeypatch):
        (tmp_path / "docs").mkdir()
        (tmp_path / "docs" / "models.md").write_text("")
        monkeypatch.setattr(segzoo.registry, "list_models", lambda *_: ["unet", "vgg11"])
        counted = []
        monkeypatch.setattr(zoo, "count", lambda name: counted.append(name) or {"parameters": 1})
        self.counted = counted
        return tmp_path

    def test_what_is_missing_is_counted_and_what_is_gone_dropped(self, house):
        path = house / zoo.FACTS
        path.write_text(json.dumps({"gone": {}, "vgg11": {"parameters": 2}}))
        assert zoo.update(house, check=True) == [path]
        assert self.counted == []
        assert zoo.update(house) == [path]
        assert self.counted == ["unet"]
        assert json.loads(path.read_text()) == {
            "unet": {"parameters": 1},
            "vgg11": {"parameters": 2},
        }
        assert zoo.update(house, check=True) == zoo.update(house) == []

    def test_counting_anew_finds_what_changed(self, house):
        path = house / zoo.FACTS
        zoo.update(house)
        path.write_text(path.read_text().replace("1", "3", 1))
        assert zoo.update(house, anew=True, check=True) == [path]
        assert '"parameters": 3' in path.read_text()
        assert zoo.update(house, anew=True) == [path]
        assert zoo.update(house, anew=True, check=True) == []

    def test_a_file_that_is_no_object_is_named(self, house):
        (house / zoo.FACTS).write_text("[]")
        with pytest.raises(SegzooError, match=r"models\.json holds a list; expected an object"):
            zoo.update(house)
        (house / zoo.FACTS).write_text("{")
        with pytest.raises(SegzooError, match=r"models\.json cannot be read as JSON"):
            zoo.tables(house)

    def test_without_a_page_of_models_nothing_is_counted(self, house):
        (house / "docs" / "models.md").unlink()
        assert zoo.update(house) == []
        assert not (house / zoo.FACTS).exists()


def test_parity_says_what_was_measured_and_what_was_not(tmp_path):
    (tmp_path / "docs").mkdir()
    names = ["resnet18", "vgg16", "unet", "mask_rcnn_resnet50_fpn"]
    (tmp_path / zoo.FACTS).write_text(json.dumps({name: FACTS[name] for name in names}))
    parity = {
        "protocol": "the same weights in both.",
        "versions": {"jax": "1", "torch": "2", "torchvision": "3", "timm": "4"},
        "date": "2026-01-02",
        "models": {"resnet18": {"reference": "x", "logits": 1e-6, "stages": 2.34e-6}},
        "stages": {
            "mask_rcnn_resnet50_fpn": {
                "reference": "torchvision 3 maskrcnn_resnet50_fpn",
                "sizes": [[75, 97], [256, 320]],
                "errors": {"anchors": 0.0, "box_offsets": 1.26e-6},
            }
        },
    }
    (tmp_path / zoo.PARITY).write_text(json.dumps(parity))
    page, fields, readme = zoo.tables(tmp_path)
    rows = {line.split("`")[1]: line for line in page.text.splitlines() if "`" in line}
    assert list(rows) == names
    assert rows["resnet18"].endswith(" 32 | 2.3e-06 |")
    assert rows["vgg16"].endswith("| not run |")
    assert rows["unet"].endswith("| 204 | 1 | no counterpart |")
    assert "| 11,689,512 | 11,689,512 | 1.814 | 1.814 | 224x224x3 | 435 |" in rows["resnet18"]
    assert rows["mask_rcnn_resnet50_fpn"].startswith(
        "`mask_rcnn_resnet50_fpn` beside torchvision 3"
    )
    assert "one image of 75x97 and 256x320 each" in rows["mask_rcnn_resnet50_fpn"]
    assert "| by stage |" in page.text
    assert "| anchors | 0.0e+00 |" in page.text
    assert "| box offsets | 1.3e-06 |" in page.text
    assert "measured 2026-01-02 (jax 1, torch 2, torchvision 3, timm 4): the same" in page.text
    assert "| `resnet18` | - | 7 | 43 | 99 | 211 | 435 |" in fields.text
    assert "| `vgg16` | 5 | 14 | 40 | 92 | 196 | 212 |" in fields.text
    assert "unet" not in fields.text
    assert "| `resnet18` | arXiv:1512.03385 | 11.7 M |" in readme.text
