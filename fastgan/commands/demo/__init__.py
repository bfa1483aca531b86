"""A page to play with a run's generator: what it shows, the page, the command."""
