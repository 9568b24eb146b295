"""What all reports share: one document for text and notebooks, one set of rows for JSON and data frames."""

import html.parser
import pickle
import sys
import types

import numpy as np
import pytest

import tfmot_asp
from tests.small_models import convnet
from tfmot_asp.reports.document import Document, Table
from tfmot_asp.reports.table import Marked


@pytest.fixture(scope="module")
def reports():
    """One of each kind that has rows."""
    model = convnet()
    permuted = tfmot_asp.permute(model, effort="fast")
    images = np.random.default_rng(0).normal(size=(8, 8, 8, 3)).astype(np.float32)
    pruned = tfmot_asp.prune_trained_model(model, permute=False, calibration_data=images, effort="fast")
    pruned.remove()
    return [permuted, pruned.calibration, tfmot_asp.sparsity_report(model), tfmot_asp.quantization_report(model)]


TAGS = "div", "p", "table", "thead", "tbody", "tr", "th", "td", "caption", "small", "br", "strong"


class Tags(html.parser.HTMLParser):
    """Counts tags, and fails where one is left open."""

    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag != "br":
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def read(page):
    tags = Tags()
    tags.feed(page)
    assert not tags.open
    return tags


def test_the_summary_comes_first_and_can_stand_alone(reports):
    for report in reports:
        summary = report.to_text(None, tables=False)
        assert str(report).startswith(f"{summary}\n\n")
        assert report.to_text(None).startswith(f"{summary}\n\nlayer ")
        assert set(report.to_text(120).split()) == set(str(report).split())
        assert len(report.to_text(60).splitlines()) > len(str(report).splitlines())


def test_notebooks_show_the_same_cells(reports):
    for report in reports:
        tags = read(report._repr_html_())
        assert {tag for tag, _ in tags.seen} <= set(TAGS)
        assert all("color" not in attributes.get("style", "") for _, attributes in tags.seen)
        assert [attributes["scope"] for tag, attributes in tags.seen if tag == "th"].count("row") >= 3
        assert sorted(" ".join(tags.text).split()) == sorted(report.to_text(None).split())


def test_html_is_escaped_and_shows_no_control_characters():
    page = Document(["<script>alert(1)</script>"], [Table(("a & b", "c"), [("<b>", "\x1b[31m")], "<i>", ["<u>"])])
    tags = read(page.to_html())
    assert not {"script", "b", "i", "u"} & {tag for tag, _ in tags.seen}
    assert "<script>alert(1)</script>" in tags.text
    assert "\x1b" not in page.to_html() + page.to_text()


def test_bad_news_are_bold():
    assert "<strong>NOT ok</strong>" in Document([Marked("NOT ok", "bad")]).to_html()
    assert "<strong>" not in Document([Marked("ok", "good")]).to_html()


def test_what_is_to_be_copied_stays_whole():
    command = "TensorRT: trtexec " + "--flag " * 40
    assert Document([Marked(command, "whole")]).to_text(80) == command
    assert pickle.loads(pickle.dumps(Marked(command, "whole"))).mood == "whole"


def test_a_data_frame_has_the_rows_of_the_data(reports):
    pandas = pytest.importorskip("pandas")
    for report in reports:
        frame = report.to_dataframe()
        assert isinstance(frame, pandas.DataFrame)
        assert list(frame["name"]) == [row["name"] for row in report.to_dict()["layers"]]


def test_a_data_frame_needs_pandas(reports, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="needs pandas: pip install pandas"):
        reports[0].to_dataframe()
    seen = types.SimpleNamespace(DataFrame=types.SimpleNamespace(from_records=list))
    monkeypatch.setitem(sys.modules, "pandas", seen)
    assert reports[0].to_dataframe() == list(reports[0].to_dict()["layers"])


def test_a_search_result_is_shown_in_notebooks_too():
    result = tfmot_asp.search(np.random.default_rng(0).normal(size=(8, 8)), effort="fast")
    assert "8 columns, 2:4" in result._repr_html_()
