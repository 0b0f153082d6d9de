"""pytest fixtures: a real broker for each test."""
