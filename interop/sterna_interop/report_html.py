"""`report.html`: one page that needs nothing else, with the same data as `report.json`.

The page is a file (data/report.html); the data go into it as JSON, and its script puts every string of them
into the document as text. What peers printed is hostile: all that is to be done here is to keep it from
ending the element that it is in.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from sterna_interop.report import HTML, Run
from sterna_interop.resources import template

_PLACE: Final = "REPORT_DATA"
# In JSON these occur in strings alone, and there the escapes mean the same.
_ESCAPES: Final = str.maketrans({each: f"\\u{ord(each):04x}" for each in "<>&\u2028\u2029"})


def write_html(run: Run, directory: Path) -> Path:
    """Write the page; its path."""
    used = {clause for case in run.cases for clause in case.clauses}
    texts = {clause.id: clause.text for clause in run.clauses.values() if clause.id in used}
    data = json.dumps({**run.to_fields(), "clauses": texts}).translate(_ESCAPES)
    path = directory / HTML
    path.write_text(template(HTML).replace(_PLACE, data, 1))
    return path
