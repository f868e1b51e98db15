"""Several gateway processes at one engine, one address and one ledger, and their parent."""
