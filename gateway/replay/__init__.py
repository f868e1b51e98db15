"""Plays a workload against a server over HTTP and judges it as the simulator does; no server."""
