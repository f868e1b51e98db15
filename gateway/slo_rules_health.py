"""Makes the Prometheus rules that no tier is named in: tenants that fail, engine, bills, silence.

What an alert means and what to do first stands in docs/alerts.md under its name. No rule has more
than a bounded number of alerts: where many tenants fail at once, one alert says how many.
"""

from __future__ import annotations

from gateway.slo_rules import PAGE, TICKET, Alert, Group, Recording, RuleOptions

# A tenant is failing when this share of its requests went wrong in one of the windows, each with
# the least number of requests that says anything. The long one is for tenants that ask seldom.
FAILING_SHARE = "0.95"
FAILING_WINDOWS = (("15m", 10), ("6h", 5))
MOST_TENANT_ALERTS = 20
FAILING = "tiergate:tenant_failing:requests"
# What an engine's state and the counters of tenants have in common: they come with one scrape.
PROCESS = "job, instance, worker"


def health_groups(options: RuleOptions) -> list[Group]:
    """Return the groups; they are the same for all tiers."""
    return [
        Group("tiergate-tenants", tuple(_tenants(options))),
        Group("tiergate-engine", tuple(_engine(options))),
        Group("tiergate-records", tuple(_records(options))),
        Group("tiergate-telemetry", tuple(_telemetry(options))),
    ]


def _of_tenants(kind: str, window: str, options: RuleOptions) -> str:
    """Return how much a tenant's counter grew.

    `increase` does not see the value with which a series begins, and a new tenant's first requests
    may all lie in it: a series that began within the window counts in full. That it was not there
    when the window began does not show it: then nobody may have scraped. Its process must have been
    scraped within the window without it, too.
    """
    counter = (
        f"tiergate_slo_{kind}_total{{{options.selector},"
        'tiergate_slo_objective=~"all|availability"}'
    )
    return (
        "sum by (tiergate_tier, tiergate_tenant_id, tiergate_slo_objective) (\n"
        f"    ({counter} unless {counter} offset {window}\n"
        f"      and count_over_time({counter}[{window}])\n"
        f"        < on ({PROCESS}) group_left () max by ({PROCESS})"
        f" (count_over_time(tiergate_engine_up{{{options.selector}}}[{window}])))\n"
        f"    or increase({counter}[{window}])\n"
        "  )"
    )


def _tenants(options: RuleOptions) -> list[Recording | Alert]:
    parts = []
    for window, least in FAILING_WINDOWS:
        bad, asked = (_of_tenants(kind, window, options) for kind in ("violations", "requests"))
        parts.append(f"(\n  {bad} >= {FAILING_SHARE} * {asked}\nand\n  {asked} >= {least}\n)")
    few = f"and on () (count({FAILING}) <= {MOST_TENANT_ALERTS})"
    unavailable = f'{FAILING}{{tiergate_slo_objective="availability"}}'
    broken = f'{FAILING}{{tiergate_slo_objective="all"}}'
    return [
        Recording(FAILING, "\nor\n".join(parts)),
        Alert(
            "TiergateTenantFailing",
            f"{unavailable}\n{few}",
            PAGE,
            "tenant {{ $labels.tiergate_tenant_id }} (tier {{ $labels.tiergate_tier }}) gets no"
            " answers",
            "{{ $value | humanize }} requests failed, and next to none succeeded.",
            hold="1m",
        ),
        Alert(
            "TiergateTenantMissing",
            f"{broken}\nunless on (tiergate_tier, tiergate_tenant_id) {unavailable}\n{few}",
            TICKET,
            "tenant {{ $labels.tiergate_tenant_id }} (tier {{ $labels.tiergate_tier }}) is always"
            " served late",
            "{{ $value | humanize }} requests broke a promise, and next to none kept all.",
            hold="1m",
        ),
        Alert(
            "TiergateManyTenantsFailing",
            f"count({FAILING}) > {MOST_TENANT_ALERTS}",
            PAGE,
            "{{ $value }} tenants (by tier and promise) have nearly all of their requests fail",
            "Too many for an alert each: it is not the tenants.",
            hold="1m",
        ),
    ]


def _engine(options: RuleOptions) -> list[Recording | Alert]:
    job = options.selector
    by = "by (job, instance)"
    return [
        Alert(
            "TiergateEngineDown",
            f"max {by} (tiergate_engine_up{{{job}}}) == 0",
            PAGE,
            "the engine of {{ $labels.instance }} answers nothing",
            "No worker of this gateway has an engine that is ready.",
            hold="1m",
        ),
        Alert(
            "TiergateEngineStalled",
            f'sum {by} (tiergate_engine_requests{{{job},tiergate_state=~"waiting|running"}}) > 0\n'
            f"and\nsum {by} (rate(tiergate_engine_computed_tokens_total{{{job}}}[2m])) == 0",
            PAGE,
            "the engine of {{ $labels.instance }} has work and computes nothing",
            "{{ $value }} requests wait or run, and no token was computed for two minutes.",
            hold="1m",
        ),
        Alert(
            "TiergateEngineRestarting",
            f"max {by} (increase(tiergate_engine_restarts_total{{{job}}}[30m])) > 2",
            TICKET,
            "the engine of {{ $labels.instance }} was started again and again",
            "{{ $value | humanize }} times within half an hour.",
        ),
    ]


