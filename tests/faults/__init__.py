"""What servers, networks, tools and readers can do to a run: a matrix of faults, chaos, and a census of what is left."""
