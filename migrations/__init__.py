"""How the ledger's schema came to be, step by step; it knows the tables, not what they are for."""
