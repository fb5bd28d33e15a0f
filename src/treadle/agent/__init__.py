"""The face of treadle: `Agent`, and a run as it is watched."""
