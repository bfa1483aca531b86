"""`fastgan report RUN`: a run on one page."""
