"""The page needs nothing else, and nothing of a peer's gets out of its place in it."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

from test_interop_report import RESULT, RUN

from sterna_interop.report_html import write_html
from sterna_interop.resources import clauses

HOSTILE = "</script><script>alert(1)</script><!-- \u2028 & <img src=x onerror=alert(1)>"


def page(directory: Path) -> str:
    result = replace(RESULT, detail=HOSTILE, artifacts={HOSTILE: HOSTILE})
    return write_html(replace(RUN, results=[result], clauses=clauses()), directory).read_text()


def test_a_peers_text_stays_text(tmp_path: Path) -> None:
    text = page(tmp_path)
    assert text.count("<script") == text.count("</script>") == 2
    assert "alert(1)" in text
    assert "<img" not in text
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    document = json.loads(data)
    assert document["results"][0]["artifacts"] == {HOSTILE: HOSTILE}
    assert document["clauses"] == {"HDR-2": clauses()["HDR-2"].text}


def test_it_asks_for_nothing_from_outside(tmp_path: Path) -> None:
    text = page(tmp_path)
    assert "default-src 'none'" in text
    assert not re.search(
        r"(src|href)\s*=|url\(|@import|https?://",
        text.replace("img src=x", ""),
    )
    assert "innerHTML" not in text
    assert "REPORT_DATA" not in text
