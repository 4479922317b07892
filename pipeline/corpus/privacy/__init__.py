"""Personal data and secrets in a text: one compiled scan for places to look at, then strict patterns at each."""
