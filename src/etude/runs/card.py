"""The model card of a run: what it is, how it was made, what it scores."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from etude.core.files import write_atomic
from etude.core.run_folder import RunFolder
from etude.core.study import Study
from etude.runs.text import escaped

_RESULTS = """\
| number | value | split | protocol |
|---|---|---|---|
{% for r in summary.results -%}
| {{ r.experiment }} {{ r.cell }} {{ r.metric }} | {{ "%.2f"|format(r.value) }}\
{% if r.half_width is not none %} ± {{ "%.2f"|format(r.half_width) }}{% endif %} {{ r.unit }} | {{ r.split }} | {{ r.protocol }} |
{% endfor %}
The interval is of this run's own measurement (95 %), not over seeds."""  # noqa: E501
_TEMPLATE = """\
# {{ study.title }}: {{ record.preset }}, seed {{ summary.seed }}

{{ study.title }}: {{ study.about }}. Trained with etude; scale: **{{ summary.scale }}**.

Repeat it: `{{ record.command }}`

{% include "results" %}

- weights: step {{ summary.step }} of {{ summary.steps_trained }}\
{% if summary.validation %}, chosen by validation {{ summary.validation.metric }} = {{ "%.4f"|format(summary.validation.best) }}{% endif %}
- parameters: {% for name, count in summary.parameters.items() %}{{ name }} {{ "{:,}".format(count) }}{{ ", " if not loop.last }}{% endfor %}
- training time: {{ "%.1f"|format(summary.train_seconds / 60) }} minutes; peak memory {{ summary.peak_memory_mb }} MB
- configuration: `config.yaml`; versions, hardware and data checksums: `environment.json`
"""  # noqa: E501


def write_card(study: Study, run: RunFolder, summary: Mapping[str, Any]) -> Path:
    """Write ``model_card.md`` of a run that ends with ``summary``."""
    path = run.path / "model_card.md"
    write_atomic(path, filled(_TEMPLATE, study=study, record=run.record, summary=summary))
    return path


def filled(template: str, **values: Any) -> str:
    """A card; ``{% include "results" %}`` in its template is the table of ``summary.results``."""
    environment = jinja2.Environment(
        loader=jinja2.DictLoader({"results": _RESULTS}), autoescape=False, undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        # Places that show Markdown read it as HTML, too.
        finalize=lambda value: escaped(value) if isinstance(value, str) else value,
    )  # fmt: skip
    return environment.from_string(template).render(values)
