"""What the report takes from a study's README.md."""

from pathlib import Path

import pytest

from etude import registry
from etude.report.prose import Readme

TEXT = """# title

![The words](../../../../results/protonet/x/figures/episode.png) ![](elsewhere.png)

## Deviations from the paper

| where | the paper | here |
|---|---|---|
| <script>alert(1)</script> | `<b>` | [code](task.py), [page](https://example.org/a) |

### More of it

![a picture](x.png) <img src="https://example.org/x.png"> [go](javascript:alert(1))

## Results

not this
"""


@pytest.fixture
def readme(tmp_path: Path) -> Readme:
    (tmp_path / "README.md").write_text(TEXT)
    return Readme(tmp_path / "README.md")


def test_the_section_is_html(readme: Readme) -> None:
    page = readme.html("Deviations", 4)
    assert '<th scope="col">where</th>' in page
    assert '<div class="wide" role="region" tabindex="0" aria-label="Deviations"><table>' in page
    assert "<h4>More of it</h4>" in page
    assert "not this" not in page
    assert "title" not in page


def test_html_in_it_is_text(readme: Readme) -> None:
    page = readme.html("Deviations", 4)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script" not in page
    assert "<img" not in page
    assert "<code>&lt;b&gt;</code>" in page


def test_only_links_that_lead_somewhere_are_kept(readme: Readme) -> None:
    page = readme.html("Deviations", 4)
    assert page.count("<a ") == 1
    assert '<a href="https://example.org/a">page</a>' in page
    assert "<td><code>" in page
    assert "a picture" in page
    assert 'href="javascript' not in page


def test_the_section_is_markdown(readme: Readme) -> None:
    text = readme.markdown("Deviations")
    assert text.startswith("| where |")
    assert "| \\<script>alert(1)\\</script> | `<b>` | code, [page](https://example.org/a) |" in text
    assert "### More of it" in text
    assert "a picture \\<img" in text
    assert "not this" not in text


def test_pictures_with_their_words(readme: Readme) -> None:
    assert readme.pictures() == {"protonet/x/figures/episode.png": "The words"}


def test_a_readme_that_says_nothing(tmp_path: Path) -> None:
    for readme in (Readme(tmp_path / "none.md"), Readme(tmp_path)):
        assert (readme.html("Deviations", 3), readme.markdown("Deviations"), readme.pictures()) == ("", "", {})


@pytest.mark.parametrize("name", registry.NAMES)
def test_every_study_says_its_deviations(name: str) -> None:
    readme = Readme(registry.load(name).folder / "README.md")
    assert readme.html("Deviations", 4).count("<tr>") > 4
    assert "## Results" not in readme.markdown("Deviations")
