"""HTTP routes: they translate between the wire and the verbs of the gateway, and decide nothing."""
