"""One trace from a post to the sinks. Off while no `OTEL_*` is set: then it costs an `if` a post and a request."""
