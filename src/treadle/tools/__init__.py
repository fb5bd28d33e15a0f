"""Tools: typed functions as a model sees them, strict decoding of the arguments it writes, and running the call."""
