"""Exact limits and budgets: what may be asked for, by whom, when again; it knows no HTTP route."""
