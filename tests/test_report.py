import json

import pytest

from segzoo import SegzooError, report
from segzoo.records import Row

PUBLISHED = {"metric": "miou", "value": 0.477, "source": "paper, Table 1", "protocol": "theirs"}


def make_record(**changes):
    record = {
        "experiment": "camvid_segnet",
        "row": "segnet_basic",
        "preset": "full",
        "model": "segnet_basic",
        "model_args": {},
        "dataset": "camvid",
        "split": "test",
        "task": "semantic",
        "scores": {
            "miou": 0.48149,
            "pixel_accuracy": 0.8,
            "class_accuracy": None,
            "fw_iou": 0.7,
            "mean_dice": 0.6,
            "iou": {"sky": 0.9, "sign": None},
        },
        "protocol": "ours at 360x480",
        "published": PUBLISHED,
        "parameters": 1425000,
        "steps": 2000,
        "best_step": 1800,
        "batch_size": 12,
        "image_size": None,
        "seed": 0,
        "train_seconds": 90.0,
        "evaluate_seconds": 3,
        "device": "1 x CPU (2 cores)",
        "versions": {"jax": "0"},
        "commit": "0123456789abcdef",
        "date": "2026-01-01",
        "notes": "",
    }
    return {**record, **changes}


ROW = Row("camvid_segnet", "full", "segnet_basic", "camvid", PUBLISHED, row="segnet_basic")


@pytest.fixture
def house(tmp_path):
    (tmp_path / "docs" / "results").mkdir(parents=True)
    return tmp_path


def put(house, name="a.json", **changes):
    path = house / "docs" / "results" / name
    path.write_text(json.dumps(make_record(**changes)))
    return path


def lines_with(text, word):
    return [line for line in text.splitlines() if word in line]


def test_ours_stands_beside_the_published_number_and_its_protocol():
    text = report.render([make_record()], [ROW])
    (line,) = lines_with(text, "| segnet_basic | 1,425,000")
    assert "| 48.1 | 80.0 | - | 70.0 | 60.0 | mIoU 47.7 | 1,800 of 2,000 | 1.5 |" in line
    assert "- Ours: ours at 360x480" in text
    assert "- Published (paper, Table 1): theirs" in text
    assert "| segnet_basic | 90.0 | - |" in text


def test_boundary_f1_has_a_column_where_it_was_scored_and_all_published_scores_are_shown():
    published = {**PUBLISHED, "others": {"pixel_accuracy": 0.827, "boundary_f1": 0.3578}}
    scored = make_record(
        scores={**make_record()["scores"], "boundary_f1": 0.3012}, published=published
    )
    plain = make_record(row="other")
    row = Row("camvid_segnet", "full", "segnet_basic", "camvid", published, row="segnet_basic")
    text = report.render([scored, plain], [row])
    (head,) = lines_with(text, "| model | parameters |")
    assert "| Dice | BF | published |" in head
    (line,) = lines_with(text, "| segnet_basic | 1,425,000")
    assert "| 60.0 | 30.1 | mIoU 47.7, pixel acc. 82.7, BF 35.8 | 1,800" in line
    (line,) = lines_with(text, "| other (segnet_basic) | 1,425,000")
    assert "| 60.0 | - | mIoU 47.7 |" in line
    without = report.render([make_record(published=published)], [row])
    assert "BF 35.8 (ours -)" in without
    assert "| BF |" not in without


def test_rows_without_a_run_say_so():
    text = report.render([], [ROW])
    (line,) = lines_with(text, "not run")
    assert "mIoU 47.7" in line
    assert line.count("not run") == 1


def test_cheap_presets_have_their_own_table():
    small = make_record(preset="small", scores={**make_record()["scores"], "miou": 0.1})
    text = report.render([make_record(), small], [ROW])
    full, rest = text.split("### Preset `small`")
    assert "| 48.1 |" in full
    assert "| 10.0 |" not in full
    assert "| 10.0 |" in rest
    assert "10.0" not in report.render_summary([make_record(), small], [ROW])


def test_datasets_tasks_and_splits_do_not_share_a_table():
    mnist = make_record(
        dataset="mnist",
        task="classification",
        scores={"accuracy": 0.99051, "error": 0.00949},
        published={"metric": "error", "value": 0.0095, "source": "p", "protocol": ""},
    )
    val = make_record(split="val", row="other")
    text = report.render([make_record(), mnist, val])
    assert text.index("## camvid") < text.index("## mnist")
    assert "split `test`" in text
    assert "split `val`" in text
    assert "| 99.05 | 0.95 | error 0.95 |" in text
    assert len(lines_with(text, "| model | parameters |")) == 3


def test_a_class_can_be_what_is_compared():
    sky = {**PUBLISHED, "metric": "iou.sky", "value": 0.839}
    row = Row("camvid_segnet", "full", "segnet_basic", "camvid", sky, row="segnet_basic")
    text = report.render([make_record(published=sky)], [row])
    assert "| IoU of sky 83.9 (ours 90.0) |" in text
    summary = report.render_summary([make_record(published=sky)], [row])
    assert "| IoU of sky | 90.0 | 83.9 |" in summary
    unknown = {**PUBLISHED, "metric": "hausdorff"}
    row = Row("camvid_segnet", "full", "segnet_basic", "camvid", unknown, row="segnet_basic")
    assert "| hausdorff | - | 47.7 |" in report.render_summary([make_record()], [row])


def test_the_order_of_records_and_rows_is_settled():
    records = [make_record(row=name) for name in "cab"]
    rows = [Row("camvid_segnet", "full", "segnet_basic", "camvid", row=name) for name in "bca"]
    text = report.render(records, rows)
    assert text == report.render(records[::-1], rows)
    names = [line.split()[1] for line in lines_with(text, "(segnet_basic) | 1,425,000")]
    assert names == ["b", "c", "a"]  # as declared


