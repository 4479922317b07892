"""What a run is doing: read from its folder, from any machine that sees it."""
