"""Sessions and the connection state machine, without I/O."""