def test_update_writes_once_and_check_finds_what_is_stale(house):
    put(house)
    results = house / "docs" / "results.md"
    assert report.update(house, [ROW], check=True) == [results]
    assert not results.exists()
    assert report.update(house, [ROW]) == [results]
    assert report.update(house, [ROW], check=True) == []
    put(house, scores={**make_record()["scores"], "miou": 0.5})
    assert report.update(house, [ROW], check=True) == [results]


def test_the_readme_table_stands_between_its_markers(house):
    put(house)
    readme = house / "README.md"
    readme.write_text("before\n<!-- results:begin -->\nold\n<!-- results:end -->\nafter\n")
    report.update(house, [ROW])
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| camvid | segnet_basic | mIoU | 48.1 | 47.7 | paper, Table 1 |" in text
    assert report.update(house, [ROW]) == []
    readme.write_text("<!-- results:begin --> alone")
    with pytest.raises(SegzooError, match=r"README\.md: expected one"):
        report.update(house, [ROW])


def test_further_tables_stand_between_their_own_markers(house):
    page = house / "docs" / "page.md"
    page.write_text("<!-- a:begin --><!-- a:end -->\n<!-- b:begin --><!-- b:end -->\n")
    readme = house / "README.md"
    readme.write_text("<!-- results:begin --><!-- results:end -->\n<!-- a:begin --><!-- a:end -->")
    tables = [
        report.Table("docs/page.md", "a", "one\n"),
        report.Table("docs/page.md", "b", "two\n"),
        report.Table("README.md", "a", "three\n"),
        report.Table("docs/none.md", "a", "four\n"),
    ]
    assert set(report.update(house, tables=tables)) == {
        house / "docs" / "results.md",
        page,
        readme,
    }
    assert page.read_text() == (
        "<!-- a:begin -->\n\none\n\n<!-- a:end -->\n<!-- b:begin -->\n\ntwo\n\n<!-- b:end -->\n"
    )
    assert "No full-size experiment" in readme.read_text()
    assert readme.read_text().endswith("three\n\n<!-- a:end -->")
    assert report.update(house, tables=tables, check=True) == []


def test_a_page_asks_for_the_runs_of_a_study(house):
    put(house)
    page = house / "docs" / "guide.md"
    markers = "<!-- runs:camvid_segnet:{}:begin -->\n<!-- runs:camvid_segnet:{}:end -->\n"
    page.write_text("Before.\n" + markers.format("full", "full"))
    other = Row("camvid_segnet", "full", "segnet", "camvid", None, row="segnet")
    assert page in report.update(house, [ROW, other])
    text = page.read_text()
    assert text.startswith("Before.\n")
    assert "| `segnet_basic` | camvid | 48.1 | 80.0 | - | 70.0 | 60.0 | 1.5 |" in text
    assert "| `segnet` | camvid | not run |" in text
    assert report.update(house, [ROW, other], check=True) == []
    page.write_text(markers.format("small", "small"))
    with pytest.raises(SegzooError, match=r"no row camvid_segnet\.\*\.small is declared"):
        report.update(house, [ROW, other])


def test_a_readme_without_markers_is_left_alone(house):
    (house / "README.md").write_text("nothing here")
    report.update(house)
    assert (house / "README.md").read_text() == "nothing here"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": "many"}, r"a\.json: field 'steps' is 'many'; expected an integer"),
        ({"parameters": True}, r"a\.json: field 'parameters' is True"),
        ({"scores": {}}, r"a\.json: scores lacks 'miou'"),
        ({"scores": {"miou": 48.1}}, r"scores\.miou is 48\.1; expected a fraction"),
        ({"task": "guessing"}, r"field 'task' is 'guessing'"),
        ({"published": {"metric": "miou"}}, r"published lacks the field 'value'"),
        ({"published": {**PUBLISHED, "value": 47.7}}, r"published\.value is 47\.7"),
        ({"published": {**PUBLISHED, "others": {"miou": 47}}}, r"others\.miou is 47"),
        (
            {"published": {**PUBLISHED, "others": [0.5]}},
            r"'others' is \[0\.5\]; expected an object",
        ),
        ({"image_size": 64}, r"field 'image_size' is 64; expected a list or null"),
    ],
)
def test_malformed_records_name_file_and_field(house, changes, message):
    put(house, **changes)
    with pytest.raises(SegzooError, match=message):
        report.update(house)


def test_missing_fields_and_broken_json_are_named(house):
    path = put(house)
    record = make_record()
    del record["device"]
    path.write_text(json.dumps(record))
    with pytest.raises(SegzooError, match=r"a\.json lacks the field 'device'"):
        report.update(house)
    path.write_text("{")
    with pytest.raises(SegzooError, match=r"a\.json cannot be read as JSON"):
        report.update(house)
    path.write_text("[]")
    with pytest.raises(SegzooError, match="expected an object"):
        report.update(house)


def test_two_records_of_one_row_are_refused(house):
    put(house)
    put(house, "b.json")
    with pytest.raises(SegzooError, match=r"b\.json and a\.json are records of the same row"):
        report.update(house)


def test_bars_and_line_breaks_do_not_break_the_table():
    text = report.render([make_record(device="a|b\nc")])
    (line,) = lines_with(text, "1,425,000")
    assert "a\\|b c" in line


def test_outside_a_repository(tmp_path):
    with pytest.raises(SegzooError, match="no docs folder"):
        report.update(tmp_path)
