"""PAD-NAS: a one-shot supernet, evolutionary search under a measured latency bound, operator pruning in stages."""
