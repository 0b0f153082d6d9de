"""How fast, against the machine's own limits."""
