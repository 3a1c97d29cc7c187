"""Search in Chinese text without a dictionary: words of Latin letters as they are, Chinese ones by pairs of characters.

Sphinx's own Chinese search needs a segmenter, and without one finds Latin words only. Pairs need none, and page and query are cut by
the same rule, so that any two characters in a row are found.
"""

from __future__ import annotations

import re

from sphinx.search import SearchLanguage

_RUNS = re.compile(r"[\u4e00-\u9fff]+|[A-Za-z0-9_]+")


class ChineseSearch(SearchLanguage):
    """Index and query by pairs of Chinese characters."""

    lang = "zh"
    language_name = "Chinese"
    js_splitter_code = r"""
function splitQuery(query) {
  const words = [];
  for (const run of query.match(/[\u4e00-\u9fff]+|[A-Za-z0-9_]+/g) || []) {
    if (!/[\u4e00-\u9fff]/.test(run) || run.length === 1) words.push(run);
    else Array.from(run).slice(1).forEach((second, place) => words.push(run[place] + second));
  }
  return words;
}
"""

    def split(self, input: str) -> list[str]:
        """Return the words of Latin letters and the pairs of Chinese characters of a text, in order."""
        words: list[str] = []
        for run in _RUNS.findall(input):
            if run[0] < "\u4e00" or len(run) == 1:
                words.append(run)
            else:
                words += [run[place : place + 2] for place in range(len(run) - 1)]
        return words

    def stem(self, word: str) -> str:
        """Return the word in small letters, as the query is compared."""
        return word.lower()
