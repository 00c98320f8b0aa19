"""How often rules on a percentile are wrong, and how many requests they take, by simulation."""
