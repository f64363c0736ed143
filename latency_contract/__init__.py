"""What travels between service, agents and clients: the types that all three agree on, and the wire itself."""
