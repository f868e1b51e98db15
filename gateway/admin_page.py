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
{% set now = state.engine %}
{% if now %}
<table>
<tr><th class="number">Waiting</th><th class="number">Running</th><th class="number">Parked</th>
<th class="number">KV blocks used</th><th class="number">Host blocks used</th>
<th class="number">Preemptions</th>
<th class="number">Prompt tokens</th><th class="number">Output tokens</th></tr>
<tr><td class="number">{{ now.waiting.requests }}</td>
<td class="number">{{ now.running.requests }}</td>
<td class="number">{{ now.parked.requests }}</td>
<td class="number">{{ now.memory.held }} of {{ now.memory.blocks }}</td>
<td class="number">{{ now.memory.host_held }} of {{ now.memory.host_blocks }}</td>
<td class="number">{{ now.preemptions_total }}</td>
<td class="number">{{ state.snapshot.prompt_tokens_total }}</td>
<td class="number">{{ state.snapshot.output_tokens_total }}</td></tr>
</table>
<p>Copies under way: {{ now.swap.leaving }} to the host, {{ now.swap.returning }} back;
{{ now.swap.tokens_out_total }} tokens carried out and {{ now.swap.tokens_in_total }} in so far,
<span class="{{ 'bad' if now.swap.lost_copies_total else '' }}">{{ now.swap.lost_copies_total }}
copies lost</span>. Streams are ahead by {{ "%.0f" | format(now.bank.ms) }} ms in all
{%- if now.bank.least_ms is not none %}, the least of them by
{{ "%.0f" | format(now.bank.least_ms) }} ms{% endif %}.
{% if now.recompute_share is not none %}Computed again:
{{ "%.1f" | format(now.recompute_share * 100) }} % of all tokens.{% endif %}
{% if now.prefix_hit_share is not none %}From the prefix cache:
{{ "%.1f" | format(now.prefix_hit_share * 100) }} % of prompt tokens.{% endif %}</p>
{% if now.recent %}
<p>In the last {{ "%.0f" | format(now.recent.seconds) }} seconds, a second:
{{ "%.1f" | format(now.recent.output_tokens_per_s) }} tokens generated,
{{ "%.1f" | format(now.recent.computed_tokens_per_s) }} computed,
{{ "%.1f" | format(now.recent.tokens_out_per_s) }} carried out and
{{ "%.1f" | format(now.recent.tokens_in_per_s) }} in,
{{ "%.1f" | format(now.recent.steps.per_s) }} steps
{%- if now.recent.steps.mean_ms is not none %} of
{{ "%.2f" | format(now.recent.steps.mean_ms) }} ms{% endif %}.
{% if now.latency.factor is not none %}Latency profile {{ now.latency.profile }},
corrected by {{ "%.2f" | format(now.latency.factor) }}
{%- if now.latency.error_p50 is not none %}; predictions are off by
{{ "%.1f" | format(now.latency.error_p50 * 100) }} % in the median{% endif %}.{% endif %}</p>
{% endif %}
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
