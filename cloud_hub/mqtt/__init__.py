"""A small MQTT 5 client for the hub: one connection over TLS, packets by the codec `mqtt5`, no thread.

`wire` turns bytes into packets and back, `client` speaks the protocol: qualities 0 and 1 and flow control both ways.
Reconnecting is `link`'s, as is what messages mean. Why not aiomqtt: docs/decisions/0062-hub-at-scale.md.
"""
