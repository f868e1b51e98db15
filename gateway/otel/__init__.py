"""What leaves this process by push: traces, logs and metrics over OTLP."""
