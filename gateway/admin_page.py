"""The operator's page as one string of HTML, without scripts; it shows what it is given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jinja2 import Environment, select_autoescape

from tenants.values import TenantRecord, TierRecord

_PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="refresh" content="5">
<title>Tiergate</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #1a1a1a; background: #fff }
h1 { font-size: 1.4rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid #ddd }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
.good { color: #0a6b2d } .bad { color: #a31515 }
@media (prefers-color-scheme: dark) {
  body { color: #e8e8e8; background: #16181c } th, td { border-color: #3a3d44 }
  .good { color: #6fd08c } .bad { color: #ff8f8f }
}
</style>
</head>
<body>
<h1>Tiergate</h1>
<p>{% if state.ready %}<strong class="good">Ready to serve.</strong>
{% else %}<strong class="bad">Not ready: {{ state.missing | join(", ") }}.</strong>{% endif %}
{% if state.degraded %}<span class="bad">Degraded: {{ state.degraded | join(", ") }}.</span>
{% endif %}</p>

<h2>Engine</h2>
{% if state.info %}
<table>
<tr><th>Model</th><td>{{ state.info.model }}</td></tr>
<tr><th>Runs on</th><td>{{ state.info.device }}, {{ state.info.dtype }},
{{ state.info.runner }} runner, policy {{ state.info.policy }}</td></tr>
<tr><th>Context</th><td>{{ state.info.max_model_len }} tokens</td></tr>
<tr><th>Restarts</th><td>{{ state.restarts }}</td></tr>
</table>
{% else %}<p>The engine has not been ready yet.</p>{% endif %}
{% if state.snapshot %}
<table>
<tr><th class="number">Waiting</th><th class="number">Running</th>
<th class="number">KV blocks used</th><th class="number">Preemptions</th>
<th class="number">Prompt tokens</th><th class="number">Output tokens</th></tr>
<tr><td class="number">{{ state.snapshot.waiting }}</td>
<td class="number">{{ state.snapshot.running }}</td>
<td class="number">{{ state.snapshot.num_blocks - state.snapshot.free_blocks }}
 of {{ state.snapshot.num_blocks }}</td>
<td class="number">{{ state.snapshot.preemptions_total }}</td>
<td class="number">{{ state.snapshot.prompt_tokens_total }}</td>
<td class="number">{{ state.snapshot.output_tokens_total }}</td></tr>
</table>
{% endif %}

<h2>Door</h2>
<p>{{ state.door.open_answers }} answers in the making;
{{ state.door.waiting }} of at most {{ state.door.max_queue }} requests wait for their first token.
Usage records: {{ state.usage.written }} written, {{ state.usage.buffered }} buffered,
{{ state.usage.spooled_bytes }} bytes on disk,
<span class="{{ 'bad' if state.usage.lost else '' }}">{{ state.usage.lost }} lost</span>.</p>

<h2>Tiers</h2>
<table>
<tr><th>Tier</th><th>service_tier</th><th class="number">First token within</th>
<th class="number">Next tokens within</th><th class="number">Objective</th>
<th class="number">Waiting</th></tr>
{% for tier, word in tiers %}
<tr><td>{{ tier.name }}</td><td>{{ word }}</td>
<td class="number">{{ tier.ttft_ms }} ms + {{ tier.ttft_ms_per_1k_prompt_tokens }} ms/1k</td>
<td class="number">{{ tier.tbt_ms }} ms ({{ tier.tbt_mode }}
{{- ", paced at %d ms" % tier.pace_ms if tier.pace_ms }})</td>
<td class="number">{{ "%.1f" | format(tier.objective * 100) }} %</td>
<td class="number">{{ state.door.waiting_by_tier.get(tier.name, 0) }}</td></tr>
{% endfor %}
</table>

<h2>Tenants</h2>
{% if tenants is none %}<p class="bad">The database does not answer.</p>
{% elif not tenants %}<p>None yet: <code>tiergate tenant add NAME --tier premium</code></p>
{% else %}
<table>
<tr><th>Tenant</th><th>Tier</th><th>Since</th><th>State</th></tr>
{% for tenant in tenants %}
<tr><td>{{ tenant.name }}</td><td>{{ tenant.tier }}</td>
<td>{{ tenant.created_at.strftime("%Y-%m-%d") }}</td>
<td>{{ "disabled" if tenant.disabled_at else "enabled" }}</td></tr>
{% endfor %}
</table>
{% endif %}
<p>This page renews itself every five seconds. The same as JSON: <code>/admin/api/engine</code>;
metrics: <code>/metrics</code>.</p>
</body>
</html>
"""


def render_page(
    state: dict[str, Any],
    tiers: Sequence[tuple[TierRecord, str]],
    tenants: Sequence[TenantRecord] | None,
) -> str:
    """Return the page; `tenants` is None where the ledger does not answer."""
    environment = Environment(autoescape=select_autoescape(default=True))
    return environment.from_string(_PAGE).render(state=state, tiers=tiers, tenants=tenants)
