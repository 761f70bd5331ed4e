"""The report on a checkpoint: one HTML page that needs no network, and its pictures as files."""
