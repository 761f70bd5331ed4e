"""The commands of `lossattn`: their table and what `--help` says of each, without importing JAX."""