def _records(options: RuleOptions) -> list[Recording | Alert]:
    job = options.selector
    lost = f'tiergate_usage_records_total{{{job},tiergate_state=~"lost|refused"}}'
    spooled = f'tiergate_usage_backlog{{{job},tiergate_state="spooled_bytes"}}'
    strangers = f'tiergate_requests_total{{{job},tiergate_outcome="ledger_unavailable"}}'
    by = "by (job, instance)"
    return [
        Alert(
            "TiergateUsageLost",
            f"sum by (job, instance, tiergate_state) (increase({lost}[15m])) > 0",
            PAGE,
            "{{ $labels.instance }} cannot write usage records down: {{ $labels.tiergate_state }}",
            "{{ $value | humanize }} records within a quarter of an hour are on no bill.",
        ),
        Alert(
            "TiergateUsageSpooled",
            f"max {by} ({spooled}) > 0",
            TICKET,
            "{{ $labels.instance }} keeps usage records on its disk: the ledger does not take them",
            "{{ $value | humanize1024 }}B wait.",
            hold="10m",
        ),
        Alert(
            "TiergateKeysUnchecked",
            f"sum {by} (increase({strangers}[5m])) > 0",
            PAGE,
            "{{ $labels.instance }} cannot check API keys: the ledger does not answer",
            "{{ $value | humanize }} requests in five minutes were turned away unknown; they are in"
            " no tenant's figures.",
            hold="1m",
        ),
        Alert(
            "TiergateLimitsAway",
            f"min {by} (tiergate_limits_store_up{{{job}}}) == 0",
            TICKET,
            "the store of limits does not answer {{ $labels.instance }}",
            "Each worker grants its own share of every limit, or refuses, as the tier says.",
            hold="2m",
        ),
        Alert(
            "TiergateLimitsLost",
            f"sum {by} (increase(tiergate_limits_lost_total{{{job}}}[1h])) > 0",
            TICKET,
            "{{ $labels.instance }} could not settle what requests really used",
            "{{ $value | humanize }} requests within an hour count in full against their limits.",
        ),
    ]


def _telemetry(options: RuleOptions) -> list[Recording | Alert]:
    job = options.selector
    overflow = f'{{{job},otel_metric_overflow="true"}}'
    return [
        Alert(
            "TiergateSilent",
            f"absent(tiergate_engine_up{{{job}}})",
            PAGE,
            "nothing is heard of any gateway",
            "No gateway of this job has sent metrics, or none could be scraped.",
            hold="2m",
        ),
        Alert(
            "TiergateInstanceSilent",
            f"up{{{job}}} == 0",
            TICKET,
            "{{ $labels.instance }} cannot be scraped",
            "Its metrics are missing in every number of this job.",
            hold="2m",
        ),
        Alert(
            "TiergateSeriesOverflow",
            "count by (job, metric) (\n"
            f'  label_replace({overflow}, "metric", "$1", "__name__", "(.+)")\n)',
            TICKET,
            "{{ $labels.metric }} has more series than are kept apart",
            "The surplus is counted in one series without labels: sums by tenant are too low.",
        ),
        Alert(
            "TiergateTelemetryDropped",
            "sum by (job, instance) (increase(tiergate_telemetry_items_total"
            f'{{{job},tiergate_state=~"failed|dropped"}}[15m])) > 0',
            TICKET,
            "{{ $labels.instance }} cannot push its telemetry",
            "{{ $value | humanize }} spans, lines or points within a quarter of an hour are gone.",
            hold="10m",
        ),
        Alert(
            "TiergateTierWithoutRules",
            f"count by (tiergate_tier) (tiergate_slo_threshold_seconds{{{job}}})\n"
            "unless on (tiergate_tier) slo:objective:ratio",
            TICKET,
            "tier {{ $labels.tiergate_tier }} has no rules",
            "It was added after `tiergate slo rules` was last run.",
            hold="10m",
        ),
        Alert(
            "TiergateWatchdog",
            "vector(1)",
            "none",
            "alerts are being evaluated",
            "Always on. Whoever stops receiving it has no alerting.",
        ),
    ]
