"""The ledger: who is served, what was promised, what was used; it knows no HTTP, no engine."""
