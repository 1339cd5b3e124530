"""The page's Markdown: an answer that grows ends as the same elements as one that is there at once."""

from __future__ import annotations

import random
from typing import Any

import pytest

from ember.page.document import FILES

PIECES = (
    *(
        "# ",
        "## h",
        "- ",
        "  - x",
        "1. ",
        "2) ",
        "> ",
        "> q",
        "```",
        "```js",
        "~~~",
        "---",
        "***",
        "| a | b |",
        "|--|--|",
    ),
    *(
        "|",
        "    code",
        "*",
        "**",
        "***",
        "_",
        "__",
        "~~",
        "`",
        "``",
        "[x](",
        "https://a.example/b",
        ")",
        "![",
        "](",
        "<",
    ),
    *(
        "<b>",
        "\\",
        "\\*",
        "word",
        " word",
        "שלום",
        "é",
        " ",
        "  ",
        "\n",
        "\n",
        "\n\n",
        "\n\n",
        "\t",
        "\r",
        " ##",
        "` ",
        "#",
        "+ ",
        "=",
        "&lt;",
    ),
)
COMPARE = """(texts) => texts.filter((text) => {
  const whole = document.createElement("div");
  new GrowingMarkdown(whole).update(text, true);
  return [1, 3, 7].some((step) => {
    const grown = document.createElement("div");
    const blocks = [];
    const growing = new GrowingMarkdown(grown, (block) => blocks.push(block));
    for (let end = step; end < text.length; end += step) growing.update(text.slice(0, end));
    growing.update(text, true);
    return grown.innerHTML !== whole.innerHTML || blocks.length !== grown.childElementCount;
  });
})"""
RENDER = """(text) => {
  const element = document.createElement("div");
  new GrowingMarkdown(element).update(text, true);
  return element.innerHTML.replaceAll(' dir="auto"', "");
}"""


@pytest.fixture(scope="module")
def page(browser: Any) -> Any:
    page = browser.new_page()
    source = "\n".join((FILES / name).read_text() for name in ("dom.js", "markdown.js"))
    page.add_script_tag(content=f"(() => {{{source}\nglobalThis.GrowingMarkdown = GrowingMarkdown;}})()")
    return page


def test_growing_text_ends_as_the_whole(page: Any) -> None:
    rng = random.Random(7)
    texts = ["".join(rng.choices(PIECES, k=rng.randint(1, 30))) for _ in range(1500)]
    assert page.evaluate(COMPARE, texts) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a **b *c* d** e", "<p>a <strong>b <em>c</em> d</strong> e</p>"),
        ("***x***", "<p><em><strong>x</strong></em></p>"),
        ("snake_case_name and 2*3*4", "<p>snake_case_name and 2<em>3</em>4</p>"),
        ("**open", "<p>**open</p>"),
        ("``a`b`` `c", '<p><code dir="ltr">a`b</code> `c</p>'),
        ("\\*no\\* <b>&amp;", "<p>*no* &lt;b&gt;&amp;amp;</p>"),
        ("a\nb\n# c\nd", '<p>a<br>b</p><h2 class="h-1">c</h2><p>d</p>'),
        ("1. a\n\n   b\n2. c", "<ol><li>a<p>b</p></li><li>c</li></ol>"),
        ("3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
        ("- a\n  more\n- b\n\nend", "<ul><li>a<br>more</li><li>b</li></ul><p>end</p>"),
        ("> a\n> - b", "<blockquote><p>a</p><ul><li>b</li></ul></blockquote>"),
        ("#no heading\n\n---", "<p>#no heading</p><hr>"),
        ("|a|\n|-|-|", "<p>|a|<br>|-|-|</p>"),
        ("a | b\nc", "<p>a | b<br>c</p>"),
        ("[x](javascript:alert)", "<p>[x](javascript:alert)</p>"),
        (
            "see https://a.example/b.",
            '<p>see <a href="https://a.example/b" target="_blank" rel="noopener noreferrer nofollow">https://a.example/b</a>.</p>',
        ),
    ],
)
def test_forms(page: Any, text: str, expected: str) -> None:
    assert page.evaluate(RENDER, text) == expected


# How long the text takes at growing sizes, the best of three: the first size at which sixteen times the text took over
# 64 times as long (quadratic time: 256 times), or more than the deadline. It looks no further than that; null if there
# is none.
GROWTH = """([start, piece, end]) => {
  const times = [Infinity, Infinity];
  for (const size of [500, 2000, 8000, 32000]) {
    const text = start + piece.repeat(size / piece.length) + end;
    let best = Infinity;
    for (let i = 0; i < 3; i += 1) {
      const began = performance.now();
      new GrowingMarkdown(document.createElement("div")).update(text, true);
      best = Math.min(best, performance.now() - began);
      if (best > 5000) return { size, best, times };
    }
    if (best > 64 * Math.max(times.at(-2), 2)) return { size, best, times };
    times.push(best);
  }
  return null;
}"""
HOSTILE = (
    *(
        ("", piece, "")
        for piece in ("*", "_a", "**a ", "[", "`a", "![a](", "> ", "- ", "  - a\n", "|a", "<", "\\", "h")
    ),
    *(("", "~~a ", ""), ("", "#", ""), ("", "\r", ""), ("", " ", "\r"), ("", "`` ` ", "")),
    *(("` ", "x", "`"), ("`", " ", "`"), ("", "`", "a"), ("", "~", "`"), ("~~~", " ", "`"), ("", "`", "\na\n")),
    *(("a|\n", " ", "|x"), ("a|\n|-", " ", "x"), ("a|\n", "|-", "x"), ("# a", " ", "\r"), ("# ", " #", "x")),
    *(("#", " ", "\r"), ("# ", "#", "x"), ("- ", " ", "\r"), ("- a\n", "\n", "  b"), ("[x](", " ", "x")),
    *(("", "* ", "x"), ("http://a", ".", "/ "), ("", "http://.", "")),
)


def test_hostile_texts_take_linear_time(page: Any) -> None:
    """A text is slow if it is at each of several looks: a browser collects garbage when it wants to."""
    slow = list(HOSTILE)
    for _ in range(4):
        slow = [text for text in slow if page.evaluate(GROWTH, text) is not None]
    assert slow == []
