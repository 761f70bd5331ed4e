"""How fast this package is, against plain versions of the same work on the same machine."""
