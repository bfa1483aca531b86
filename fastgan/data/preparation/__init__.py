"""`fastgan data prepare`: any images as shards of one size."""
