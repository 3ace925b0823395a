"""Mathematics of the site: no formula is lost, none is shown as it was written."""

from __future__ import annotations

from xml.etree import ElementTree

import markdown
import pytest
import typst

from docs.generator.mathematics import dollars, latex_html, typst_html


def shown(html: str) -> str:
    """The text that a page shows."""
    return "".join(ElementTree.fromstring(f"<p>{html}</p>").itertext())


def rendered(text: str) -> str:
    return markdown.markdown(text, extensions=["docs.generator.mathematics", "fenced_code"])


def test_pieces_of_typst_keep_their_order_and_their_text():
    pieces = [f"piece {i}: ${letter}_{i}$ and #emph[more]" for i, letter in enumerate("abc")]
    found = typst_html([*pieces, "", "last"])
    assert len(found) == 5
    assert [each.count("<math>") for each in found] == [1, 1, 1, 0, 0]
    assert [shown(each.replace(" ", " ")).split(":")[0] for each in found[:3]] == [
        "piece 0",
        "piece 1",
        "piece 2",
    ]
    assert found[3:] == ["", "last"]


def test_the_square_of_a_norm_in_a_fraction_stays_on_its_line():
    (found,) = typst_html(["$|v|^2/2$"])
    assert "mfrac" not in found


def test_typst_that_does_not_compile_says_where():
    with pytest.raises(typst.TypstError) as error:
        typst_html(["fine", "$unknown_symbol$"])
    assert "unknown_symbol" in error.value.__notes__[0]


def test_latex_with_an_unknown_command_is_refused():
    with pytest.raises(ValueError, match=r"unknown command \\nonsense"):
        latex_html(r"\nonsense{x}")


@pytest.mark.parametrize("latex", [r"\beta_t \ge \sigma^2", r"\arg\min_x f", r"\frac{a}{b}"])
def test_no_backslash_of_latex_is_shown(latex: str):
    assert "\\" not in shown(latex_html(latex))


def test_roles_and_directives_become_dollars():
    text = "As :math:`a_k\n  + b`:\n\n    .. math:: x =\n        y.\n\nThen ``code``."
    assert dollars(text) == "As $a_k + b$:\n\n    $$x = y.$$\n\nThen ``code``."


def test_dollars_in_pages():
    html = rendered("Of $a_1*b_2$ and *c*, `$d$`, 5$ or 6$.\n\n$$\n\\int x\n$$\n\n```\n$e$\n```\n")
    assert html.count("<math") == 2
    assert 'display="block"' in html
    assert "<code>$d$</code>" in html
    assert "$e$" in html
    assert "<em>c</em>" in html
    assert "5$ or 6$" in html
