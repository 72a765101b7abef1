"""Where events go: webhooks, a broker, a log file, and whoever else follows them with a cursor."""
