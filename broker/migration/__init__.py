"""From the configuration of other brokers to rookery.toml."""
