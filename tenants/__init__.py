"""The ledger: who the tenants are, what they were promised and what they used; no HTTP, no engine."""
