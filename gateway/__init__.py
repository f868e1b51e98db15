"""The door: HTTP in, token streams out; it knows who asks and turns records into bills."""
