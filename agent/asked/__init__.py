"""What the hub may ask of this device beside its desired state: logs, restarts, diagnostics. For `agent.commands`."""
