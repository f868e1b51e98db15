"""What an operator types: one file a command, each a thin hand on the ledger or the gateway."""
