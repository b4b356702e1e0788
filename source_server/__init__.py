"""lm-serve: snapshot, freeze, page server and custody, and the run from start to end on the source."""
